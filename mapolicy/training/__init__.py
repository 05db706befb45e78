"""The training loop: what is trained, one iteration, the run folder, checkpoints, progress."""

from typing import TYPE_CHECKING

from ..runtime.lazy import lazy_names

if TYPE_CHECKING:
    from .callbacks import Reporter as Reporter
    from .dry_run import Forecast as Forecast
    from .optim import make_optimizer as make_optimizer
    from .setup import TrainingSetup as TrainingSetup
    from .trainer import Trainer as Trainer

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Forecast": "dry_run",
        "Reporter": "callbacks",
        "Trainer": "trainer",
        "TrainingSetup": "setup",
        "make_optimizer": "optim",
    },
)
