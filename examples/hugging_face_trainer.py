"""A bundle's policy in Hugging Face's Trainer: a base class augments the images and weights the loss in training.

pip install 'mapolicy[integrations]'
mapolicy demo                                # writes artifacts/digits.safetensors
python examples/hugging_face_trainer.py      # or: python examples/hugging_face_trainer.py BUNDLE
"""

import tempfile

from digits import BATCH_SIZE, BUNDLE, CHANNELS, CLASSES, EPOCHS, datasets
from torch.utils.data import Dataset
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from mapolicy.integrations.transformers import PolicyTrainerMixin  # policy


class Named(Dataset):
    """Images and labels under the names that models of transformers expect; pixels stay uint8."""

    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        image, label = self.pairs[index]
        return {"pixel_values": image, "labels": label}


class PolicyTrainer(PolicyTrainerMixin, Trainer):  # policy
    """Trainer, with augmented images and a weighted loss."""


def main():
    """Train and evaluate."""
    train, test = (Named(each) for each in datasets())
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
            policy=BUNDLE,  # policy
        )
        trainer.train()
        print(f"top-1 {trainer.evaluate()['eval_top1']:.1f} %")


if __name__ == "__main__":
    main()
