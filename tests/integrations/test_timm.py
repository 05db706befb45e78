"""timm: the policy in place of MixUp, and its step in the checkpoints that timm itself writes and reads."""

import pytest
import torch
from timm.loss import SoftTargetCrossEntropy
from timm.models import resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.utils import CheckpointSaver

from mapolicy.integrations.timm import PolicyMixup
from tests.integrations.conftest import LEARNING_RATE


def built(network, bundle, name="momentum", **options):
    model = network()
    optimizer = create_optimizer_v2(model, name, lr=LEARNING_RATE, weight_decay=0.0)
    return model, optimizer, PolicyMixup(bundle, optimizer, **options)


def epoch(model, optimizer, mixup_fn, batches) -> None:
    loss_fn = SoftTargetCrossEntropy()
    for batch in batches:
        inputs, target = mixup_fn(*batch)
        optimizer.zero_grad()
        loss_fn(model(inputs), target).backward()
        optimizer.step()


def test_resumed_from_timms_checkpoint_as_if_nothing_had_happened(
    bundle, bundle_file, batches, network, by_hand, tmp_path
) -> None:
    model, optimizer, mixup_fn = built(network, bundle_file, label_smoothing=0.1)
    epoch(model, optimizer, mixup_fn, batches)
    CheckpointSaver(model, optimizer, checkpoint_dir=str(tmp_path)).save_checkpoint(0)

    model, optimizer, mixup_fn = built(network, bundle, label_smoothing=0.1)
    assert resume_checkpoint(model, str(tmp_path / "last.pth.tar"), optimizer, log_info=False) == 1
    assert mixup_fn.step == len(batches)
    epoch(model, optimizer, mixup_fn, batches)
    torch.testing.assert_close(model[1].weight.detach(), by_hand(2, label_smoothing=0.1), atol=1e-6, rtol=1e-5)

    model, optimizer, _ = built(network, bundle, seed=1)
    with pytest.raises(ValueError, match="the state's seed is 0, this policy's 1"):
        resume_checkpoint(model, str(tmp_path / "last.pth.tar"), optimizer, log_info=False)


def test_after_mixup_off_epoch_images_are_normalised_alone(bundle, batches) -> None:
    mixup_fn = PolicyMixup(bundle, label_smoothing=0.2)
    mixup_fn.mixup_enabled = False  # as timm's train.py does
    images, labels = batches[0]
    inputs, targets = mixup_fn(images, labels)
    assert torch.equal(inputs, mixup_fn.normalise(images))
    logits = torch.randn(16, 10, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(SoftTargetCrossEntropy()(logits, targets), expected)
    assert mixup_fn.step == 0


def test_an_optimizer_in_another_keeps_the_step_or_is_refused(bundle, batches, network) -> None:
    model, optimizer, mixup_fn = built(network, bundle, "lookahead_momentum")
    epoch(model, optimizer, mixup_fn, batches)
    _, again, resumed = built(network, bundle, "lookahead_momentum")
    again.load_state_dict(optimizer.state_dict())
    assert resumed.step == len(batches)

    class Forgetful(torch.optim.SGD):
        def state_dict(self):
            return {"state": {}, "param_groups": []}

    with pytest.raises(ValueError, match="the state_dict of Forgetful runs no hooks"):
        PolicyMixup(bundle, Forgetful(model.parameters(), lr=0.1))
