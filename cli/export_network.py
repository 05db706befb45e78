"""`mapolicy export-network`: a trained network for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..inference.network_config import EXPORT_FORMS
from ..runtime.files import write_atomically
from . import networks, options, outputs
from .grouped import grouped


@grouped
def export_network(
    *,
    network: networks.NetworkArgument,
    form: Annotated[str, typer.Option("--to", help=f"{options.either(EXPORT_FORMS)}.")],
    out: Annotated[Path, typer.Option(help="The exported network; missing folders are made.", metavar="FILE")],
    checks: networks.NetworkChecks,
    force: options.Force = False,
    output: options.Output,
) -> None:
    """Write a trained network for other programs.

    The input is uint8 [B, C, S, S], because normalisation is a part of what is written; the output are logits. The file
    counts as written once it gives the logits of torch for 16 images. ONNX needs: pip install 'mapolicy[onnx]'

    Example: mapolicy export-network runs/my-train --to onnx --out my.onnx
    """
    if form not in EXPORT_FORMS:
        raise UsageError("--to", f"{form!r} is not one of {', '.join(EXPORT_FORMS)}")
    outputs.ensure_writable(out, "--out", force=force)
    file = checks.read(network)

    from ..inference.export_network import CHECKED_IMAGES, export_network

    exported = export_network(checks.build(file), form)
    write_atomically(out, exported.content)
    config = file.config
    document = {
        "network": str(out),
        "form": form,
        "bytes": len(exported.content),
        "input": ["batch", config.channels, config.image_size, config.image_size],
        "classes": len(config.label_names),
        "checked_by": exported.checked_by,
        "checked_images": CHECKED_IMAGES,
        "difference": exported.difference,
    }
    size = f"{config.channels} x {config.image_size} x {config.image_size}"
    output.show(
        document,
        {
            "network": str(out),
            "input": f"images: uint8 [B, {size.replace(' x ', ', ')}], not normalised",
            "output": f"logits: float32 [B, {len(config.label_names)}]",
            "size": f"{len(exported.content):,} bytes",
            "checked": f"{CHECKED_IMAGES} images by {exported.checked_by}; logits differ by at most "
            f"{exported.difference:.1g} of the largest",
        },
    )
