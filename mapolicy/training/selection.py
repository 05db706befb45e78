"""Which weights of a run are measured and saved: the last ones, their moving average, or the best epoch's."""

import copy
from collections.abc import Mapping
from typing import Any

from timm.utils import ModelEmaV3
from torch import nn

from ..config import RunConfig


class Selection:
    """The moving average of a network's weights, and its best epoch. Without either, the last weights are the result.

    The average is timm's `ModelEmaV3` with its warm-up: the decay grows with the iterations up to `ema_decay`. It
    averages running statistics too. The best epoch has the highest meta-validation accuracy, the first of equal ones.

    Args:
        average: of the network; None measures the network itself.
        best: a copy that takes the weights of the best epoch; None keeps the last.
        patience: epochs without a better one after which training ends; 0 never ends it.

    Attributes:
        best_epoch: number of the best epoch so far, from 1; 0 before there is one.
    """

    def __init__(self, average: ModelEmaV3 | None = None, best: nn.Module | None = None, patience: int = 0) -> None:
        self._average, self._best, self._patience = average, best, patience
        self.best_epoch, self._top1 = 0, -1.0
        self._finished = False

    @classmethod
    def of(cls, config: RunConfig, network: nn.Module) -> "Selection":
        """What a configuration asks for."""
        average = ModelEmaV3(network, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
        best = copy.deepcopy(network).eval() if config.keeps_best else None
        return cls(average, best, config.early_stopping)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint holds of it."""
        found = {"average": self._average, "best": self._best}
        return {name: module for name, module in found.items() if module is not None}

    def measured(self, network: nn.Module) -> nn.Module:
        """The network whose accuracy counts: the average, if there is one, or the network."""
        return network if self._average is None or self._finished else self._average.module

    def after_iteration(self, network: nn.Module, iterations: int) -> None:
        """Average the network's weights in; `iterations` are done."""
        if self._average is not None:
            self._average.update(network, step=iterations)

    def after_epoch(self, network: nn.Module, epoch: int, top1: float) -> None:
        """Keep the weights of an epoch, numbered from 1, if its accuracy is the highest so far."""
        if self._best is not None and top1 > self._top1:
            self.best_epoch, self._top1 = epoch, top1
            self._best.load_state_dict(self.measured(network).state_dict())

    def ends(self, epochs: int) -> bool:
        """Whether training ends after so many epochs because none has been better for long."""
        return 0 < self._patience <= epochs - self.best_epoch

    def finish(self, network: nn.Module) -> None:
        """Give the network the weights that are measured and saved. The state of a run is no longer in it then."""
        chosen = self.measured(network) if self._best is None or not self.best_epoch else self._best
        if chosen is not network:
            network.load_state_dict(chosen.state_dict())
        self._finished = True

    def state(self) -> dict[str, Any]:
        """What a checkpoint records besides `modules`."""
        return {"best_epoch": self.best_epoch, "top1": self._top1}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` returned."""
        self.best_epoch, self._top1 = state["best_epoch"], state["top1"]
        self._finished = False

    def facts(self) -> dict[str, str]:
        """What is measured and saved, in words; nothing where it is the last weights."""
        what = [] if self._average is None else [f"moving average of the weights (decay {self._average.decay:g})"]
        if self._best is not None:
            what.append("best epoch on the meta-validation images")
        if self._patience:
            what.append(f"ends after {self._patience} epoch{'s' * (self._patience > 1)} without a better one")
        return {"measured and saved": "; ".join(what)} if what else {}
