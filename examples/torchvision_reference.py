"""A bundle's policy in the style of torchvision's classification reference: `train_one_epoch`, bfloat16, checkpoints.

The reference calls MixUp in the loader's collate function. The policy is called after the loader, because it counts its
calls and each worker would count separately. The reference's transform ends with a normalisation, which is left out
here, so that images arrive as uint8. Label smoothing moves from the criterion to the policy.

mapolicy demo                                 # writes artifacts/digits.safetensors
python examples/torchvision_reference.py      # or: python examples/torchvision_reference.py BUNDLE
"""

import torch
from digits import BUNDLE, EPOCHS, LEARNING_RATE, loaders, percent_correct, small_network
from torch import nn

from mapolicy import PolicyAugment, PolicyBundle  # policy


def train_one_epoch(model, criterion, optimizer, data_loader, device, policy):
    """Train for one epoch under autocast."""
    model.train()
    for image, target in data_loader:
        image, target = image.to(device), target.to(device)
        image, target = policy(image, target)  # policy
        with torch.autocast(device.type, torch.bfloat16):
            loss = criterion(model(image), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.inference_mode()
def evaluate(model, data_loader, device, policy):
    """Top-1 accuracy, per cent."""
    model.eval()
    outcomes = []
    for image, target in data_loader:
        image = policy.normalise(image.to(device))  # policy
        outcomes.append((model(image).cpu(), target))
    return percent_correct(*map(torch.cat, zip(*outcomes, strict=True)))


def main():
    """Train; every checkpoint includes the policy's step."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data_loader, data_loader_test = loaders()
    model = small_network().to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
    lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    policy = PolicyAugment(PolicyBundle.load(BUNDLE), label_smoothing=0.1, device=device)  # policy
    for _ in range(EPOCHS):
        train_one_epoch(model, criterion, optimizer, data_loader, device, policy)
        lr_scheduler.step()
        checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        # On --resume: policy.load_state_dict(checkpoint["policy"])
        checkpoint["policy"] = policy.state_dict()  # policy
    print(f"top-1 {evaluate(model, data_loader_test, device, policy):.1f} %")


if __name__ == "__main__":
    main()
