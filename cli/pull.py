"""`mapolicy pull`: fetch a bundle, check it and keep it as a file."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..bundle.load import SearchedFile
from ..runtime.files import write_atomically
from . import display, options


def pull(
    bundle: options.BundleArgument,
    out: Annotated[Path | None, typer.Option(help="Where to keep it.", metavar="FILE")] = None,
    expect_digest: options.ExpectDigest = None,
    limits: options.BundleLimits = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Fetch a bundle from the Hugging Face Hub, an https address or a shared drive, check it and keep it.

    Example: mapolicy pull hf://birdlab/cifar100-policy@v1
    """
    out = out or Path("artifacts") / options.file_name(bundle)
    options.claim(out, force, resume=False, flag="--out")
    opened = options.opened(bundle, expect_digest, limits)
    fetched = opened.fetched
    write_atomically(out, fetched.content)
    facts = {"bundle": str(out), "digest": opened.policy.digest, "from": fetched.origin}
    if fetched.commit is not None:
        facts["commit"] = fetched.commit
    if as_json:
        display.print_json(facts)
        return
    if isinstance(opened.policy, SearchedFile):
        facts["extractor"] = display.NOT_BUILT
    facts["next"] = f"mapolicy train --bundle {shlex.quote(str(out))} --arch ARCH"
    display.print_figures(facts)
