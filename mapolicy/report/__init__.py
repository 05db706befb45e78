"""Pages, tables and charts of what a policy learned and how a run went."""

from typing import TYPE_CHECKING

from ..runtime.lazy import lazy_names

if TYPE_CHECKING:
    from .explain import Explanation as Explanation
    from .gather import Report as Report
    from .sample_weights import SampleWeights as SampleWeights

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Explanation": "explain",
        "Report": "gather",
        "SampleWeights": "sample_weights",
    },
)
