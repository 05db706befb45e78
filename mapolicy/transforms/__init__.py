"""Image operations on uint8 batches, their ranges, and the transformations that a policy draws."""

from typing import TYPE_CHECKING

from ..runtime.lazy import lazy_names

if TYPE_CHECKING:
    from .auto_augment import RandAugment as RandAugment
    from .auto_augment import TrivialAugmentWide as TrivialAugmentWide
    from .functional import OPERATIONS as OPERATIONS
    from .functional import apply_operation as apply_operation
    from .space import SPACES as SPACES
    from .space import OperationSpace as OperationSpace
    from .transformation import Transformation as Transformation

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "OPERATIONS": "functional",
        "OperationSpace": "space",
        "RandAugment": "auto_augment",
        "SPACES": "space",
        "Transformation": "transformation",
        "TrivialAugmentWide": "auto_augment",
        "apply_operation": "functional",
    },
)
