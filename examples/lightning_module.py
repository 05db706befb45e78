"""A bundle's policy in a LightningModule: one rank for each process, and the policy's step in Lightning's checkpoints.

pip install lightning
mapolicy demo                            # writes artifacts/digits.safetensors
python examples/lightning_module.py      # or: python examples/lightning_module.py BUNDLE
"""

import lightning
import torch
import torch.nn.functional as F
from digits import EPOCHS, LEARNING_RATE, load_bundle, loaders, percent_correct, small_network

from mapolicy import PolicyAugment  # policy


class Classifier(lightning.LightningModule):
    """A small network and its training."""

    def __init__(self, bundle):
        super().__init__()
        self.network = small_network()
        self.bundle = bundle  # policy

    def setup(self, stage):  # policy
        """Build the policy here, where Lightning knows the rank of the process."""
        if stage == "fit":  # policy
            self.policy = PolicyAugment(self.bundle, rank=self.global_rank)  # policy

    def training_step(self, batch, batch_idx):
        """Cross entropy with the policy's soft targets."""
        inputs, targets = self.policy(*batch)  # policy
        return F.cross_entropy(self.network(inputs), targets)

    def test_step(self, batch, batch_idx):
        """Accuracy on images without augmentation."""
        images, labels = batch
        inputs = self.policy.normalise(images)  # policy
        self.log("top1", percent_correct(self.network(inputs), labels), on_epoch=True)

    def on_save_checkpoint(self, checkpoint):  # policy
        """Save the policy's step."""
        checkpoint["policy"] = self.policy.state_dict()  # policy

    def on_load_checkpoint(self, checkpoint):  # policy
        """Restore the policy's step."""
        self.policy.load_state_dict(checkpoint["policy"])  # policy

    def configure_optimizers(self):
        """SGD with a cosine schedule over epochs."""
        optimizer = torch.optim.SGD(self.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)]


if __name__ == "__main__":
    lightning.seed_everything(0, verbose=False)
    bundle = load_bundle()  # policy
    train_loader, test_loader = loaders(bundle)
    trainer = lightning.Trainer(
        max_epochs=EPOCHS, logger=False, enable_checkpointing=False, enable_progress_bar=False, devices=1
    )
    module = Classifier(bundle)
    trainer.fit(module, train_loader)
    (metrics,) = trainer.test(module, test_loader, verbose=False)
    print(f"top-1 {metrics['top1']:.1f} %")
