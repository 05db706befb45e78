"""`mapolicy export`: what a policy draws, for loops without mapolicy."""

from pathlib import Path
from typing import Annotated

import typer

from ..bundle.export import FORMS, omissions_of
from ..bundle.export import export as write_policy
from ..errors import UsageError
from ..runtime.files import write_atomically
from . import bundles, display, options, outputs
from .grouped import grouped


@grouped
def export(
    *,
    bundle: options.BundleArgument,
    form: Annotated[str, typer.Option("--to", help="torchvision or albumentations.")] = "torchvision",
    out: Annotated[Path | None, typer.Option(help="The policy's file.", metavar="FILE")] = None,
    checks: options.BundleChecks,
    force: options.Force = False,
    output: options.Output,
) -> None:
    """Write a policy for torchvision or albumentations.

    The file is Python or JSON. The command lists what the other library cannot express.

    Example: mapolicy export artifacts/c100.safetensors --to torchvision
    """
    if form not in FORMS:
        raise UsageError("--to", f"{form!r} is not one of {', '.join(FORMS)}")
    out = out or Path("artifacts") / f"{Path(outputs.file_name(bundle)).stem}_{form}{FORMS[form]}"
    outputs.ensure_writable(out, "--out", force=force)
    why = "is a dataset-level policy, which has no p_jk"
    file = bundles.searched_file(checks.open(bundle), why, "its whole list is in `mapolicy inspect FILE --json`")
    manifest = file.manifest
    write_atomically(out, write_policy(manifest, file.tensors, form).encode())
    lost = omissions_of(manifest, form)
    if output.as_json:
        display.print_json({"policy": str(out), "digest": manifest.digest, "lost": list(lost)})
        return
    display.print_figures({"policy": str(out), "digest": manifest.digest})
    print("\nlost:")
    for omission in lost:
        print(f"  {omission}")
