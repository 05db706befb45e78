"""Hugging Face's Trainer: the policy's loss in training, normalised images elsewhere, the step in its checkpoints."""

import json

import pytest
import torch
from torch import nn

from mapolicy import PolicyAugment
from tests.integrations.conftest import LEARNING_RATE

transformers = pytest.importorskip("transformers", reason="the extra integrations")
pytest.importorskip("accelerate", reason="the extra integrations")
from mapolicy.integrations.transformers import PolicyTrainerMixin  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


class PolicyTrainer(PolicyTrainerMixin, transformers.Trainer):
    pass


class Model(nn.Module):
    """As models of transformers are: named inputs, an object with logits."""

    def __init__(self, network) -> None:
        super().__init__()
        self.network, self.seen, self.config = network, [], transformers.PretrainedConfig()

    def forward(self, pixel_values, labels=None, **kwargs):
        assert labels is None
        self.seen.append(pixel_values.detach())
        return transformers.utils.ModelOutput(logits=self.network(pixel_values))


def samples(batches) -> list[dict]:
    return [
        {"pixel_values": image, "labels": label}
        for images, labels in batches
        for image, label in zip(images, labels, strict=True)
    ]


def built(network, bundle, batches, folder, epochs: int, policy_options=None, **arguments) -> PolicyTrainer:
    model = Model(network())
    settings = transformers.TrainingArguments(
        str(folder),
        num_train_epochs=epochs,
        max_grad_norm=0.0,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **{"save_strategy": "epoch", "per_device_train_batch_size": 16, **arguments},
    )
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    class InOrder(PolicyTrainer):
        def _get_train_sampler(self, *given):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    return InOrder(
        model,
        settings,
        train_dataset=samples(batches),
        eval_dataset=samples(batches),
        optimizers=(optimizer, schedule),
        policy=bundle,
        policy_options=policy_options,
    )


def weight(trainer) -> torch.Tensor:
    return trainer.model.network[1].weight.detach()


def test_resumed_from_trainers_checkpoint_as_if_nothing_had_happened(
    bundle, bundle_file, batches, network, by_hand, tmp_path
) -> None:
    built(network, bundle_file, batches, tmp_path, 1, label_smoothing_factor=0.1).train()
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    state = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]
    assert state["mapolicy.PolicyTrainerMixin"]["attributes"]["step"] == len(batches)

    for restores in (False, True):  # Trainer's own way to restore callbacks leaves it alone
        trainer = built(
            network,
            bundle,
            batches,
            tmp_path,
            2,
            label_smoothing_factor=0.1,
            save_strategy="no",
            restore_callback_states_from_checkpoint=restores,
        )
        trainer.train(resume_from_checkpoint=str(checkpoint))
        assert trainer.policy.step == 2 * len(batches)
        torch.testing.assert_close(weight(trainer), by_hand(2, label_smoothing=0.1), atol=1e-6, rtol=1e-5)

    other = built(network, bundle, batches, tmp_path, 2, policy_options={"seed": 1}, save_strategy="no")
    with pytest.raises(ValueError, match="the state's seed is 0, this policy's 1"):
        other.train(resume_from_checkpoint=str(checkpoint))


def test_accumulated_gradients_are_the_mean_over_micro_batches(bundle, batches, network, tmp_path) -> None:
    """The loss of each is divided by their number."""
    trainer = built(
        network, bundle, batches, tmp_path, 1, max_steps=1, gradient_accumulation_steps=3, save_strategy="no"
    )
    trainer.train()
    model, policy = network(), PolicyAugment(bundle)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    for batch in batches:
        inputs, targets = policy(*batch)
        (nn.functional.cross_entropy(model(inputs), targets) / 3).backward()
    optimizer.step()
    torch.testing.assert_close(weight(trainer), model[1].weight.detach(), atol=1e-6, rtol=1e-5)


def test_evaluation_and_prediction_normalise_and_draw_nothing(bundle, batches, network, tmp_path) -> None:
    trainer = built(network, bundle, batches, tmp_path, 1, per_device_eval_batch_size=16)
    images = batches[0][0]
    expected = trainer.policy.normalise(images)
    pixels, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    loss = nn.functional.cross_entropy(network()(trainer.policy.normalise(pixels)), labels)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(loss), rel=1e-5)
    assert torch.equal(trainer.model.seen[0], expected)
    unlabelled = [{"pixel_values": image} for image in images]
    assert torch.tensor(trainer.predict(unlabelled).predictions).shape == (16, 10)
    assert torch.equal(trainer.model.seen[-1], expected)
    normalised = [{"pixel_values": image} for image in expected]
    trainer.predict(normalised)
    assert torch.equal(trainer.model.seen[-1], expected)
    assert trainer.policy.step == 0


def test_each_process_draws_differently(bundle, batches, network, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(transformers.TrainingArguments, "process_index", property(lambda arguments: 1))
    trainer = built(network, bundle, batches, tmp_path, 1)
    assert torch.equal(trainer.policy(*batches[0])[0], PolicyAugment(bundle, rank=1)(*batches[0])[0])
