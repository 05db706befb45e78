"""A bundle like another one, whose p_jk is uniform over all operations but some: what leaving them out is worth.

python benchmarks/evidence/without.py BUNDLE OUT Contrast Solarize
mapolicy train --bundle OUT --policy sampler-only --arch ARCH
"""

import sys

import torch

from mapolicy import PolicyBundle
from mapolicy.transforms.space import OPERATION_NAMES


def with_probabilities(bundle: PolicyBundle, probabilities: torch.Tensor, note: str) -> PolicyBundle:
    """The same with another p_jk, float64 [K, K]."""
    tensors: dict[str, dict[str, torch.Tensor]] = {prefix: {} for prefix in ("policy.", "extractor.")}
    for name, tensor in bundle.tensors.items():
        for prefix, found in tensors.items():
            if name.startswith(prefix):
                found[name.removeprefix(prefix)] = tensor
    return PolicyBundle.assemble(
        bundle.manifest.draft(note=f"{bundle.digest[:12]} with {note}"),
        policy=tensors["policy."],
        alpha=bundle.alpha,
        probabilities=probabilities,
        means=bundle.means,
        extractor=tensors["extractor."],
        meta_validation=bundle.meta_validation,
    )


def main() -> None:
    """Write the bundle; its policy network is the other's."""
    source, out, *left_out = sys.argv[1:]
    bundle = PolicyBundle.load(source)
    kept = torch.tensor([name not in left_out for name in OPERATION_NAMES], dtype=torch.float64)
    if int(len(OPERATION_NAMES) - kept.sum()) != len(left_out):
        raise SystemExit(f"{' '.join(left_out)}: not all of them are operations ({', '.join(OPERATION_NAMES)})")
    with_probabilities(
        bundle, torch.outer(kept, kept) / kept.sum() ** 2, f"p_jk uniform without {' and '.join(left_out)}."
    ).save(out)


if __name__ == "__main__":
    main()
