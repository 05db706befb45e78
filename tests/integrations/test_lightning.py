"""Lightning: the callback changes batches in place, and Lightning's own checkpoints keep its step."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from mapolicy import PolicyAugment
from tests.integrations.conftest import LEARNING_RATE

lightning = pytest.importorskip("lightning", reason="the extra integrations")
from mapolicy.integrations.lightning import PolicyCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice


class Module(lightning.LightningModule):
    def __init__(self, network, keys=(0, 1)) -> None:
        super().__init__()
        self.network, self.keys, self.seen = network, keys, []

    def training_step(self, batch, batch_idx):
        images, targets = (batch[key] for key in self.keys)
        return F.cross_entropy(self.network(images), targets)

    def validation_step(self, batch, batch_idx):
        self.seen.append(batch[self.keys[0]])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), LEARNING_RATE, momentum=0.9)


def trainer(folder, callback, epochs: int, **options):
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return lightning.Trainer(
        default_root_dir=folder, max_epochs=epochs, callbacks=[callback], accelerator="cpu", **silent, **options
    )


def loader(batches):
    return DataLoader(batches, batch_size=None)


def test_resumed_from_lightnings_checkpoint_as_if_nothing_had_happened(
    bundle, bundle_file, batches, network, by_hand, tmp_path
) -> None:
    first = trainer(tmp_path, PolicyCallback(bundle_file), 1)
    first.fit(Module(network()), loader(batches))
    first.save_checkpoint(tmp_path / "first.ckpt")

    module, callback = Module(network()), PolicyCallback(bundle)
    trainer(tmp_path, callback, 2).fit(module, loader(batches), ckpt_path=tmp_path / "first.ckpt")
    assert callback.policy.step == 2 * len(batches)
    torch.testing.assert_close(module.network[1].weight.detach(), by_hand(2), atol=1e-6, rtol=1e-5)

    with pytest.raises(ValueError, match="the state's seed is 0, this policy's 1"):
        trainer(tmp_path, PolicyCallback(bundle, seed=1), 2).fit(
            Module(network()), loader(batches), ckpt_path=tmp_path / "first.ckpt"
        )


def test_evaluation_normalises_and_leaves_float_images(bundle, batches, network, tmp_path) -> None:
    module, policy, floats = Module(network()), PolicyAugment(bundle), [(batches[0][0].float(), batches[0][1])]
    run = trainer(tmp_path, PolicyCallback(bundle), 1)
    run.validate(module, loader(batches), verbose=False)
    run.validate(module, loader(floats), verbose=False)
    for seen, (images, _) in zip(module.seen, batches, strict=False):
        assert torch.equal(seen, policy.normalise(images))
    assert torch.equal(module.seen[-1], floats[0][0])


def test_batches_are_dictionaries_or_lists_and_each_rank_draws_differently(
    bundle, batches, network, by_hand, tmp_path
) -> None:
    named = [{"image": images, "label": labels} for images, labels in batches]
    module = Module(network(), ("image", "label"))
    callback = PolicyCallback(bundle, images="image", labels="label")
    trainer(tmp_path, callback, 1).fit(module, loader(named))
    torch.testing.assert_close(module.network[1].weight.detach(), by_hand(1), atol=1e-6, rtol=1e-5)

    run = trainer(tmp_path, callback, 1)
    with pytest.raises(TypeError, match=r"the batch is a tuple.*list or a dict"):
        PolicyCallback(bundle).on_train_batch_start(run, module, batches[0], 0)

    class Elsewhere:
        global_rank = 1

    other = PolicyCallback(bundle)
    other.setup(Elsewhere(), module, "fit")
    assert not torch.equal(other.policy(*batches[0])[0], PolicyAugment(bundle)(*batches[0])[0])
    assert torch.equal(other.policy(*batches[1])[0], stepped(PolicyAugment(bundle, rank=1), batches)[0])


def stepped(policy, batches):
    policy(*batches[0])
    return policy(*batches[1])


def test_half_precision_gets_half_inputs(bundle, batches, network, tmp_path) -> None:
    module = Module(network())
    trainer(tmp_path, PolicyCallback(bundle), 1, precision="bf16-true").fit(module, loader(batches))
    assert module.network[1].weight.dtype == torch.bfloat16
