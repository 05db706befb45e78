"""`mapolicy push`: share a bundle on the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

import typer

from ..bundle import hub
from ..bundle.dataset_level import DatasetPolicy
from ..bundle.source import BUNDLE_FILE, CARD_FILE, PICTURE_FILE
from ..runtime.files import write_atomically
from . import display, options


def push(
    bundle: Annotated[Path, typer.Argument(help="The bundle.", metavar="FILE")],
    repository: Annotated[str, typer.Argument(help="Where to: NAMESPACE/NAME.", metavar="REPOSITORY")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    licence: Annotated[str, typer.Option(help="Where the bundle states none: cc-by-4.0, apache-2.0, ...")] = "",
    runs: Annotated[
        list[Path] | None,
        typer.Option("--run", help="Run folder whose result the card shows; any number of times.", metavar="DIR"),
    ] = None,
    card_only: Annotated[
        Path | None, typer.Option(help="Write card and picture here instead of pushing.", metavar="DIR")
    ] = None,
    expect_digest: options.ExpectDigest = None,
    limits: options.BundleLimits = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Put a bundle on the Hugging Face Hub, with a card that says what it is. Log in with `hf auth login` before.

    Example: mapolicy push artifacts/c100.safetensors birdlab/cifar100-policy
    """
    hub.check_repository(repository)
    opened = options.opened(bundle, expect_digest, limits)
    policy, manifest = opened.policy, opened.policy.manifest

    from ..bundle.model_card import dataset_policy_card, heat_map, model_card, read_run

    rows = [read_run(folder, manifest.digest) for folder in runs or []]
    if isinstance(policy, DatasetPolicy):
        pages = {CARD_FILE: dataset_policy_card(policy.manifest, repository, licence, rows).encode()}
    else:
        pages = {
            CARD_FILE: model_card(policy.manifest, policy.tensors, repository, licence, rows).encode(),
            PICTURE_FILE: heat_map(policy.tensors, policy.manifest.operations.names),
        }
    if card_only is not None:
        for name in pages:
            options.claim(card_only / name, force=False, resume=False, flag="--card-only")
        for name, page in pages.items():
            write_atomically(card_only / name, page)
        facts = {"card": str(card_only / CARD_FILE), "digest": manifest.digest}
    else:
        options.checked(opened)
        files = {BUNDLE_FILE: opened.fetched.content, **pages}
        commit = hub.publish(repository, files, f"Policy {manifest.digest[:12]}", private)
        facts = {"bundle": f"hf://{repository}@{commit}", "commit": commit, "digest": manifest.digest}
    if as_json:
        display.print_json(facts)
        return
    if card_only is None:
        facts["next"] = f"mapolicy train --bundle {facts['bundle']} --arch ARCH"
    if not (manifest.licence or licence):
        facts["licence"] = "not stated, so nobody may rely on one; --licence states one"
    display.print_figures(facts)
