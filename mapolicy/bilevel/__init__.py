"""One bilevel iteration: virtual step, hypergradient, weighted step."""

from typing import TYPE_CHECKING

from ..runtime.lazy import lazy_names

if TYPE_CHECKING:
    from .bilevel_step import BilevelStep as BilevelStep
    from .build_step import make_step as make_step
    from .hypergradients import hypergradient as hypergradient
    from .inner_rate import InnerRate as InnerRate
    from .options import StepOptions as StepOptions

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "BilevelStep": "bilevel_step",
        "InnerRate": "inner_rate",
        "StepOptions": "options",
        "hypergradient": "hypergradients",
        "make_step": "build_step",
    },
)
