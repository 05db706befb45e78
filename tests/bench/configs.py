"""Small configurations for the benchmarks."""

from mapolicy import SearchConfig, TrainConfig, recipes


def search_config(**changes) -> SearchConfig:
    _, settings = recipes.find("search", "cifar100", "wrn10_1")
    small = {"proxy": "wrn10_1", "image_size": 8, "batch_size": 6, "validation_batch_size": 5, "threads": 1}
    return SearchConfig.from_mapping(settings | small | {"device": "cpu"} | changes)


def train_config(**changes) -> TrainConfig:
    _, settings = recipes.find("train", "cifar100", "wrn10_1")
    small = {"arch": "wrn10_1", "image_size": 8, "batch_size": 6, "threads": 1, "device": "cpu", "cutout": 4}
    return TrainConfig.from_mapping(settings | small | changes)
