"""The policies that a network can be trained with here, and what each costs to find and has been reported to reach.

Costs are those of the search; reported figures are top-1 accuracies of WRN-28-10 on CIFAR-10 and CIFAR-100 in per cent.
They are the authors', from different trainings, and none of them was measured here (docs/paper.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ..registries import ZERO_COST_POLICIES
from . import pba
from .import_policy import AUTOAUGMENT

NO_SEARCH, UNKNOWN = "none", "not stated"


@dataclass(frozen=True)
class PolicySource:
    """A policy, and where it comes from.

    Attributes:
        name: what `--policy`, `mapolicy import` or `--set` takes.
        use: how it is used, in words.
        source: paper, or who wrote it.
        cost: of its search.
        reported: accuracy on CIFAR-10 / CIFAR-100; empty where the source has none.
    """

    name: str
    use: str
    source: str
    cost: str
    reported: str = ""

    @property
    def description(self) -> str:
        """Everything but the name, on one line."""
        reported = f"; reported {self.reported}" if self.reported else ""
        return f"{self.use}; {self.source}; search: {self.cost}{reported}"


_ZERO_COST = {
    "trivialaugment": ("Mueller and Hutter (ICCV 2021)", NO_SEARCH, "97.5 / 84.33"),
    "randaugment": ("Cubuk et al. (NeurIPS 2020); torchvision", "a grid of two numbers", ""),
    "autoaugment": ("Cubuk et al. (CVPR 2019); torchvision", "5,000 GPU hours", "97.4 / 82.9"),
}
_AUTOAUGMENT_COST = {"cifar10": "5,000 GPU hours", "imagenet": "15,000 GPU hours", "svhn": "1,000 GPU hours"}
_PBA_COST = {"pba-cifar10": "5 GPU hours", "pba-svhn": "1 GPU hour"}
_LISTED = "mapolicy import FILE: a list of sub-policies"
_LEARNED = (
    PolicySource(
        "mean-weight",
        "mapolicy search: sampler=mean-weight, weighting=policy",
        "MetaAugment: Zhou et al. (AAAI 2021)",
        "3 times a training",
        "97.76 / 83.79",
    ),
    PolicySource(
        "alignment",
        "mapolicy search: sampler=alignment, weighting=equal",
        "this project (docs/algorithm.md)",
        "a training with hypergradients",
    ),
    PolicySource(
        "adversarial",
        "mapolicy search: sampler=adversarial, weighting=equal, copies=8",
        "Adversarial AutoAugment: Zhang et al. (ICLR 2020), with a table for its LSTM",
        "copies times a training, without hypergradients",
        "98.10 / 84.51",
    ),
    PolicySource(
        "loss",
        "mapolicy search: policy_input=loss; weights while the policy is learned",
        "Meta-Weight-Net: Shu et al. (NeurIPS 2019)",
        "a training with hypergradients",
    ),
    PolicySource(
        "reweight",
        "mapolicy search: weighting=reweight; weights while the search runs",
        "Ren et al. (ICML 2018)",
        "a training with hypergradients",
    ),
)
_FILES = (
    PolicySource("fast-autoaugment", _LISTED, "Lim et al. (NeurIPS 2019)", "3.5 GPU hours", "97.3 / 82.7"),
    PolicySource(
        "dada", f"{_LISTED}, or genotype.py with --list", "Li et al. (ECCV 2020)", "0.1 GPU hours", "97.3 / 82.5"
    ),
    PolicySource("faster-autoaugment", "mapolicy import FILE: its state as JSON", "Hataya et al. (ECCV 2020)", UNKNOWN),
    PolicySource("autoalbument", "mapolicy import FILE: its JSON", "albumentations' Faster AutoAugment", UNKNOWN),
    PolicySource(
        "pba",
        "mapolicy import FILE: a schedule, or the log of a search with --epochs",
        "Population Based Augmentation: Ho et al. (ICML 2019)",
        UNKNOWN,
    ),
)


def policy_sources() -> Iterator[PolicySource]:
    """Every policy: those that need no bundle, those that can be imported, those that a search learns."""
    for entry in ZERO_COST_POLICIES.entries():
        source, cost, reported = _ZERO_COST.get(entry.name, (entry.description, NO_SEARCH, ""))
        yield PolicySource(entry.name, f"--policy {entry.name}", source, cost, reported)
    for dataset in AUTOAUGMENT:
        name, figures = f"autoaugment-{dataset}", "97.4 / 82.9" if dataset == "cifar10" else ""
        source = "AutoAugment: Cubuk et al. (CVPR 2019)"
        yield PolicySource(name, f"mapolicy import {name}", source, _AUTOAUGMENT_COST[dataset], figures)
    source = "RandAugment: Cubuk et al. (NeurIPS 2020)"
    yield PolicySource("randaugment:N,M", "mapolicy import randaugment:2,9", source, "a grid of two numbers")
    for name in pba.NAMES:
        figures = "97.4 / 83.3" if name == "pba-cifar10" else ""
        source = "Population Based Augmentation: Ho et al. (ICML 2019)"
        yield PolicySource(name, f"mapolicy import {name}", source, _PBA_COST[name], figures)
    yield from _FILES
    yield from _LEARNED
