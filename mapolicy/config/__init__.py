"""The settings of a search or a training: `SearchConfig` and `TrainConfig`, and what they are made of."""

from .run_config import RunConfig as RunConfig
from .search_config import SearchConfig as SearchConfig
from .train_config import TrainConfig as TrainConfig
