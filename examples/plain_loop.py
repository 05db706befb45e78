"""A bundle's policy in a plain PyTorch training loop. Only the lines marked `# policy` were added.

mapolicy demo                       # writes artifacts/digits.safetensors
python examples/plain_loop.py       # or: python examples/plain_loop.py BUNDLE
"""

import torch
import torch.nn.functional as F
from digits import BUNDLE, EPOCHS, LEARNING_RATE, loaders, percent_correct, small_network

from mapolicy import PolicyAugment, PolicyBundle  # policy

torch.manual_seed(0)
train_loader, test_loader = loaders()
network = small_network()
optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(train_loader))
policy = PolicyAugment(PolicyBundle.load(BUNDLE))  # policy

for _ in range(EPOCHS):
    network.train()
    for images, labels in train_loader:
        inputs, targets = policy(images, labels)  # policy
        loss = F.cross_entropy(network(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

network.eval()
with torch.no_grad():
    outcomes = [(network(policy.normalise(images)), labels) for images, labels in test_loader]  # policy
print(f"top-1 {percent_correct(*map(torch.cat, zip(*outcomes, strict=True))):.1f} %")
