"""Data sets by name, their splits, and batches of uint8 images."""

from typing import TYPE_CHECKING

from ..runtime.lazy import lazy_names

if TYPE_CHECKING:
    from .batch_sampler import training_plan as training_plan
    from .batch_sampler import validation_plan as validation_plan
    from .dataset_factory import open_source as open_source
    from .image_dataset import ImageSet as ImageSet
    from .splits import DataSplits as DataSplits
    from .splits import load_splits as load_splits

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DataSplits": "splits",
        "ImageSet": "image_dataset",
        "load_splits": "splits",
        "open_source": "dataset_factory",
        "training_plan": "batch_sampler",
        "validation_plan": "batch_sampler",
    },
)
