"""A policy at work, whatever kind of file it comes from: what each kind of file answers."""

import pytest
import torch

from mapolicy.bundle.dataset_level import DatasetPolicy, Step
from mapolicy.bundle.limits import Limits
from mapolicy.bundle.manifest_base import PolicyFile
from mapolicy.distributed import ALONE
from mapolicy.policy.augmentations import SampledSubPolicies, SampledTransformations, ScheduledSteps
from mapolicy.policy.policy_bundle import PolicyBundle
from mapolicy.policy.protocol import DatasetLevelPolicy, Policy, policy_of, searched_bundle

CPU = torch.device("cpu")
STEP = Step(operation="Rotate", probability=1.0, value=10.0, mirrored=True)
LISTED = DatasetPolicy.make(
    versions={"mapolicy": "0"}, source="a test", sub_policies=((STEP,),), lost=(), licence="", note=""
)


def test_a_searched_bundle(bundle: PolicyBundle, make_train_config) -> None:
    policy = policy_of(bundle)
    assert policy.searched is searched_bundle(bundle) is bundle
    assert bundle.has_network
    assert bundle.needed_limits() == bundle.limits
    assert set(bundle.about()) == {"proxy", "epochs", "search"}
    uniform = torch.full_like(bundle.probabilities, 1 / 196)
    for name, drawn, weighs in (
        ("learned", bundle.probabilities, True),
        ("sampler-only", bundle.probabilities, False),
        ("weights-only", uniform, True),
    ):
        config = make_train_config(policy=name)
        augmentation = policy.augmentation(config)
        assert isinstance(augmentation, SampledTransformations)
        assert torch.allclose(augmentation.sampler.probabilities.float(), drawn)
        assert (policy.weights(config, CPU, ALONE) is not None) == weighs


def test_a_dataset_level_policy(make_train_config) -> None:
    policy, config = policy_of(LISTED), make_train_config()
    assert isinstance(policy, DatasetLevelPolicy)
    assert policy.searched is searched_bundle(LISTED) is searched_bundle(None) is None
    assert isinstance(policy.augmentation(config), SampledSubPolicies)
    assert policy.weights(config, CPU, ALONE) is None
    assert (LISTED.has_network, LISTED.data_settings(), LISTED.about()) == (False, {}, {"source": "a test"})


def test_a_schedule_is_a_dataset_level_policy_too(make_train_config) -> None:
    stage = {"until": 1.0, "counts": [0.5, 0.5], "steps": [STEP.model_dump()]}
    parts = LISTED.manifest.model_dump(exclude={"digest", "format", "kind"}) | {"sub_policies": [], "stages": [stage]}
    assert isinstance(policy_of(DatasetPolicy.make(**parts)).augmentation(make_train_config()), ScheduledSteps)


def test_a_large_list_can_be_loaded_again_under_the_limits_that_it_needs(tmp_path) -> None:
    assert LISTED.needed_limits() == Limits(header_bytes=len(LISTED.to_bytes()))
    LISTED.save(tmp_path / "a")
    assert DatasetPolicy.load(tmp_path / "a", LISTED.digest, LISTED.needed_limits()).digest == LISTED.digest


def test_another_kind_of_file_is_registered_by_its_class() -> None:
    class Other(DatasetPolicy):
        pass

    class OtherPolicy(DatasetLevelPolicy):
        pass

    assert type(policy_of(Other(LISTED.manifest))) is DatasetLevelPolicy
    policy_of.register(Other, OtherPolicy)
    assert type(policy_of(Other(LISTED.manifest))) is OtherPolicy
    assert issubclass(OtherPolicy, Policy)
    assert issubclass(Other, PolicyFile)
    with pytest.raises(TypeError, match="there is no policy for a str"):
        policy_of("a file")  # type: ignore[arg-type]
