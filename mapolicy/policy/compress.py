"""Smaller bundles: the extractor in half precision and without its classifier; and the effect on the weights.

The policy network, p_jk, alpha and the split are kept: they are a few kilobytes, and fine-tuning needs them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bundle.format import EXTRACTOR_PREFIX, POLICY_PREFIX
from ..bundle.manifest import InputContract
from ..errors import InputError
from ..runtime.random import generator
from ..transforms.basic import Normalisation
from ..transforms.transformation import Transformation
from .frozen import FrozenExtractor, FrozenWeights
from .policy_bundle import PolicyBundle

IMAGES, DRAWS = 64, 4
LONGEST_NOTE, CUT = 4000, "\n[The rest of this note did not fit.]"


@dataclass(frozen=True)
class WeightEffect:
    """How two bundles' weights P_i differ on the same augmented images.

    Attributes:
        rank_correlation: Spearman's, the lowest over the draws; 1 if the order of the samples does not change.
        largest_difference: max |P'_i - P_i| / P_i over all samples.
        samples: number of augmented images.
    """

    rank_correlation: float
    largest_difference: float
    samples: int


def slim(
    bundle: PolicyBundle, dtype: str = "float16", drop_classifier: bool = True, images: Tensor | None = None
) -> tuple[PolicyBundle, WeightEffect]:
    """Make a smaller bundle of the same policy, and measure the effect on the weights.

    Args:
        bundle: left as it is.
        dtype: of the stored extractor: float32, float16 or bfloat16.
        drop_classifier: leave out the proxy's last layer, which the deep feature does not need.
        images: to measure on; None takes `synthetic_images`.

    Returns:
        The bundle, whose note names the original, and the effect. If the note becomes too long, its end is replaced by
        `CUT`.

    Raises:
        InputError: the extractor has numbers that `dtype` cannot hold.
    """
    stored = getattr(torch, dtype)
    for name, tensor in bundle.tensors.items():
        kept = name.startswith(EXTRACTOR_PREFIX) and tensor.is_floating_point()
        if kept and not tensor.to(stored).isfinite().all():
            raise InputError(f"extractor in {dtype}", f"{name} has numbers that it cannot hold", "use bfloat16")
    smaller = _repacked(bundle, dtype, drop_classifier, bundle.manifest.note)
    effect = effect_on_weights(bundle, smaller, images)
    lacks = "" if smaller.has_classifier else ", without classifier"
    note = (
        f"Made of {bundle.digest}: extractor in {dtype}{lacks}; weights' rank correlation "
        f"{effect.rank_correlation:.6f}, largest relative difference {effect.largest_difference:.2g}, "
        f"on {effect.samples} {'synthetic' if images is None else 'real'} samples.\n{bundle.manifest.note}"
    ).strip()
    if len(note) > LONGEST_NOTE:
        note = f"{note[: LONGEST_NOTE - len(CUT)]}{CUT}"
    return _repacked(bundle, dtype, drop_classifier, note), effect


def _repacked(bundle: PolicyBundle, dtype: str, drop_classifier: bool, note: str) -> PolicyBundle:
    left_out = bundle.classifier_tensors() if drop_classifier else frozenset()

    def part(prefix: str) -> dict[str, Tensor]:
        kept = {name: tensor for name, tensor in bundle.tensors.items() if name.startswith(prefix)}
        return {name.removeprefix(prefix): tensor for name, tensor in kept.items() if name not in left_out}

    extractor = bundle.manifest.extractor.model_copy(update={"dtype": dtype})
    return PolicyBundle.assemble(
        bundle.manifest.draft(extractor=extractor.model_dump(), note=note),
        policy=part(POLICY_PREFIX),
        alpha=bundle.alpha,
        probabilities=bundle.probabilities,
        means=bundle.means,
        log_levels=bundle.log_levels,
        effects=bundle.sample_effects,
        extractor=part(EXTRACTOR_PREFIX),
        meta_validation=bundle.meta_validation,
        limits=bundle.limits,
    )


def effect_on_weights(before: PolicyBundle, after: PolicyBundle, images: Tensor | None = None) -> WeightEffect:
    """How the weights of two bundles of one policy differ, over several random transformations of each image.

    Args:
        before, after: the bundles.
        images: uint8 [n, C, H, W], n of 2 or more; None takes `synthetic_images`.
    """
    contract, operations = before.manifest.input, before.manifest.operations
    images = synthetic_images(contract) if images is None else images
    cpu = torch.device("cpu")
    weigh = [FrozenWeights(FrozenExtractor(bundle, cpu), bundle.build_policy()).of for bundle in (before, after)]
    sampler = before.sampler()
    mean_colour = Normalisation(contract.mean, contract.std, cpu).mean_colour()
    fill = mean_colour if operations.fill == "mean" else torch.zeros_like(mean_colour)
    correlations, differences = [], []
    for draw in range(DRAWS):
        transformation: Transformation = sampler.sample(len(images), generator(0, "slim", "transformation", draw))
        augmented = transformation.apply(images, operations.space, fill)
        old, new = (weights(augmented, transformation).double() for weights in weigh)
        correlations.append(rank_correlation(old, new))
        # A saturated policy may give a weight of 0.
        differences.append(float(((new - old).abs() / old.clamp(min=torch.finfo(torch.float32).tiny)).max()))
    return WeightEffect(min(correlations), max(differences), DRAWS * len(images))


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two vectors [n]; ties are ranked by position."""
    ranks = torch.stack([vector.argsort(stable=True).argsort() for vector in (a, b)]).double()
    centred = ranks - ranks.mean(1, keepdim=True)
    return float((centred[0] * centred[1]).sum() / centred.square().sum(1).prod().sqrt())


def synthetic_images(contract: InputContract) -> Tensor:
    """Cloud-like noise with the data set's mean and deviation: uint8 [IMAGES, C, size, size], the same each time."""
    size, draws = contract.size, generator(0, "slim", "images", 0)
    clouds = torch.zeros(IMAGES, contract.channels, size, size)
    side = 2
    while side <= size:
        # Natural images have more energy in coarse structures than in fine ones.
        coarse = torch.randn(IMAGES, contract.channels, side, side, generator=draws) / side
        clouds += F.interpolate(coarse, size=(size, size), mode="bilinear")
        side *= 2
    clouds -= clouds.mean((0, 2, 3), keepdim=True)
    clouds /= clouds.std((0, 2, 3), keepdim=True).clamp(min=1e-6)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (contract.mean, contract.std))
    return ((clouds * std + mean) * 255).clamp(0, 255).round().to(torch.uint8)
