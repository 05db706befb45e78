"""`mapolicy slim`: a smaller file of the same policy."""

from pathlib import Path
from typing import Annotated

import typer

from ..bundle.fetch import fetch_container
from ..bundle.format import parse_bundle
from ..bundle.manifest import DTYPES
from ..errors import UsageError
from . import display, options, outputs
from .grouped import grouped


@grouped
def slim(
    *,
    bundle: options.BundleArgument,
    out: Annotated[Path | None, typer.Option(help="The smaller bundle.", metavar="FILE")] = None,
    extractor_dtype: options.ExtractorDtype = None,
    checks: options.BundleChecks,
    force: options.Force = False,
    output: options.Output,
) -> None:
    """Make a bundle smaller: half precision and no classifier.

    The extractor is stored in float16 unless --extractor-dtype names another dtype. The command measures how the
    weights change.

    Example: mapolicy slim artifacts/c100.safetensors
    """
    dtype = extractor_dtype or "float16"
    if dtype not in DTYPES:
        raise UsageError("--extractor-dtype", f"{dtype!r} is not one of {', '.join(DTYPES)}")
    out = out or Path("artifacts") / f"{Path(outputs.file_name(bundle)).stem}-slim.safetensors"
    outputs.ensure_writable(out, "--out", force=force)
    fetched = fetch_container(bundle, checks.allowed)
    content = parse_bundle(fetched.content, fetched.source, checks.expect_digest, checks.allowed)

    from ..policy.compress import CUT
    from ..policy.compress import slim as make_slim
    from ..policy.policy_bundle import PolicyBundle

    whole = PolicyBundle.from_raw(*content, fetched.source, checks.allowed, fetched.origin)
    smaller, effect = make_slim(whole, dtype)
    smaller.save(out)
    note_cut = smaller.manifest.note.endswith(CUT)
    size = out.stat().st_size
    output.show(
        {
            "bundle": str(out),
            "digest": smaller.digest,
            "made_of": whole.digest,
            "bytes": size,
            "bytes_before": len(fetched.content),
            "note_cut": note_cut,
            **vars(effect),
        },
        {
            "bundle": str(out),
            "digest": smaller.digest,
            "made of": whole.digest,
            "size": f"{size:,} bytes, {size / len(fetched.content):.1%} of {len(fetched.content):,}",
            "extractor": f"{dtype}{'' if smaller.has_classifier else ', without classifier'}",
            **display.effect_on_weights(vars(effect)),
            **({"note": "cut at its end to make room for what the bundle was made of"} if note_cut else {}),
        },
    )
