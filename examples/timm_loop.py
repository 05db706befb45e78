"""A bundle's policy in place of timm's MixUp: `input, target = mixup_fn(input, target)`, then SoftTargetCrossEntropy.

In timm's own train.py the loader must return uint8 images: `create_loader(..., use_prefetcher=False)` with a transform
from `create_transform(..., normalize=False)`. Label smoothing moves from the loss to the policy.

mapolicy demo                     # writes artifacts/digits.safetensors
python examples/timm_loop.py      # or: python examples/timm_loop.py BUNDLE
"""

import timm
import torch
from digits import CHANNELS, CLASSES, EPOCHS, LEARNING_RATE, load_bundle, loaders
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, accuracy

from mapolicy import PolicyAugment  # policy

torch.manual_seed(0)
bundle = load_bundle()  # policy
train_loader, test_loader = loaders(bundle)
model = timm.create_model("test_resnet", num_classes=CLASSES, in_chans=CHANNELS)
optimizer = create_optimizer_v2(model, opt="sgd", lr=LEARNING_RATE, weight_decay=5e-4, momentum=0.9)
scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=EPOCHS, step_on_epochs=True)
mixup_fn = PolicyAugment(bundle, label_smoothing=0.1)  # policy
train_loss_fn = SoftTargetCrossEntropy()

for epoch in range(epochs):
    model.train()
    for input, target in train_loader:
        input, target = mixup_fn(input, target)
        loss = train_loss_fn(model(input), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scheduler.step(epoch + 1)

model.eval()
top1 = AverageMeter()
with torch.no_grad():
    for input, target in test_loader:
        input = mixup_fn.normalise(input)  # policy
        top1.update(accuracy(model(input), target)[0].item(), len(target))
print(f"top-1 {top1.avg:.1f} %")
