"""A trained network on a labelled data set."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.decode import CorruptImageError, bombs_as_errors
from ..data.image_dataset import ImageSet, Source
from ..data.loader import threaded_map
from ..data.splits import SKETCH_DIGITS, SKETCHED_IMAGES, content_digest
from ..data.stratify import per_class, shuffled_classes, take
from ..errors import InputError
from ..runtime.sanitize import printable
from .measures import Evaluation, Outcomes, confusion
from .network import TrainedNetwork
from .network_config import Dataset
from .read_ahead import read_ahead

OWN_TEST, HELD_OUT, ALL = "its test split", "the test images that training held out", "all of them"
LEARNED = "all of them, those included that the network learned from"


@dataclass(frozen=True)
class LabelledImages:
    """Images to evaluate a network on.

    Attributes:
        images: an image set.
        indices: int64 [n]: those of its images that are used.
        labels: int64 [n], in the order of the network's classes.
        what: which images of the data set they are.
        learned: how many of them the network learned from, by their content; estimated where it learned from more than
            `SKETCHED_IMAGES`.
    """

    images: ImageSet
    indices: Tensor
    labels: Tensor
    what: str
    learned: int = 0


@dataclass(frozen=True)
class NetworkOnImages:
    """A network's evaluation.

    Attributes:
        evaluation: its figures.
        labels, predicted: int64 [n].
        what: which images of the data set were used.
        learned: how many of the chosen images the network learned from; estimated as in `LabelledImages`.
        corrupt: images that cannot be decoded, each as `name: reason`.
        dark: number of images with more than 8 bits a pixel and small values: a network of 8-bit images sees them dark.
    """

    evaluation: Evaluation
    labels: Tensor
    predicted: Tensor
    what: str
    learned: int
    corrupt: tuple[str, ...]
    dark: int = 0

    def confusion(self) -> list[list[int]]:
        """How many images of each class (row) are predicted as each class (column)."""
        counts: list[list[int]] = confusion(self.labels, self.predicted, len(self.evaluation.classes)).tolist()
        return counts


def images_to_evaluate(source: Source, network: TrainedNetwork, every_image: bool = False) -> LabelledImages:
    """The images of a data set that a network is evaluated on.

    That is the data set's own test split. Of a data set without one: the test images that the network's training held
    out, if it is the same data set; otherwise all images. The contents of the images decide whether it is the same.

    Args:
        source: the data set; its classes may be in another order than the network's, or fewer.
        network: knows how its training split its data set.
        every_image: all images outside the data set's own test split, images that the network learned from included.

    Raises:
        InputError: a class that the network does not know, or no images.
    """
    known = {name: label for label, name in enumerate(network.classes)}
    for name in source.classes:
        if name not in known:
            remedy = "name a data set with the network's classes"
            raise InputError(source.where, f"class {printable(name)!r} is not one of the network's", remedy)
    trained_on = network.config.mapolicy.dataset
    own_test = not every_image and source.open_test is not None
    images = source.open_test() if own_test and source.open_test is not None else source.pool
    indices, what = torch.arange(len(images)), OWN_TEST if own_test else ALL
    if not len(indices):
        raise InputError(source.where, "its test split has no images", "add some")
    found = _digests(images) if trained_on.learned else []
    if not own_test and not every_image and (held_out := _held_out(source, trained_on, found)) is not None:
        indices, what = held_out, HELD_OUT
    learned = _count_learned([found[index] for index in indices.tolist()], trained_on) if found else 0
    same_name = (trained_on.name, trained_on.images) == (source.name, len(source.pool))
    if what == ALL and (learned or (not trained_on.learned and same_name)):
        what = LEARNED
    in_network = torch.tensor([known[name] for name in source.classes])
    return LabelledImages(images, indices, in_network[images.labels[indices]], what, learned)


def _digests(images: ImageSet) -> list[str]:
    """Of each image's content, as many digits as a sketch has; empty for a file that cannot be read."""

    def digest(index: int) -> str:
        try:
            return content_digest(images, index).hex()[:SKETCH_DIGITS]
        except CorruptImageError:
            return ""

    with bombs_as_errors():
        return threaded_map(range(len(images)), digest)


def _sketched(trained_on: Dataset) -> frozenset[str]:
    text = trained_on.learned or ""
    return frozenset(text[at : at + SKETCH_DIGITS] for at in range(0, len(text), SKETCH_DIGITS))


def _count_learned(found: list[str], trained_on: Dataset) -> int:
    """How many images with these digests the network learned from."""
    learned = _sketched(trained_on)
    # A full sketch has only the smallest digests, so only images below its largest can be compared with it.
    comparable = [each for each in found if len(learned) < SKETCHED_IMAGES or each <= max(learned)]
    same = sum(each in learned for each in comparable)
    return round(len(found) * same / len(comparable)) if comparable else 0


def _held_out(source: Source, trained_on: Dataset, found: list[str]) -> Tensor | None:
    """The test images that `stratify.draw_splits` drew for the network's training; None in another data set.

    It is the same data set if the images that the network learned from are all there and none of them is drawn. A file
    of an older version does not say which these are: then name and number of images decide.
    """
    labels, classes, learned = source.pool.labels, source.classes, _sketched(trained_on)
    if not trained_on.test_per_class or trained_on.images != len(labels):
        return None
    if not learned <= set(found) if learned else trained_on.name != source.name:
        return None
    sizes = torch.bincount(labels, minlength=len(classes)).tolist()
    counts = per_class(trained_on.test_per_class, sizes)
    test, rest = take(shuffled_classes(labels, classes, trained_on.split_seed), counts, classes, "test_per_class")
    return test if not learned or learned <= {found[index] for index in torch.cat(rest).tolist()} else None


def evaluate_network(
    network: TrainedNetwork,
    chosen: LabelledImages,
    batch_size: int = 64,
    skip_corrupt: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> NetworkOnImages:
    """Evaluate a network on images of any size.

    Args:
        network: as `load_network` returned it.
        chosen: the images, from `images_to_evaluate`.
        batch_size: images in one forward.
        skip_corrupt: leave out images that cannot be decoded instead of stopping.
        on_progress: called after each batch with the number of images that are done.

    Raises:
        InputError: an image cannot be decoded, or none can.
    """
    parts, used, corrupt, dark = [], [], [], []

    def read(position: int) -> Tensor | CorruptImageError:
        index = int(chosen.indices[position])
        try:
            image = chosen.images.read(index)
            dark.append(network.reading.looks_dark(image))
            return torch.tensor(network.reading.pixels(image, chosen.images.name(index)))
        except CorruptImageError as problem:
            return problem

    with bombs_as_errors(), torch.inference_mode():
        for positions, found in read_ahead(range(len(chosen.indices)), read, batch_size):
            for each in found:
                if isinstance(each, CorruptImageError):
                    if not skip_corrupt:
                        raise each
                    corrupt.append(f"{each.what}: {each.why}")
            fine = [at for at, each in zip(positions, found, strict=True) if isinstance(each, Tensor)]
            if fine:
                batch = torch.stack([each for each in found if isinstance(each, Tensor)]).to(network.mean.device)
                parts.append(Outcomes.of(network(batch), chosen.labels[fine].to(batch.device)))
                used += fine
            on_progress(positions[-1] + 1)
    if not used:
        raise InputError("data set", f"none of its {len(chosen.indices)} images can be decoded", "check the files")
    outcomes, labels = Outcomes.joined(parts), chosen.labels[used]
    figures = Evaluation.of(labels, outcomes, network.classes)
    return NetworkOnImages(figures, labels, outcomes.predicted, chosen.what, chosen.learned, tuple(corrupt), sum(dark))
