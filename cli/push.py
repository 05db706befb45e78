"""`mapolicy push`: share a bundle on the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

import typer

from ..bundle.source import BUNDLE_FILE, CARD_FILE
from ..runtime.files import write_atomically
from . import bundles, next_command, options, outputs
from .grouped import grouped


@grouped
def push(
    *,
    bundle: Annotated[Path, typer.Argument(help="The bundle.", metavar="FILE")],
    repository: Annotated[str, typer.Argument(help="Repository of the Hub: NAMESPACE/NAME.", metavar="REPOSITORY")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    licence: Annotated[str, typer.Option(help="Licence if the bundle states none: cc-by-4.0, apache-2.0, ...")] = "",
    runs: Annotated[
        list[Path] | None,
        typer.Option("--run", help="Run folder whose result the card shows; repeatable.", metavar="DIR"),
    ] = None,
    card_only: Annotated[
        Path | None, typer.Option(help="Write card and picture here instead of pushing.", metavar="DIR")
    ] = None,
    checks: options.BundleChecks,
    output: options.Output,
) -> None:
    """Share a bundle on the Hugging Face Hub, with a model card.

    Log in with `hf auth login` first.

    Example: mapolicy push artifacts/c100.safetensors birdlab/cifar100-policy
    """
    from ..bundle import hub  # network code: other commands, which import this file, do without

    hub.check_repository(repository)
    opened = checks.open(bundle)
    manifest = opened.policy.manifest

    from ..bundle.model_card import card_pages, read_run

    rows = [read_run(folder, manifest.digest) for folder in runs or []]
    pages = card_pages(opened.policy, repository, licence, rows)
    if card_only is not None:
        for name in pages:
            outputs.ensure_writable(card_only / name, "--card-only", force=False)
        for name, page in pages.items():
            write_atomically(card_only / name, page)
        facts = {"card": str(card_only / CARD_FILE), "digest": manifest.digest}
    else:
        bundles.check_first_use(opened)
        files = {BUNDLE_FILE: opened.fetched.content, **pages}
        commit = hub.publish(repository, files, f"Policy {manifest.digest[:12]}", private)
        facts = {"bundle": f"hf://{repository}@{commit}", "commit": commit, "digest": manifest.digest}
    advice = {} if card_only else {"next": next_command.with_any_network(facts["bundle"], opened.policy)}
    if not (manifest.licence or licence):
        advice["licence"] = "not stated, so others may not use the bundle; --licence states one"
    output.show(facts, facts | advice)
