"""Whether a run's data set and settings are those that a bundle was searched with."""

from collections.abc import Iterator, Set

from ..config import TrainConfig
from ..data.dataset_factory import open_dataset
from ..errors import InputError, UsageError
from ..runtime.sanitize import invalid_bundle, printable, quoted
from .policy_bundle import PolicyBundle

# A target may see the data at another size and under another base augmentation than the proxy did.
FREE_DATA_SETTINGS = frozenset(
    {"dataset", "download", "image_size", "base_augmentation", "cutout", "interpolation", "nested_classes"}
)


# Another data set is split as the user says, and its images may have other values.
SPLIT_SETTINGS = frozenset(
    {"train_per_class", "validation_per_class", "test_per_class", "split_seed", "value_range", "alpha_background"}
)


class DatasetComparison:
    """Compare a data set with the one that a bundle was searched on, each property as soon as it is known.

    Args:
        bundle: whose data set it should be.
        allow: record differences instead of raising an error.

    Attributes:
        differences: found so far; each has the data set for its subject.
    """

    def __init__(self, bundle: PolicyBundle, allow: bool) -> None:
        self._searched, self._allow = bundle.manifest.dataset, allow
        self.differences: tuple[str, ...] = ()

    def __call__(self, name: str, classes: tuple[str, ...], images: int, fingerprint: str | None) -> None:
        """Compare what is known; the fingerprint is None if it is not known yet.

        Raises:
            InputError: the first difference, unless differences are allowed.
        """
        self.differences = tuple(self._found(classes, images, fingerprint))
        if self.differences and not self._allow:
            remedy = "name the data set that the policy was searched on, or add --allow-dataset-mismatch"
            raise invalid_bundle(name, self.differences[0], remedy)

    def _found(self, classes: tuple[str, ...], images: int, fingerprint: str | None) -> Iterator[str]:
        searched = self._searched
        if len(classes) != len(searched.classes):
            yield f"has {len(classes)} classes, the bundle's data set {len(searched.classes)}"
        pairs = enumerate(zip(classes, searched.classes, strict=False))
        for position, (here, there) in ((n, pair) for n, pair in pairs if pair[0] != pair[1]):
            yield f"its class {position} is {quoted(here)}, the bundle's is {quoted(there)}"
            break
        if images != searched.counts.images:
            yield f"has {images} images to draw from, the bundle's data set {searched.counts.images}"
        if fingerprint not in (None, searched.fingerprint):
            yield (
                f"its images are not those of the bundle's {searched.name} "
                f"(fingerprint {fingerprint[:12]}, the bundle's {searched.fingerprint[:12]})"
            )


def check_before_download(config: TrainConfig, bundle: PolicyBundle) -> None:
    """Reject a data set of another name than the bundle's that would have to be downloaded to be compared.

    One that is there is compared by its classes and images, whatever its name (`DatasetComparison`).

    Raises:
        InputError: it is not there, and has another name.
    """
    searched = bundle.manifest.dataset.name
    if not config.download or config.dataset == searched or config.dataset.startswith("folder:"):
        return
    try:
        open_dataset(config.with_changes(download=False))
    except UsageError:  # one of timm's readers, of which nobody knows whether it would download
        return
    except InputError:
        why = f"is not the bundle's data set, which is {printable(searched)}, and would have to be downloaded"
        remedy = "name the data set that the policy was searched on"
        raise InputError(printable(config.dataset), why, remedy) from None


def check_settings(config: TrainConfig, bundle: PolicyBundle, free: Set[str]) -> None:
    """Check that the run splits and augments the data as the search did, except for the free settings.

    Raises:
        InputError: the setting that differs.
    """
    for name, value in bundle.data_settings().items():
        if name not in free and getattr(config, name) != value:
            why = f"is {getattr(config, name)!r}, the bundle was searched with {value!r}"
            raise InputError(f"setting {name}", why, "leave it out: it comes from the bundle")
