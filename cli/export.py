"""`mapolicy export`: p_jk for loops without mapolicy."""

from pathlib import Path
from typing import Annotated

import typer

from ..bundle.dataset_level import DatasetPolicy
from ..bundle.download import redacted
from ..bundle.export import FORMS, omissions
from ..bundle.export import export as write_policy
from ..errors import InputError, UsageError
from ..runtime.files import write_atomically
from . import display, options


def export(
    bundle: options.BundleArgument,
    form: Annotated[str, typer.Option("--to", help="torchvision or albumentations.")] = "torchvision",
    out: Annotated[Path | None, typer.Option(help="The policy's file.", metavar="FILE")] = None,
    expect_digest: options.ExpectDigest = None,
    limits: options.BundleLimits = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Write p_jk as a policy of torchvision (Python) or albumentations (JSON), and say what is lost.

    Example: mapolicy export artifacts/c100.safetensors --to torchvision
    """
    if form not in FORMS:
        raise UsageError("--to", f"{form!r} is not one of {', '.join(FORMS)}")
    out = out or Path("artifacts") / f"{Path(options.file_name(bundle)).stem}_{form}{FORMS[form]}"
    options.claim(out, force, resume=False, flag="--out")
    opened = options.opened(bundle, expect_digest, limits).policy
    if isinstance(opened, DatasetPolicy):
        why = "is a dataset-level policy, which has no p_jk"
        raise InputError(redacted(bundle), why, "its whole list is in `mapolicy inspect FILE --json`")
    manifest = opened.manifest
    write_atomically(out, write_policy(manifest, opened.tensors, form).encode())
    if as_json:
        display.print_json({"policy": str(out), "digest": manifest.digest, "lost": list(omissions(form))})
        return
    display.print_figures({"policy": str(out), "digest": manifest.digest})
    print("\nlost:")
    for omission in omissions(form):
        print(f"  {omission}")
