"""Time from JPEG files to a batch of random resized crops: ours and torchvision's, without and with two operations.

Ours reads through the data loader of a run, in this process: the first epoch decodes, later ones find what it kept: the
photos themselves, or with `-small` small copies (`keep_images`). torchvision decodes each image for each crop
(`decode_jpeg`, then v2).
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

from ..config.choices import SMALL, WHOLE
from ..data.decode import CorruptImageError
from ..data.image_dataset import FileImages
from ..data.kept_images import Owner
from ..data.kept_loader import KeptLoader
from ..data.loader import Split, StreamedSplit
from ..data.reading import Cropper, ImageReading
from ..data.survey import survey
from ..errors import InputError
from ..runtime.words import plural
from ..transforms.auto_augment import RandAugment
from .interleaved import Candidate, Clock, Progress, Row, measure, silent
from .operations import on_one_thread, threads_set
from .report import Report
from .synthetic import synthetic_images

WIDTH, HEIGHT, QUALITY = 484, 387, 90  # of synthetic JPEGs
JPEG = frozenset({".jpg", ".jpeg"})
POLICY = "+randaugment"
TORCHVISION, THEIR_POLICY = "torchvision", f"torchvision{POLICY}"
FIRST, LATER, ANEW = "first-epoch", "later-epochs", "files-anew"
FIRST_SMALL, LATER_SMALL = f"{FIRST}-small", f"{LATER}-small"
ALONE = "-one-thread"
CPU = torch.device("cpu")

Work = Callable[[int], Tensor]


def measure_photos(
    folder: Path | None,
    sizes: Sequence[int],
    batch_size: int,
    rounds: int,
    threads: int,
    progress: Progress = silent,
) -> Report:
    """Time random resized crops of JPEG files.

    Args:
        folder: searched for JPEGs with all folders in it; it may be typed as `folder:PATH`; None measures synthetic
            ones.
        sizes: sides of the crops, pixels.
        batch_size: images of a batch; of a folder at most so many are used.
        rounds: timings of each candidate at each size.
        threads: threads of torch; with several, ours is also measured on one, and wall-clock time is measured.
        progress: called at the start of each round.

    Raises:
        InputError: the folder has no JPEGs, or torchvision cannot decode one.
    """
    clock = Clock.for_threads(CPU, threads)
    rows: list[Row] = []
    with threads_set(threads) as in_force, _photos(folder, batch_size) as (where, names), _without_advice():
        found = FileImages(where, names, [0] * len(names))
        facts = _facts(found)
        for side in sizes:
            case = _Case(found, side)
            title = f"{len(names)} photos, {side} x {side}"
            plain: dict[str, Work] = {
                TORCHVISION: case.torchvision,
                FIRST: case.first_epoch,
                LATER: case.later,
                FIRST_SMALL: case.first_epoch_small,
                LATER_SMALL: case.later_small,
                ANEW: case.anew,
            }
            policy: dict[str, Work] = {
                THEIR_POLICY: case.torchvision_policy,
                f"{LATER}{POLICY}": case.later_policy,
                f"{LATER_SMALL}{POLICY}": case.later_small_policy,
            }
            if in_force > 1:
                for group in (plain, policy):
                    ours = {name: work for name, work in group.items() if name.startswith(LATER)}
                    group |= {f"{name}{ALONE}": on_one_thread(work) for name, work in ours.items()}
            for group in (plain, policy):
                candidates = [Candidate(name, work) for name, work in group.items()]
                measured = measure(candidates, next(iter(group)), rounds, clock, progress, title)
                rows += [_per_image(row, side, len(names)) for row in measured]
    return Report(
        rows=rows,
        time=clock.meaning,
        settings={
            "source": "synthetic JPEGs" if folder is None else str(folder),
            **facts,
            "image_sizes": list(sizes),
            "batch_size": len(names),
            "rounds": rounds,
        },
        threads=in_force,
        device=CPU,
        packages=("torchvision", "pillow", "simplejpeg", "numpy"),
    )


class _Case:
    """One way after another to make a batch of the same photos."""

    def __init__(self, images: FileImages, side: int) -> None:
        self._images, self._side = images, side
        self._positions = torch.arange(len(images))
        self._crop = Cropper(ImageReading(3, side), True, 0, "train")
        # A run has read the headers before, to find out what its images are like.
        self._sizes = survey(images, self._positions).sizes
        self._small, self._whole = self._empty(SMALL), self._empty(WHOLE)
        for split in (self._small, self._whole):
            self._batch(split, 0)
        self._streamed = StreamedSplit(images, self._crop, self._positions, CPU, 0)
        self._theirs = v2.RandomResizedCrop(side, antialias=True)
        self._their_policy = v2.Compose([self._theirs, v2.RandAugment()])
        self._our_policy = RandAugment()

    def _empty(self, keep_images: str) -> Split:
        """A split of which nothing is kept yet."""
        keeper = KeptLoader(self._crop, CPU, 0, float("inf"), keep_images, "", Owner("bench", "bench"), "bench", "")
        (split,), _ = keeper.keep(self._images, [self._positions], self._sizes)
        return split

    def _batch(self, split: Split, call: int) -> Tensor:
        ((images, _),) = split.batches([(call, self._positions)], augment=True)
        return images

    def first_epoch(self, call: int) -> Tensor:
        return self._batch(self._empty(WHOLE), call)

    def first_epoch_small(self, call: int) -> Tensor:
        return self._batch(self._empty(SMALL), call)

    def later(self, call: int) -> Tensor:
        return self._batch(self._whole, call)

    def later_small(self, call: int) -> Tensor:
        return self._batch(self._small, call)

    def anew(self, call: int) -> Tensor:
        return self._batch(self._streamed, call)

    def later_policy(self, call: int) -> Tensor:
        return self._augmented(self.later(call), call)

    def later_small_policy(self, call: int) -> Tensor:
        return self._augmented(self.later_small(call), call)

    def _augmented(self, images: Tensor, call: int) -> Tensor:
        augmented: Tensor = self._our_policy(images, generator=torch.Generator().manual_seed(call))
        return augmented

    def torchvision(self, call: int) -> Tensor:
        return self._torchvision(self._theirs)

    def torchvision_policy(self, call: int) -> Tensor:
        return self._torchvision(self._their_policy)

    def _torchvision(self, transform: torch.nn.Module) -> Tensor:
        folder, names = self._images.folder, self._images.names
        try:
            with warnings.catch_warnings():
                # torchvision 0.29 says that torchcodec will have them.
                warnings.filterwarnings("ignore", message="The image decoding", category=DeprecationWarning)
                files = [read_file(f"{folder}/{name}") for name in names]
                return torch.stack([transform(decode_jpeg(file, ImageReadMode.RGB)) for file in files])
        except RuntimeError as problem:
            why = str(problem).splitlines()[0][:100]
            raise InputError(folder, f"torchvision cannot decode a JPEG: {why}", "leave it out") from None


@contextmanager
def _without_advice() -> Iterator[None]:
    """Inside the block a damaged photo is an error without a run's remedies."""
    try:
        yield
    except CorruptImageError as problem:
        raise InputError(problem.what, problem.why, "leave it out") from None


@contextmanager
def _photos(folder: Path | None, most: int) -> Iterator[tuple[Path, list[str]]]:
    """A folder and names of JPEGs in it; synthetic ones are removed afterwards."""
    if folder is not None:
        folder = Path(str(folder).removeprefix("folder:"))
        if not folder.is_dir():
            raise InputError(str(folder), "is no folder", "name a folder of photos")
        files = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in JPEG and path.is_file())
        names = [str(path.relative_to(folder)) for path in files]
        if len(names) < 2:
            raise InputError(
                str(folder), f"has {plural(len(names), 'JPEG')}, and two are needed", "name another folder"
            )
        yield folder, names[:: max(1, len(names) // most)][:most]
        return
    with tempfile.TemporaryDirectory() as temporary:
        names = []
        for number, image in enumerate(synthetic_images(most, WIDTH)[:, :, :HEIGHT]):
            names.append(f"{number:06}.jpg")
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(Path(temporary) / names[-1], quality=QUALITY)
        yield Path(temporary), names


def _facts(images: FileImages) -> dict[str, object]:
    """What is said of the photos: their number, median size in pixels and in bytes."""
    headers = [images.header(index) for index in range(len(images))]
    widths, heights, sizes = (
        sorted(values)[len(images) // 2]
        for values in (
            [header.width for header in headers],
            [header.height for header in headers],
            [images.size(index) for index in range(len(images))],
        )
    )
    return {"photos": len(images), "median_size": f"{widths} x {heights}", "median_bytes": sizes}


def _per_image(row: Row, side: int, photos: int) -> Row:
    facts = {"image_size": side, "us_per_image": 1000 * row.median_ms / photos, "times_as_fast": 1 / row.ratio}
    return replace(row, facts=facts | {"images_per_second": 1e6 / facts["us_per_image"]})
