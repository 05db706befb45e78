"""A bundle's policy in Hugging Face's Trainer: `compute_loss` augments and weights the samples in training.

pip install transformers accelerate
mapolicy demo                                # writes artifacts/digits.safetensors
python examples/hugging_face_trainer.py      # or: python examples/hugging_face_trainer.py BUNDLE
"""

import tempfile

import torch.nn.functional as F
from digits import BATCH_SIZE, CHANNELS, CLASSES, EPOCHS, datasets, load_bundle
from torch.utils.data import Dataset
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from mapolicy import PolicyAugment  # policy


class Named(Dataset):
    """Images and labels under the names that models of transformers expect; pixels stay uint8."""

    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        image, label = self.pairs[index]
        return {"pixel_values": image, "labels": label}


class PolicyTrainer(Trainer):  # policy
    """A Trainer with the policy's weighted loss; set `policy` before training."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # policy
        """Mean cross entropy, with the policy's soft targets in training."""
        images, targets = inputs["pixel_values"], inputs["labels"]  # policy
        if model.training:  # policy
            self.policy.step = self.state.global_step  # policy: resumes exactly where a step is one batch
            images, targets = self.policy(images, targets)  # policy
        else:  # policy
            images = self.policy.normalise(images)  # policy
        outputs = model(pixel_values=images)  # policy
        loss = F.cross_entropy(outputs.logits, targets)  # policy
        return (loss, outputs) if return_outputs else loss  # policy


def main():
    """Train and evaluate."""
    bundle = load_bundle()  # policy
    train, test = (Named(each) for each in datasets(bundle))
    config = ResNetConfig(
        num_channels=CHANNELS,
        embedding_size=16,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        layer_type="basic",
        num_labels=CLASSES,
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH_SIZE,
            per_device_eval_batch_size=BATCH_SIZE,
            learning_rate=1e-2,
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = PolicyTrainer(
            ResNetForImageClassification(config),
            arguments,
            train_dataset=train,
            eval_dataset=test,
            compute_metrics=lambda outcome: {"top1": 100 * (outcome[0].argmax(1) == outcome[1]).mean()},
        )
        trainer.policy = PolicyAugment(bundle, rank=arguments.process_index)  # policy
        trainer.train()
        print(f"top-1 {trainer.evaluate()['eval_top1']:.1f} %")


if __name__ == "__main__":
    main()
