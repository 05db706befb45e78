"""A bundle's policy in place of timm's MixUp: `input, target = mixup_fn(input, target)`, then SoftTargetCrossEntropy.

In timm's own train.py the loader must return uint8 images: `create_loader(..., use_prefetcher=False)` with a transform
from `create_transform(..., normalize=False)`. Label smoothing moves from the loss to the policy.

mapolicy demo                     # writes artifacts/digits.safetensors
python examples/timm_loop.py      # or: python examples/timm_loop.py BUNDLE
"""

import timm
import torch
from digits import BUNDLE, CHANNELS, CLASSES, EPOCHS, LEARNING_RATE, loaders
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, accuracy

from mapolicy.integrations.timm import PolicyMixup  # policy

torch.manual_seed(0)
train_loader, test_loader = loaders()
model = timm.create_model("test_resnet", num_classes=CLASSES, in_chans=CHANNELS)
optimizer = create_optimizer_v2(model, opt="sgd", lr=LEARNING_RATE, weight_decay=5e-4, momentum=0.9)
scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=EPOCHS, step_on_epochs=True)
mixup_fn = PolicyMixup(BUNDLE, optimizer, label_smoothing=0.1)  # policy: its step is saved with the optimizer
train_loss_fn = SoftTargetCrossEntropy()

for epoch in range(epochs):
    model.train()
    for input, target in train_loader:
        input, target = mixup_fn(input, target)  # policy: as in timm's train.py
        loss = train_loss_fn(model(input), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scheduler.step(epoch + 1)

model.eval()
top1 = AverageMeter()
with torch.no_grad():
    for input, target in test_loader:
        input = mixup_fn.normalise(input)  # in place of a normalisation in the loader
        top1.update(accuracy(model(input), target)[0].item(), len(target))
print(f"top-1 {top1.avg:.1f} %")
