"""A bundle's policy with Accelerate: one rank for each process, and the policy's step in Accelerate's checkpoints.

pip install 'mapolicy[integrations]'
mapolicy demo                           # writes artifacts/digits.safetensors
python examples/accelerate_loop.py      # or: accelerate launch examples/accelerate_loop.py BUNDLE
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from digits import BUNDLE, EPOCHS, LEARNING_RATE, loaders, percent_correct, small_network

from mapolicy.integrations.accelerate import prepare_policy  # policy

torch.manual_seed(0)
accelerator = Accelerator()
train_loader, test_loader = loaders()
network = small_network()
optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(train_loader))
network, optimizer, train_loader, test_loader, schedule = accelerator.prepare(
    network, optimizer, train_loader, test_loader, schedule
)
policy = prepare_policy(accelerator, BUNDLE)  # policy

for _ in range(EPOCHS):
    network.train()
    for images, labels in train_loader:
        inputs, targets = policy(images, labels)  # policy
        loss = F.cross_entropy(network(inputs), targets)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()

network.eval()
outcomes = []
for images, labels in test_loader:
    with torch.no_grad():
        logits = network(policy.normalise(images))  # in place of a normalisation in the loader
    outcomes.append(accelerator.gather_for_metrics((logits, labels)))
accelerator.print(f"top-1 {percent_correct(*map(torch.cat, zip(*outcomes, strict=True))):.1f} %")
