"""A run's configuration: frozen, flat, complete in one place. Recipes are TOML files of exactly these fields.

A setting is looked up in this order, the later one wins: recipe, bundle (train only: what the data must look like),
command-line flags and `--set`. What results is saved with the run and, less the fields that only say where it ran,
in the bundle.
"""

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import tomli_w

from .errors import InputError, MapolicyError, UsageError
from .runtime.files import read_regular_file
from .transforms.space import DEFAULT_SPACE, SPACES

BASE_AUGMENTATIONS = ("none", "flip_crop", "random_resized_crop")
FILLS = ("mean", "black")
# What a search brings, and its halves: p_jk with equal weights, and the weights of uniformly drawn transformations.
SEARCHED_POLICIES = ("learned", "sampler-only", "weights-only")
ZERO_COST_POLICIES = ("none", "uniform", "trivialaugment", "randaugment", "autoaugment")
POLICIES = (*SEARCHED_POLICIES, *ZERO_COST_POLICIES)
MODES = ("frozen", "finetune")
ALPHAS = ("scalar", "per-layer")
POLICY_INPUTS = ("both", "features", "embedding")
EXTRACTORS = ("shared", "own")
PRECISIONS = ("float32", "bfloat16", "float16")
BATCH_NORMS = ("local", "synchronised")
COMPILE = ("auto", "never", "always")
SCHEDULES = ("cosine", "theorem1")
ON_DIVERGENCE = ("stop", "rollback")

SHORT_NAMES: Mapping[str, str] = {"pyramidnet": "pyramidnet272_a200"}  # that networks may be asked for by

LARGEST_RECIPE = 2**20  # bytes
LARGEST = 1e300  # a whole number beyond it is no float

# What `--fast` stands for: nothing is approximated, theta and alpha are learned by every sixth batch.
FAST: Mapping[str, Any] = {"meta_every": 6}

# Where and how a run executes; the result does not depend on them (threads and device: up to float rounding).
MACHINE_FIELDS = frozenset(
    {
        "data_dir",
        "download",
        "workers",
        "memory_limit_gib",
        "device",
        "threads",
        "checkpoint_minutes",
        "on_divergence",
        "patience_seconds",
    }
)


def setting(
    description: str,
    default: Any = MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A field with its meaning and its range (both ends included)."""
    metadata = {"description": description, "low": low, "high": high, "choices": choices}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What search and train have in common."""

    stage: ClassVar[str]
    network_field: ClassVar[str]

    model_args: dict[str, Any] = setting("extra arguments of the network's constructor", {})
    dataset: str = setting("digits, cifar10, cifar100, omniglot, imagenet, folder:PATH or a timm data set name")
    data_dir: str = setting("folder that data sets are read from and downloaded to", "data")
    download: bool = setting("fetch a data set that is not in data_dir, where it can be fetched", True)
    image_size: int = setting("side of the square network input, pixels", low=1, high=4096)
    train_per_class: float = setting(
        "training images of each class: a count, a fraction below 1, or 0 for all that are left", low=0
    )
    validation_per_class: float = setting("meta-validation images of each class: a count, or a fraction below 1", low=0)
    test_per_class: float = setting(
        "test images of each class, where the data set has no test split of its own: a count, or a fraction below 1",
        low=0,
    )
    split_seed: int = setting("seed of the splits; runs to be compared share it", 0, low=0, high=2**31)
    skip_corrupt: bool = setting("leave out images that cannot be decoded instead of stopping", False)
    workers: int = setting("processes that decode images of data sets too large for memory", 4, low=0, high=256)
    memory_limit_gib: float = setting("largest data set kept in memory as one uint8 tensor, GiB", 4.0, low=0)

    base_augmentation: str = setting("what comes before the policy's transformation", choices=BASE_AUGMENTATIONS)
    cutout: int = setting("side of the square that Cutout hides, pixels; 0 is none", low=0)
    operation_space: str = setting("name of the operations' ranges", DEFAULT_SPACE, choices=tuple(SPACES))
    fill: str = setting("colour of pixels that an operation moves in from outside", "mean", choices=FILLS)
    copies: int = setting("transformations of every image in a batch (the paper's MT)", 1, low=1, high=64)

    epochs: int = setting("passes over the training split", low=1, high=1_000_000)
    batch_size: int = setting("images in a training batch of all processes, before copies", low=1, high=1_000_000)
    optimizer: str = setting("a timm optimizer; `sgd` is Nesterov, `momentum` is plain", "sgd")
    learning_rate: float = setting("task network's learning rate, after warm-up", low=0)
    momentum: float = setting("task network's momentum", 0.9, low=0, high=1)
    weight_decay: float = setting("task network's weight decay", low=0)
    decay_all: bool = setting("decay biases and normalisation layers too", True)
    clip_norm: float = setting("largest global gradient norm; 0 does not clip", low=0)
    warmup_epochs: int = setting("epochs of linear warm-up before the cosine schedule", 0, low=0)

    validation_batch_size: int = setting("meta-validation images of one hypergradient", low=1, high=1_000_000)
    policy_learning_rate: float = setting("AdamW's learning rate for theta (beta of Eq. 3)", low=0)
    policy_memory: float = setting(
        "share of the run over which what theta has learned fades to 1/e, towards equal weights; 0 forgets nothing",
        0.0,
        low=0,
    )
    alpha_learning_rate: float = setting("AdamW's learning rate for log alpha; 0 keeps alpha fixed", low=0)
    epsilon: float = setting("the sampler's share of uniform exploration (Eq. 5)", 0.1, low=0, high=1)
    sampler_temperature: float = setting(
        "p_jk goes as the policy's mean output to the power of 1 / temperature (Eq. 5: 1); below 1 it is bolder",
        1.0,
        low=0.01,
        high=100,
    )
    sampler_every: float = setting("epochs between refreshes of p_jk (s of Eq. 5)", low=0)
    sampler_history: float = setting("epochs whose policy outputs p_jk averages (r of Eq. 5)", low=0)
    meta_every: int = setting("iterations from one hypergradient to the next; 1 is the paper's", 1, low=1, high=100)
    meta_fraction: float = setting(
        "share of the training and of the meta-validation batch that a hypergradient is taken on; 1 is the paper's",
        1.0,
        low=1e-6,
        high=1,
    )
    simultaneous: bool = setting(
        "w and theta move at once: the weighted step has the old theta's weights and needs no backward of its own",
        False,
    )
    reject_below_mean: bool = setting(
        "leave out samples of weight below the batch's mean and weigh the others equally (ablation)", False
    )
    low_memory: bool = setting("compute a forward again instead of keeping its graph", False)
    accumulate: int = setting(
        "parts that each process computes its batch in, one after the other; the batch stays batch_size", 1, low=1
    )
    precision: str = setting(
        "that the task network's products are computed in while it trains; all else is float32",
        "float32",
        choices=PRECISIONS,
    )
    batch_norm: str = setting(
        "statistics of batch normalisation: of each process's part alone, or of the batch over all processes",
        "local",
        choices=BATCH_NORMS,
    )
    compile: str = setting(
        "compile the bilevel step: where a long run repays it, never or always", "auto", choices=COMPILE
    )

    seed: int = setting("seed of everything but the splits", 0, low=0, high=2**31)
    device: str = setting("auto, cpu or cuda", "auto", choices=("auto", "cpu", "cuda"))
    threads: int = setting("CPU threads of torch; 0 takes torch's own number", 0, low=0, high=1024)
    patience_seconds: float = setting(
        "seconds without a sign of life after which another process of the run is given up", 600.0, low=1
    )
    checkpoint_minutes: float = setting("minutes between checkpoints; one is also written at the end", 10.0, low=0)
    on_divergence: str = setting(
        "after a loss that is not finite: stop, or go back to the last checkpoint and on at half the learning rates",
        "stop",
        choices=ON_DIVERGENCE,
    )

    def __post_init__(self) -> None:
        for spec in fields(self):
            object.__setattr__(self, spec.name, _checked(spec, getattr(self, spec.name)))
        object.__setattr__(self, self.network_field, SHORT_NAMES.get(self.network, self.network))
        if self.warmup_epochs >= self.epochs:
            raise UsageError(
                "warmup_epochs",
                f"{self.warmup_epochs} epochs of warm-up leave nothing of {self.epochs} epochs",
                "set warmup_epochs below epochs",
            )
        if self.precision == "float16":
            why = "each of its gradients needs a scale, which is found by updates that fail"
            raise UsageError("precision float16", why, "use bfloat16, which needs none, or float32")
        if self.accumulate > 1 and self.batch_norm == "synchronised":
            why = "the statistics of all parts are not known while the first is computed"
            raise UsageError("batch_norm synchronised", why, "set accumulate=1 or batch_norm=local")
        if self.simultaneous and (self.meta_fraction < 1 or self.reject_below_mean):
            other = "reject_below_mean" if self.reject_below_mean else "meta_fraction"
            why = "the virtual step's gradient serves the weighted step, which needs all samples with their weights"
            raise UsageError("simultaneous", why, f"leave {other} out")

    @property
    def network(self) -> str:
        """Name of the network that this stage trains."""
        return str(getattr(self, self.network_field))

    @property
    def trains_on_validation(self) -> bool:
        """Whether the meta-validation images are among the training images."""
        return False

    @property
    def constant_rates(self) -> bool:
        """Whether the three rates are Theorem 1's."""
        return False

    @classmethod
    def from_mapping(
        cls, values: Mapping[str, Any], source: str = "configuration", error: type[MapolicyError] = InputError
    ) -> Self:
        """A configuration from flat key-value pairs.

        Args:
            values: settings by field name.
            source: what the settings come from, for the error's text.
            error: raised for an unknown key, a missing one or a value out of range.
        """
        known = [spec.name for spec in fields(cls)]
        for key in values:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                remedy = f"did you mean {close[0]}?" if close else f"{cls.stage} has no such setting"
                raise error(source, f"unknown setting {key!r}", remedy)
        required = (spec for spec in fields(cls) if spec.default is MISSING and spec.default_factory is MISSING)
        for spec in required:
            if spec.name not in values:
                raise error(source, f"setting {spec.name!r} is missing", f"it means: {spec.metadata['description']}")
        try:
            return cls(**values)
        except UsageError as problem:
            raise error(source, f"{problem.what}: {problem.why}", problem.remedy) from None

    def to_mapping(self) -> dict[str, Any]:
        """Every setting by field name."""
        return asdict(self)

    def to_toml(self) -> str:
        """The configuration as a recipe that reproduces this run."""
        return tomli_w.dumps(self.to_mapping())

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The settings that have a default: what a run did before they existed."""
        return {field.name: field.default for field in fields(cls) if field.default is not MISSING}

    def portable(self) -> dict[str, Any]:
        """The settings that a bundle records: all but those that say where the run took place."""
        return {key: value for key, value in self.to_mapping().items() if key not in MACHINE_FIELDS}

    def with_changes(self, **changes: Any) -> Self:
        """A copy with some settings changed."""
        return replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class SearchConfig(RunConfig):
    """Settings of `search_policy`."""

    stage: ClassVar[str] = "search"
    network_field: ClassVar[str] = "proxy"

    proxy: str = setting("timm name of the network that searches")
    alpha: str = setting("one learnable inner rate, or one for every parameter tensor", "scalar", choices=ALPHAS)
    alpha_initial: float = setting("alpha of the first virtual step (Eq. 2)", low=1e-8, high=1e6)
    policy_input: str = setting("what the policy network sees", "both", choices=POLICY_INPUTS)
    extractor: str = setting(
        "the proxy gives the policy's features, or a second network of its kind that is trained with theta (ablation)",
        "shared",
        choices=EXTRACTORS,
    )
    schedule: str = setting(
        "cosine, or Theorem 1's constant rates: alpha_initial is its c, policy_learning_rate c', learning_rate c''",
        "cosine",
        choices=SCHEDULES,
    )
    extractor_dtype: str = setting(
        "what the bundle stores the proxy's weights in", "float32", choices=("float32", "float16", "bfloat16")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "theorem1" and (self.warmup_epochs or self.alpha_learning_rate):
            why = "its rates are constant, alpha's among them"
            raise UsageError("schedule theorem1", why, "set warmup_epochs=0 and alpha_learning_rate=0")
        if self.extractor == "own" and self.policy_input == "embedding":
            raise UsageError("extractor own", "the policy sees no features", "use another policy_input, or shared")

    @property
    def constant_rates(self) -> bool:
        """Whether the three rates are Theorem 1's."""
        return self.schedule == "theorem1"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Settings of `train_network`."""

    stage: ClassVar[str] = "train"
    network_field: ClassVar[str] = "arch"

    arch: str = setting("timm name of the network to train")
    policy: str = setting("learned (from a bundle), a half of it, or one of the baselines", "learned", choices=POLICIES)
    mode: str = setting("keep the bundle's policy frozen, or go on learning it", "frozen", choices=MODES)
    include_validation: bool = setting("train on the meta-validation images too", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "finetune" and self.policy != "learned":
            raise UsageError(
                "mode finetune", f"policy {self.policy!r} has nothing to learn", "use --mode frozen or --policy learned"
            )
        if self.mode == "finetune" and self.include_validation:
            raise UsageError(
                "include_validation",
                "the meta-validation images guide the fine-tuning, so they cannot be trained on",
                "use --mode frozen or leave --include-validation out",
            )

    @property
    def trains_on_validation(self) -> bool:
        """Whether the meta-validation images are among the training images."""
        return self.include_validation


def read_toml(path: Path) -> dict[str, Any]:
    """The flat settings of a TOML file.

    Raises:
        InputError: the file is missing or not TOML.
    """
    content = read_regular_file(path, LARGEST_RECIPE)
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as problem:  # bad TOML, bad UTF-8, a number too long, tables too deep
        raise InputError(str(path), f"not TOML ({problem})", "mend the file") from None


def _checked(spec: Field[Any], value: Any) -> Any:
    """The value, of the field's own type and within its range."""
    kinds: dict[Any, tuple[type, ...]] = {float: (int, float), int: (int,), str: (str,), bool: (bool,)}
    wanted = kinds.get(spec.type, (dict,))
    low, high, choices = (spec.metadata[key] for key in ("low", "high", "choices"))
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        raise UsageError(spec.name, f"{value!r} is not {_KIND_NAMES[wanted[-1]]}", f"it means: {_meaning(spec)}")
    if isinstance(value, dict) and not _is_toml(value):
        raise UsageError(spec.name, f"{value!r} cannot be written as TOML", "give numbers, texts, lists and tables")
    if choices is not None and value not in choices:
        raise UsageError(spec.name, f"{value!r} is not one of {', '.join(choices)}")
    if spec.type in (int, float):
        number = cast(float, value)
        if (
            abs(number) > LARGEST
            or not math.isfinite(number)
            or (low is not None and number < low)
            or (high is not None and number > high)
        ):
            span = f"at least {low}" if high is None else f"between {low} and {high}"
            text = "a number this large" if isinstance(number, int) and abs(number) > LARGEST else str(number)
            raise UsageError(spec.name, f"{text} is not a finite number {span}", f"it means: {_meaning(spec)}")
        return float(number) if spec.type is float else number
    return value


def _is_toml(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_toml(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_toml, value))
    return isinstance(value, str | bool | int | float)


def _meaning(spec: Field[Any]) -> str:
    return str(spec.metadata["description"])


_KIND_NAMES = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", dict: "a table"}
