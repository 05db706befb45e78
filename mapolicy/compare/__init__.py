"""Train networks with several policies and compare their test accuracies, with intervals."""

from typing import TYPE_CHECKING

from ..runtime.lazy import lazy_names

if TYPE_CHECKING:
    from .comparison import Comparison as Comparison
    from .comparison import compare_policies as compare_policies
    from .plot import chart as chart
    from .stats import summarise as summarise

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Comparison": "comparison",
        "chart": "plot",
        "compare_policies": "comparison",
        "summarise": "stats",
    },
)
