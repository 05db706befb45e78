"""A bundle's policy in Lightning: a callback augments the batches, and Lightning's checkpoints keep its step.

pip install 'mapolicy[integrations]'
mapolicy demo                            # writes artifacts/digits.safetensors
python examples/lightning_module.py      # or: python examples/lightning_module.py BUNDLE
"""

import lightning
import torch
import torch.nn.functional as F
from digits import BUNDLE, EPOCHS, LEARNING_RATE, loaders, percent_correct, small_network

from mapolicy.integrations.lightning import PolicyCallback  # policy


class Classifier(lightning.LightningModule):
    """A small network and its training. Nothing in it knows of the policy."""

    def __init__(self):
        super().__init__()
        self.network = small_network()

    def training_step(self, batch, batch_idx):
        """Cross entropy; the policy has made soft targets of the labels."""
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def test_step(self, batch, batch_idx):
        """Accuracy on images without augmentation."""
        images, labels = batch
        self.log("top1", percent_correct(self.network(images), labels), on_epoch=True)

    def configure_optimizers(self):
        """SGD with a cosine schedule over epochs."""
        optimizer = torch.optim.SGD(self.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)]


if __name__ == "__main__":
    lightning.seed_everything(0, verbose=False)
    train_loader, test_loader = loaders()
    policy = PolicyCallback(BUNDLE)  # policy
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        callbacks=[policy],  # policy
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        devices=1,
    )
    module = Classifier()
    trainer.fit(module, train_loader)
    (metrics,) = trainer.test(module, test_loader, verbose=False)
    print(f"top-1 {metrics['top1']:.1f} %")
