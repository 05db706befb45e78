"""Shared by the examples: scikit-learn's 8 x 8 digits as ordinary DataLoaders, and a small network."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mapolicy import PolicyBundle, TrainConfig, recipes
from mapolicy.data.loader import ResidentSplit
from mapolicy.data.splits import load_splits

CLASSES, CHANNELS, EPOCHS, BATCH_SIZE, LEARNING_RATE = 10, 1, 6, 64, 0.1
# Named on the command line; without a name, what `mapolicy demo` writes.
BUNDLE = Path(sys.argv[1] if len(sys.argv) > 1 else "artifacts/digits.safetensors")


def datasets() -> tuple[TensorDataset, TensorDataset]:
    """Training and test set: images uint8 [N, 1, 8, 8] and labels. The search has not seen the test images."""
    bundle = PolicyBundle.load(BUNDLE)
    _, settings = recipes.load("train-digits")
    config = TrainConfig.from_mapping(settings | bundle.data_settings())
    splits = load_splits(config, torch.device("cpu"), "train", bundle.meta_validation)
    sets = []
    for split in (splits.train, splits.test()):
        assert isinstance(split, ResidentSplit)
        sets.append(TensorDataset(split.images[split.rows], split.labels))
    return sets[0], sets[1]


def loaders() -> tuple[DataLoader, DataLoader]:
    """Loaders of the training set, shuffled, and of the test set."""
    train, test = datasets()
    return DataLoader(train, BATCH_SIZE, shuffle=True, drop_last=True), DataLoader(test, BATCH_SIZE)


def small_network() -> nn.Sequential:
    """Three convolutions and a linear layer, which learn digits in seconds."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((CHANNELS, 16, 1), (16, 32, 2), (32, 32, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES))


def percent_correct(logits: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy, per cent."""
    return 100 * float((logits.argmax(1) == labels).float().mean())
