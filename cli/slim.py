"""`mapolicy slim`: a smaller file of the same policy."""

from pathlib import Path
from typing import Annotated

import typer

from ..bundle.fetch import fetch_container
from ..bundle.format import parse_bundle
from ..bundle.limits import Limits
from ..bundle.manifest import DTYPES
from ..errors import UsageError
from . import display, options


def slim(
    bundle: options.BundleArgument,
    out: Annotated[Path | None, typer.Option(help="The smaller bundle.", metavar="FILE")] = None,
    extractor_dtype: options.ExtractorDtype = None,
    expect_digest: options.ExpectDigest = None,
    limits: options.BundleLimits = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Store a bundle's extractor in half precision (float16) and without its classifier; say what that changes.

    Example: mapolicy slim artifacts/c100.safetensors
    """
    dtype = extractor_dtype or "float16"
    if dtype not in DTYPES:
        raise UsageError("--extractor-dtype", f"{dtype!r} is not one of {', '.join(DTYPES)}")
    out = out or Path("artifacts") / f"{Path(options.file_name(bundle)).stem}-slim.safetensors"
    options.claim(out, force, resume=False, flag="--out")
    allowed = Limits.of(limits or ())
    fetched = fetch_container(bundle, allowed)
    content = parse_bundle(fetched.content, fetched.source, expect_digest, allowed)

    from ..policy.compress import CUT
    from ..policy.compress import slim as make_slim
    from ..policy.policy_bundle import PolicyBundle

    whole = PolicyBundle.from_raw(*content, fetched.source, allowed, fetched.origin)
    smaller, effect = make_slim(whole, dtype)
    smaller.save(out)
    note_cut = smaller.manifest.note.endswith(CUT)
    size = out.stat().st_size
    if as_json:
        display.print_json(
            {
                "bundle": str(out),
                "digest": smaller.digest,
                "made_of": whole.digest,
                "bytes": size,
                "bytes_before": len(fetched.content),
                "note_cut": note_cut,
                **vars(effect),
            }
        )
        return
    display.print_figures(
        {
            "bundle": str(out),
            "digest": smaller.digest,
            "made of": whole.digest,
            "size": f"{size:,} bytes, {size / len(fetched.content):.1%} of {len(fetched.content):,}",
            "extractor": f"{dtype}{'' if smaller.has_classifier else ', without classifier'}",
            **display.effect_on_weights(vars(effect)),
            **({"note": "its end did not fit beside what the bundle was made of"} if note_cut else {}),
        }
    )
