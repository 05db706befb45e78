"""The extractor that a bundle names: its width, its classifier, and what only a forward tells."""

import pytest
import timm
import torch

from mapolicy.bundle.manifest import EXTRACTOR_CALL, Extractor
from mapolicy.errors import InputError
from mapolicy.policy.extractor import check_extractor, classifier_tensors
from mapolicy.policy.network import PolicyNetwork
from mapolicy.policy.policy_bundle import PolicyBundle
from tests.helpers.bundle_factory import CLASSES, HELD_OUT, draft
from tests.policy.test_policy_bundle import ARCH, make_bundle, make_proxy


def test_no_extractor_of_another_width() -> None:
    part = Extractor(arch=ARCH, model_args={}, feature_width=7, dtype="float32", call=EXTRACTOR_CALL)
    with pytest.raises(InputError, match=r"feature_width is 7, test_resnet has \d+"):
        check_extractor(part, CLASSES, 1, "recipe")


def rebuilt(bundle: PolicyBundle, **changes) -> PolicyBundle:
    """The bundle with tensors changed by `name=function`; in names, `__` stands for the dot."""
    tensors = {name: tensor.clone() for name, tensor in bundle.tensors.items()}
    for name, change in changes.items():
        change(tensors[name.replace("__", ".")])
    return PolicyBundle.from_bytes(PolicyBundle(bundle.manifest, tensors).to_bytes())


def test_an_extractor_whose_features_are_not_finite_is_refused_when_it_is_built() -> None:
    """Finite weights whose products are not: only a forward tells."""
    bundle = make_bundle("wrn10_1")
    bundle.build_extractor(torch.device("cpu"))
    for value in (3e38, 1e30):
        broken = rebuilt(bundle, extractor__bn__weight=lambda tensor, value=value: tensor.fill_(value))
        with pytest.raises(InputError, match=r"wrn10_1 gives plain images a feature of .*, expected at most 1e\+12"):
            broken.build_extractor(torch.device("cpu"))


def test_an_extractor_that_does_not_take_the_bundles_images_is_refused_when_it_is_built() -> None:
    proxy = make_proxy("test_vit")
    settings = {"proxy": "test_vit"}
    part = {**draft().extractor.model_dump(), "arch": "test_vit", "feature_width": 64}
    bundle = PolicyBundle.assemble(
        draft(extractor=part, search={"settings": settings}),
        policy=PolicyNetwork(64).state_dict(),
        alpha=torch.tensor(0.01),
        probabilities=torch.full((14, 14), 1 / 196),
        means=torch.full((14, 14), 0.5),
        extractor=proxy.state_dict(),
        meta_validation=torch.tensor(HELD_OUT),
    )
    with pytest.raises(InputError, match=r"test_vit does not take images of input.size \(1, 8, 8\) \("):
        bundle.build_extractor(torch.device("cpu"))


def test_the_classifier_is_what_timm_calls_so() -> None:
    assert classifier_tensors(make_proxy("wrn10_1")) == {"extractor.fc.weight", "extractor.fc.bias"}
    with torch.device("meta"):
        distilled = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=CLASSES)
    names = {"extractor.head.weight", "extractor.head.bias", "extractor.head_dist.weight", "extractor.head_dist.bias"}
    assert classifier_tensors(distilled) == names
    assert classifier_tensors(torch.nn.Linear(2, 2)) == frozenset()
