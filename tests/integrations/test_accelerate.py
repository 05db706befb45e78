"""Accelerate: a rank and a device for each process, and the step in `save_state`'s folder."""

import pytest
import torch
import torch.nn.functional as F

from tests.integrations.conftest import LEARNING_RATE

accelerate = pytest.importorskip("accelerate", reason="the extra integrations")
from mapolicy.integrations.accelerate import prepare_policy  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def built(network, bundle, **options):
    accelerator = accelerate.Accelerator(cpu=True)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9)
    model, optimizer = accelerator.prepare(model, optimizer)
    return accelerator, model, optimizer, prepare_policy(accelerator, bundle, **options)


def epoch(accelerator, model, optimizer, policy, batches) -> None:
    for images, labels in batches:
        inputs, targets = policy(images, labels)
        optimizer.zero_grad()
        accelerator.backward(F.cross_entropy(model(inputs), targets))
        optimizer.step()


def test_resumed_from_accelerates_checkpoint_as_if_nothing_had_happened(
    bundle, bundle_file, batches, network, by_hand, tmp_path
) -> None:
    parts = built(network, bundle_file)
    epoch(*parts, batches)
    parts[0].save_state(str(tmp_path))

    parts = built(network, bundle)
    parts[0].load_state(str(tmp_path))
    assert parts[3].step == len(batches)
    epoch(*parts, batches)
    weight = parts[0].unwrap_model(parts[1])[1].weight.detach()
    torch.testing.assert_close(weight, by_hand(2), atol=1e-6, rtol=1e-5)

    parts = built(network, bundle, seed=1)
    with pytest.raises(ValueError, match="the state's seed is 0, this policy's 1"):
        parts[0].load_state(str(tmp_path))


def test_each_process_draws_differently(bundle, batches) -> None:
    class Elsewhere:
        process_index, device = 1, torch.device("cpu")

        def register_for_checkpointing(self, policy) -> None:
            self.kept = policy

    accelerator = Elsewhere()
    policy = prepare_policy(accelerator, bundle)
    assert accelerator.kept is policy
    first = prepare_policy(accelerate.Accelerator(cpu=True), bundle)
    assert not torch.equal(policy(*batches[0])[0], first(*batches[0])[0])
