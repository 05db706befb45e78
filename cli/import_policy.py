"""`mapolicy import`: a published dataset-level policy as a bundle."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from . import options, outputs
from .grouped import grouped


@grouped
def import_policy(
    *,
    policy: Annotated[
        str,
        typer.Argument(
            help="autoaugment-cifar10, autoaugment-imagenet, autoaugment-svhn, randaugment:N,M, or a file: a list of "
            "sub-policies as Fast AutoAugment publishes them, or AutoAlbument's JSON.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The bundle.", metavar="FILE")] = None,
    drop_unknown: Annotated[
        bool, typer.Option("--drop-unknown", help="Drop operations of AutoAlbument that have no counterpart.")
    ] = False,
    force: options.Force = False,
    output: options.Output,
) -> None:
    """Turn a published policy into a bundle.

    It is used and shared like any other bundle; all its weights are equal.

    Example: mapolicy import autoaugment-cifar10
    """
    stem = Path(policy).stem if Path(policy).exists() else policy.replace(":", "-").replace(",", "-")
    out = out or Path("artifacts") / f"{outputs.slug(stem)}.safetensors"
    outputs.ensure_writable(out, "--out", force=force)

    from ..policy.import_policy import import_policy as make_policy

    made = make_policy(policy, drop_unknown)
    made.save(out)
    manifest = made.manifest
    facts = {"bundle": str(out), "digest": made.digest, "source": manifest.source}
    output.show(
        {**facts, "sub_policies": len(manifest.sub_policies), "lost": list(manifest.lost)},
        {
            **facts,
            "sub-policies": str(len(manifest.sub_policies)),
            "lost": "; ".join(manifest.lost) or "nothing",
            "next": f"mapolicy train DATASET --bundle {shlex.quote(str(out))} --arch ARCH",
        },
    )
