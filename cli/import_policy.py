"""`mapolicy import`: a published dataset-level policy as a bundle."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from . import display, options


def import_policy(
    policy: Annotated[
        str,
        typer.Argument(
            help="autoaugment-cifar10, autoaugment-imagenet, autoaugment-svhn, randaugment:N,M, or a file: a list of "
            "sub-policies as Fast AutoAugment publishes them, or AutoAlbument's JSON.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The bundle.", metavar="FILE")] = None,
    drop_unknown: Annotated[
        bool, typer.Option("--drop-unknown", help="Leave out AutoAlbument's operations that have no counterpart.")
    ] = False,
    force: options.Force = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Turn a published policy into a bundle that can be trained with and shared as any other; weights are equal.

    Example: mapolicy import autoaugment-cifar10
    """
    stem = Path(policy).stem if Path(policy).exists() else policy.replace(":", "-").replace(",", "-")
    out = out or Path("artifacts") / f"{options.slug(stem)}.safetensors"
    options.claim(out, force, resume=False, flag="--out")

    from ..policy.import_policy import import_policy as make_policy

    made = make_policy(policy, drop_unknown)
    made.save(out)
    facts = {"bundle": str(out), "digest": made.digest, "source": made.manifest.source}
    if as_json:
        count = len(made.manifest.sub_policies)
        display.print_json({**facts, "sub_policies": count, "lost": list(made.manifest.lost)})
        return
    facts |= {
        "sub-policies": str(len(made.manifest.sub_policies)),
        "lost": "; ".join(made.manifest.lost) or "nothing",
        "next": f"mapolicy train DATASET --bundle {shlex.quote(str(out))} --arch ARCH",
    }
    display.print_figures(facts)
