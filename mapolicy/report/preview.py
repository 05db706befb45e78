"""Some images of a data set under a policy, before anything is trained: `mapolicy preview`, `mapolicy.preview`.

The picture shows the policy's operations alone. Flips, crops and Cutout of the base augmentation, which a training
adds, are left out, so that everything that is seen has its name below it.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..bundle.limits import Limits
from ..bundle.load import SearchedFile, open_bundle
from ..bundle.manifest_base import PolicyFile
from ..config import TrainConfig
from ..data import damaged
from ..data.dataset_factory import open_dataset
from ..data.decode import CorruptImageError, bombs_as_errors
from ..data.image_dataset import Source
from ..data.reading import ImageReading
from ..data.survey import choose_reading, survey
from ..errors import InputError, UsageError
from ..policy.augmentations import Augmentation, FollowsProgress, NamesOperations, build_augmentation
from ..policy.policy_bundle import PolicyBundle
from ..policy.protocol import policy_of, searched_bundle
from ..registries import SEARCHED_POLICIES
from ..runtime.random import generator
from ..runtime.sanitize import printable
from .figures import as_png, tile_figure

MOST_TILES = 400  # in one picture
LARGEST_SIDE = 96  # pixels, where neither a bundle nor the caller says otherwise
CHECKED = 1000  # images that are tried where some cannot be read

# A configuration needs these, and a preview does not.
UNUSED: dict[str, Any] = {
    **dict.fromkeys(("train_per_class", "validation_per_class", "test_per_class"), 0.1),
    **dict.fromkeys(("learning_rate", "weight_decay", "clip_norm"), 0.0),
    **dict.fromkeys(("policy_learning_rate", "alpha_learning_rate", "sampler_every", "sampler_history"), 0.0),
    **dict.fromkeys(("epochs", "batch_size", "validation_batch_size"), 1),
    "arch": "none",
    "base_augmentation": "none",
    "cutout": 0,
}


def preview(
    dataset: str | None = None,
    *,
    bundle: PolicyFile | str | Path | None = None,
    policy: str | None = None,
    images: int = 4,
    draws: int = 7,
    seed: int = 0,
    **settings: Any,
) -> Image.Image:
    """Draw images of a data set under a policy; a notebook shows the result.

        mapolicy.preview("folder:photos", policy="trivialaugment")
        mapolicy.preview("folder:photos", bundle="artifacts/photos.safetensors", draws=10).save("photos.png")

    Args:
        dataset: its name, as in `SearchConfig`; None takes the bundle's.
        bundle: a bundle, or its file or address.
        policy: a name of `--policy`; None takes the bundle's policy, or `uniform` without one.
        images: rows of the picture, of different classes where there are as many.
        draws: columns beside the image itself.
        seed: of images and draws.
        settings: fields of `TrainConfig`, such as data_dir, image_size, resize, operation_space or fill.

    Raises:
        UsageError, InputError, EnvironmentFault: the data set or the bundle cannot be used, or nothing was named.
    """
    file = _opened(bundle) if isinstance(bundle, str | Path) else bundle
    of_bundle = {} if file is None else dict(file.data_settings())
    if dataset is not None:
        of_bundle.pop("download", None)  # the caller named the data set
    named = dataset or of_bundle.get("dataset")
    if named is None:
        raise UsageError("preview", "no data set was named", "name one, or a searched bundle")
    choice = policy or ("uniform" if file is None else "learned")
    values = {**UNUSED, "image_size": LARGEST_SIDE, **of_bundle, **settings}
    values |= {"dataset": named, "policy": choice, "seed": seed}
    config = TrainConfig.from_mapping(values, "preview", UsageError)
    free_size = "image_size" not in {**of_bundle, **settings}
    return draw_preview(config, file, images, draws, free_size)


def draw_preview(
    config: TrainConfig,
    file: PolicyFile | None,
    images: int = 4,
    draws: int = 7,
    free_size: bool = False,
    on_note: Callable[[str], None] = lambda text: None,
) -> Image.Image:
    """Draw the picture of `preview` for a configuration that is already complete.

    Args:
        config: its data set, policy, operation space, fill, seed and the settings of reading images are used.
        file: the bundle, for a policy that needs one.
        images: rows.
        draws: columns beside the image itself.
        free_size: whether images smaller than config.image_size are shown at their own size.
        on_note: called with the images that were left out because they cannot be decoded.

    Raises:
        UsageError: as `preview`, or the picture is too large.
        InputError, EnvironmentFault: as `preview`.
    """
    for name, number in (("images", images), ("draws", draws)):
        if number < 1:
            raise UsageError(name, f"{number} is not at least 1")
    if images * (draws + 1) > MOST_TILES:
        raise UsageError("preview", f"a picture holds {MOST_TILES} images", "ask for fewer images or draws")
    config.check_bundle(file is not None, file is not None and not file.has_network)
    source = open_dataset(config)
    found, corrupt = some_images(source, images, config.seed)
    if corrupt:
        hint = "" if config.skip_corrupt else "; a run stops at such an image without --skip-corrupt"
        on_note(f"{damaged.note(corrupt)}{hint}")
    originals = _read(source, found, config, searched_bundle(file), free_size)
    augmented, names = _augmented(config, file, source.name, originals, draws)
    rows: list[tuple[str, Sequence[Any]]] = []
    for row, index in enumerate(found):
        own = range(row * draws, (row + 1) * draws)
        tiles = [(originals[row].numpy(), "as it is"), *((augmented[at].numpy(), names[at]) for at in own)]
        title = source.classes[int(source.pool.labels[index])]
        rows.append((f"{title}: {source.pool.name(index)}", tiles))
    return Image.open(io.BytesIO(as_png(tile_figure(rows))))


def png(picture: Image.Image) -> bytes:
    """The picture as the content of a PNG file."""
    content = io.BytesIO()
    picture.save(content, "png")
    return content.getvalue()


def some_images(source: Source, count: int, seed: int) -> tuple[list[int], list[str]]:
    """Positions of images in the pool that can be read, one of each class before any class has two.

    Returns:
        The positions; and the images that were met and cannot be decoded, as `name: why`.

    Raises:
        InputError: none of the images that were tried can be read.
    """
    labels = source.pool.labels
    waiting: dict[int, list[int]] = {}  # by class, in random order; the classes too
    for index in torch.randperm(len(labels), generator=generator(seed, "preview", "images", 0)).tolist():
        waiting.setdefault(int(labels[index]), []).append(index)
    chosen: list[int] = []
    faults: list[str] = []
    while any(waiting.values()) and len(faults) < CHECKED:
        for own in waiting.values():
            while own and len(chosen) < count and len(faults) < CHECKED:
                index = own.pop()
                try:
                    with bombs_as_errors():
                        source.pool.read(index)
                except CorruptImageError as problem:
                    faults.append(f"{printable(source.pool.place(index))}: {problem.why}")
                else:
                    chosen.append(index)
                    break
            if len(chosen) == count:
                return chosen, faults
    if not chosen:
        why = f"none of its images can be read, such as {faults[0]}" if faults else "has no images"
        raise InputError(source.where, why, "check the files")
    return chosen, faults


def _opened(reference: str | Path) -> PolicyFile:
    opened = open_bundle(reference, None, Limits())
    if not isinstance(opened.policy, SearchedFile):
        return opened.policy
    fetched, file = opened.fetched, opened.policy
    return PolicyBundle.from_raw(file.manifest, file.tensors, fetched.source, opened.limits, fetched.origin)


def _read(
    source: Source, found: Sequence[int], config: TrainConfig, bundle: PolicyBundle | None, free_size: bool
) -> Tensor:
    """The images as a network would see them, uint8 [n, C, S, S]."""
    indices = torch.tensor(found)
    with bombs_as_errors():
        if bundle is not None:
            values = bundle.manifest.image_reading() | {"image_size": config.image_size}
            reading = ImageReading.from_dict(values)
        else:
            headers = survey(source.pool, indices)
            if free_size:
                config = config.with_changes(image_size=max(1, min(config.image_size, headers.width, headers.height)))
            reading = choose_reading(config, headers, source.pool, indices)
        pixels = [reading.pixels(source.pool.read(index), source.pool.name(index)) for index in found]
    return torch.stack([torch.tensor(each) for each in pixels])


def _augmented(
    config: TrainConfig, file: PolicyFile | None, dataset: str, originals: Tensor, draws: int
) -> tuple[Tensor, list[str]]:
    """Each image under several draws, uint8 [n draws, C, S, S], and what was done to each."""
    learned = config.policy in SEARCHED_POLICIES
    assert file is not None or not learned
    augmentation: Augmentation = (
        policy_of(file).augmentation(config) if file is not None and learned else build_augmentation(config, dataset)
    )
    if isinstance(augmentation, FollowsProgress):
        augmentation = augmentation.at(None)
    batch = originals.repeat_interleave(draws, 0)
    colour = originals.double().mean((0, 2, 3)).round().to(torch.uint8)
    fill = colour if config.fill == "mean" else torch.zeros_like(colour)
    draw = generator(config.seed, "preview", "transformation", 0)
    if isinstance(augmentation, NamesOperations):
        return augmentation.named(batch, fill, draw)
    return augmentation(batch, fill, draw)[0], [config.policy] * len(batch)
