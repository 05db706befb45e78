"""`mapolicy import`: a published dataset-level policy as a bundle."""

from pathlib import Path
from typing import Annotated

import typer

from . import next_command, options, outputs
from .grouped import grouped


@grouped
def import_policy(
    *,
    policy: Annotated[
        str,
        typer.Argument(
            help="autoaugment-cifar10, autoaugment-imagenet, autoaugment-svhn, randaugment:N,M, pba-cifar10, pba-svhn, "
            "or a file: a list of sub-policies as Fast AutoAugment and DADA publish them, AutoAlbument's or Faster "
            "AutoAugment's JSON, or a schedule of Population Based Augmentation.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The bundle.", metavar="FILE")] = None,
    drop_unknown: Annotated[
        bool, typer.Option("--drop-unknown", help="Drop operations that have no counterpart.")
    ] = False,
    epochs: Annotated[
        int | None,
        typer.Option(help="Epochs of the search that wrote the log of a schedule.", min=1, max=100_000),
    ] = None,
    which: Annotated[
        str | None, typer.Option("--list", help="The list, of a file that has several.", metavar="NAME")
    ] = None,
    force: options.Force = False,
    output: options.Output,
) -> None:
    """Turn a published policy into a bundle.

    It is used and shared like any other bundle; all its weights are equal.

    Example: mapolicy import autoaugment-cifar10
    """
    stem = (
        "-".join([Path(policy).stem, *([] if which is None else [which])])
        if Path(policy).exists()
        else policy.replace(":", "-").replace(",", "-")
    )
    out = out or Path("artifacts") / f"{outputs.slug(stem)}.safetensors"
    outputs.ensure_writable(out, "--out", force=force)

    from ..policy.import_policy import import_policy as make_policy

    made = make_policy(policy, drop_unknown, epochs, which)
    made.save(out)
    manifest = made.manifest
    facts = {"bundle": str(out), "digest": made.digest, "source": manifest.source}
    name, size = ("stages", len(manifest.stages)) if manifest.stages else ("sub_policies", len(manifest.sub_policies))
    output.show(
        {**facts, name: size, "lost": list(manifest.lost)},
        {
            **facts,
            name.replace("_", "-"): str(size),
            "lost": "; ".join(manifest.lost) or "nothing",
            "next": next_command.with_any_network(str(out), made),
        },
    )
