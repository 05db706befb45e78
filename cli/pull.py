"""`mapolicy pull`: fetch a bundle, check it and keep it as a file."""

from pathlib import Path
from typing import Annotated

import typer

from ..runtime.files import write_atomically
from . import display, next_command, options, outputs
from .grouped import grouped


@grouped
def pull(
    *,
    bundle: options.BundleArgument,
    out: Annotated[Path | None, typer.Option(help="The saved bundle.", metavar="FILE")] = None,
    checks: options.BundleChecks,
    force: options.Force = False,
    output: options.Output,
) -> None:
    """Fetch a bundle, check it and save it.

    The bundle is on the Hugging Face Hub, at an https address or on a shared drive.

    Example: mapolicy pull hf://birdlab/cifar100-policy@v1
    """
    out = out or Path("artifacts") / outputs.file_name(bundle)
    outputs.ensure_writable(out, "--out", force=force)
    opened = checks.open(bundle)
    fetched = opened.fetched
    write_atomically(out, fetched.content)
    facts = {"bundle": str(out), "digest": opened.policy.digest, "from": fetched.origin}
    if fetched.commit is not None:
        facts["commit"] = fetched.commit
    extractor = {"extractor": display.NOT_BUILT} if opened.policy.has_network else {}
    output.show(facts, facts | extractor | {"next": next_command.with_any_network(str(out), opened.policy)})
