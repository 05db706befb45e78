"""A run's configuration: frozen, flat, complete in one place. Recipes are TOML files of exactly these fields.

Settings come from the recipe, then from the bundle (train only: the data's format), then from command-line flags and
`--set`; a later source wins. The result is saved with the run. The bundle records it without `MACHINE_FIELDS`.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import tomli_w
from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic.functional_validators import ModelWrapValidatorHandler  # pydantic itself has it from 2.11 on

from ..errors import InputError, MapolicyError, UsageError
from ..registries import LOSSES, SAMPLERS
from ..transforms.space import DEFAULT_SPACE, SPACES
from .choices import (
    ALPHA_BACKGROUND,
    BALANCES,
    BASE_AUGMENTATIONS,
    BATCH_NORMS,
    COMPILE,
    DEVICES,
    FILLS,
    INTERPOLATIONS,
    KEPT_IMAGES,
    LAST_BATCHES,
    LATER,
    MEMORY,
    NORMALISATIONS,
    OFF,
    ON_DIVERGENCE,
    PRECISIONS,
    RESIZES,
    REWEIGHT,
    SAMPLER_INPUTS,
    SHORT_NAMES,
    VALUE_RANGE,
    WEIGHTINGS,
    result_settings,
)
from .errors import setting_error
from .types import Matching, OneOf, Table

Network = Annotated[str, AfterValidator(lambda name: SHORT_NAMES.get(name, name))]

# Text is not converted to a number, nor a number to true or false; a whole number is accepted as a float. Validators
# are built with the first configuration, so that `--help` does not wait for them.
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, validate_default=True, defer_build=True)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """Settings that search and train share."""

    stage: ClassVar[str]
    network_field: ClassVar[str]
    if TYPE_CHECKING:
        __pydantic_fields__: ClassVar[dict[str, FieldInfo]]

    model_args: Table = Field(default_factory=dict, description="extra arguments of the network's constructor")
    pretrained: bool = Field(
        False, description="start from timm's pretrained weights, from the Hugging Face cache or the network"
    )
    weights: str = Field(
        "", description="safetensors file that the network's weights start from, such as another run's"
    )
    normalisation: Annotated[str, OneOf(NORMALISATIONS)] = Field(
        "auto",
        description="mean and deviation of the input: of the training split (data), of the pretrained weights "
        "(network), or auto: the weights' where there are any",
    )
    freeze: bool = Field(False, description="train the classifier alone; the rest keeps the weights it starts from")
    layer_decay: float = Field(
        1.0, ge=0.01, le=1, description="factor of the learning rate from each layer to the one below it; 1: all equal"
    )
    dataset: str = Field(
        description="digits, cifar10, cifar100, omniglot, imagenet, folder:PATH or a timm data set name"
    )
    data_dir: str = Field("data", description="folder that data sets are read from and downloaded to")
    download: bool = Field(
        True, description="download the data set if it is not in data_dir and mapolicy knows its address"
    )
    image_size: int = Field(ge=1, le=4096, description="side of the square network input, pixels")
    train_per_class: float = Field(
        ge=0, description="training images of each class: a count, a fraction below 1, or 0 for all that remain"
    )
    validation_per_class: float = Field(
        ge=0, description="meta-validation images of each class: a count, or a fraction below 1"
    )
    test_per_class: float = Field(
        ge=0, description="test images of each class if the data set has no test split: a count, or a fraction below 1"
    )
    split_seed: int = Field(
        0, ge=0, le=2**31, description="seed of the splits; use the same one for runs that you compare"
    )
    resize: Annotated[str, OneOf(RESIZES)] = Field(
        "crop",
        description="how images become square: crop keeps the centre, pad adds black bars, squash changes the "
        "aspect ratio",
    )
    interpolation: Annotated[str, OneOf(INTERPOLATIONS)] = Field(
        "bilinear", description="Pillow's filter that resizes images"
    )
    alpha_background: Annotated[str, Matching(ALPHA_BACKGROUND, "white, black or #rrggbb")] = Field(
        "white", description="colour that transparent pixels are blended over: white, black or #rrggbb"
    )
    value_range: Annotated[str, Matching(VALUE_RANGE, "auto, full, or LOW:HIGH such as 0:4095")] = Field(
        "auto",
        description="values of 16-bit, 32-bit and floating-point pixels that become black and white: LOW:HIGH, full "
        "(0:65535), or auto for those that the training split has",
    )
    nested_classes: bool = Field(
        False, description="take the class folders as they are, although their images lie in folders of their own"
    )
    skip_corrupt: bool = Field(False, description="skip images that cannot be decoded instead of stopping")
    workers: int = Field(
        4, ge=0, le=256, description="processes that decode images of data sets that do not fit in memory"
    )
    memory_limit_gib: float = Field(
        4.0, ge=0, description="largest data set kept in memory as uint8 pixels, GiB; with keep_images the kept images"
    )
    keep_images: Annotated[str, OneOf(KEPT_IMAGES)] = Field(
        MEMORY,
        description="decode each image once, and cut random resized crops from the whole image: in memory if all fit "
        "there (memory), or else in a file (whole); or from copies whose shorter side is image_size / 0.875 (small); "
        "with interpolation=bilinear; off decodes for each crop",
    )
    cache_dir: str = Field(
        "", description="folder for kept images that exceed memory_limit_gib; empty: mapolicy in the user's cache"
    )

    base_augmentation: Annotated[str, OneOf(BASE_AUGMENTATIONS)] = Field(
        description="augmentation before the policy's transformation"
    )
    cutout: int = Field(ge=0, le=4096, description="side of Cutout's square, pixels; 0 turns Cutout off")
    operation_space: Annotated[str, OneOf(SPACES)] = Field(
        DEFAULT_SPACE, description="name of the table of the operations' ranges"
    )
    fill: Annotated[str, OneOf(FILLS)] = Field(
        "mean", description="colour of pixels that an operation moves in from outside"
    )
    copies: int = Field(1, ge=1, le=64, description="transformations of every image in a batch (the paper's MT)")

    epochs: int = Field(ge=1, le=1_000_000, description="passes over the training split")
    batch_size: int = Field(
        ge=1, le=1_000_000, description="images in a training batch over all processes, before copies"
    )
    optimizer: str = Field("sgd", description="a timm optimizer; `sgd` is Nesterov, `momentum` is plain")
    learning_rate: float = Field(ge=0, description="task network's learning rate, after warm-up")
    momentum: float = Field(0.9, ge=0, le=1, description="task network's momentum")
    weight_decay: float = Field(ge=0, description="task network's weight decay")
    decay_all: bool = Field(True, description="decay biases and normalisation layers too")
    clip_norm: float = Field(ge=0, description="largest global gradient norm; 0 does not clip")
    warmup_epochs: int = Field(0, ge=0, description="epochs of linear warm-up before the schedule")
    label_smoothing: float = Field(
        0.0, ge=0, le=0.99, description="share of a training label that is spread evenly over all classes"
    )
    balance: Annotated[str, OneOf(BALANCES)] = Field(
        "none",
        description="classes of unequal size: none, draw each class equally often (sampler), or weigh their losses "
        "inversely to their number of images (loss)",
    )
    mixup: float = Field(0.0, ge=0, le=100, description="alpha of MixUp, after the policy; 0: no MixUp")
    cutmix: float = Field(
        0.0,
        ge=0,
        le=100,
        description="alpha of CutMix, after the policy; 0: no CutMix; with MixUp each is half of them",
    )
    mix_probability: float = Field(1.0, ge=0, le=1, description="share of the batches that MixUp or CutMix change")
    ema_decay: float = Field(
        0.0,
        ge=0,
        le=0.999999,
        description="decay of a moving average of the weights, which is then measured and saved; 0: none",
    )
    keep_best: bool = Field(
        False, description="measure and save the weights of the epoch with the best meta-validation accuracy"
    )
    early_stopping: int = Field(
        0, ge=0, description="epochs without a better meta-validation accuracy after which training ends; 0: never"
    )
    last_batch: Annotated[str, OneOf(LAST_BATCHES)] = Field(
        "drop",
        description="an epoch's last images where they are too few for a batch: leave them out, or train on them",
    )

    validation_batch_size: int = Field(ge=1, le=1_000_000, description="meta-validation images of one hypergradient")
    policy_learning_rate: float = Field(ge=0, description="AdamW's learning rate for theta (beta of Eq. 3)")
    policy_memory: float = Field(
        0.0,
        ge=0,
        description="share of the run in which what theta learned decays to 1/e, towards equal weights; 0: no decay",
    )
    alpha_learning_rate: float = Field(ge=0, description="AdamW's learning rate for log alpha; 0 keeps alpha fixed")
    sampler: Annotated[str, OneOf(SAMPLERS)] = Field(
        "mean-weight",
        description="what the draws learn from: mean-weight (Eq. 5: p_jk follows the policy's mean outputs), "
        "alignment (operations and levels that raise the meta-validation loss are drawn less often), or adversarial "
        "(those that raise the training loss are drawn more often)",
    )
    training_loss: Annotated[str, OneOf(LOSSES)] = Field(
        "cross-entropy", description="loss of a training sample; others can be registered"
    )
    validation_loss: Annotated[str, OneOf(LOSSES)] = Field(
        "cross-entropy", description="loss of a meta-validation sample; its mean is what the policy lowers"
    )
    weighting: Annotated[str, OneOf(WEIGHTINGS)] = Field(
        "policy",
        description="weights of the task network's step: the policy's; equal ones, which need no second backward; or "
        "those of Ren et al. (reweight), by how much each sample lowers the meta-validation loss",
    )
    alignment_strength: float = Field(
        3.0, ge=0, le=1000, description="kappa of the alignment sampler: how strongly the draws follow what it learned"
    )
    alignment_rate: float = Field(
        0.1, ge=0, le=10, description="eta of the alignment sampler: how far an iteration's scores move what it learned"
    )
    alignment_decay: float = Field(
        0.02, ge=0, le=1, description="lambda of the alignment sampler: without evidence, draws return to uniform"
    )
    adversarial_rate: float = Field(
        0.01, ge=0, le=10, description="step of the adversarial sampler: Adam's learning rate for its log frequencies"
    )
    adversarial_entropy: float = Field(
        0.1,
        ge=1e-6,
        le=1000,
        description="weight of the draws' entropy in the adversarial sampler's reward; the larger, the more uniform",
    )
    level_bins: int = Field(
        4, ge=1, le=32, description="bins that samplers of levels cut the levels of one direction into"
    )
    level_course: bool = Field(
        False,
        description="let a bundle's draws change during a training as they did during the search; else they are the "
        "mean of its second half throughout",
    )
    sampler_input: Annotated[str, OneOf(SAMPLER_INPUTS)] = Field(
        "none",
        description="what the alignment sampler sees of an image before augmentation: none, its class, or its features",
    )
    epsilon: float = Field(
        0.1, ge=0, le=1, description="share of uniform exploration of the sampler mean-weight (Eq. 5)"
    )
    sampler_temperature: float = Field(
        1.0,
        ge=0.01,
        le=100,
        description="p_jk is proportional to the mean output to the power 1 / temperature; 1 is the paper's (Eq. 5)",
    )
    sampler_every: float = Field(ge=0, description="epochs between refreshes of p_jk (s of Eq. 5)")
    sampler_history: float = Field(ge=0, description="epochs of policy outputs that p_jk averages (r of Eq. 5)")
    meta_every: int = Field(
        1, ge=1, le=100, description="iterations from one hypergradient to the next; 1 is the paper's"
    )
    meta_fraction: float = Field(
        1.0,
        ge=1e-6,
        le=1,
        description="share of the training and meta-validation batches that the hypergradient uses; 1 is the paper's",
    )
    simultaneous: bool = Field(
        False,
        description="update w and theta together: w's step uses the old theta's weights and no extra backward pass",
    )
    reject_below_mean: bool = Field(
        False,
        description="drop samples with a weight below the batch's mean and give the others equal weights (ablation)",
    )
    low_memory: bool = Field(False, description="recompute a forward pass instead of keeping its graph")
    accumulate: int = Field(
        1,
        ge=1,
        le=1_000_000,
        description="micro-batches that each process splits its batch into; the batch stays batch_size",
    )
    precision: Annotated[str, OneOf(PRECISIONS)] = Field(
        "float32", description="dtype of the task network's matrix products in training; everything else is float32"
    )
    batch_norm: Annotated[str, OneOf(BATCH_NORMS)] = Field(
        "local",
        description="statistics of batch normalisation: of each process's images, or of the batch over all processes",
    )
    compile: Annotated[str, OneOf(COMPILE)] = Field(
        "auto", description="compile the bilevel step: auto compiles long runs; never and always override it"
    )

    seed: int = Field(0, ge=0, le=2**31, description="seed of everything but the splits")
    device: Annotated[str, OneOf(DEVICES)] = Field(
        "auto", description="device of the run; auto is cuda if there is one"
    )
    threads: int = Field(0, ge=0, le=1024, description="CPU threads of torch; 0 keeps torch's own number")
    patience_seconds: float = Field(
        600.0, ge=1, description="seconds to wait for another process of the run before giving up"
    )
    checkpoint_minutes: float = Field(
        10.0, ge=0, description="minutes between checkpoints; one is also written at the end"
    )
    on_divergence: Annotated[str, OneOf(ON_DIVERGENCE)] = Field(
        "stop",
        description="after a loss that is not finite: stop, or return to the last checkpoint with half the rates",
    )

    @model_validator(mode="wrap")
    @classmethod
    def _say_the_fix(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return validate(values)
        except ValidationError as problem:
            raise setting_error(cls.__name__, cls.stage, cls.settings(), problem) from None

    def __post_init__(self) -> None:
        for name in ("label_smoothing", "mixup", "cutmix"):
            if getattr(self, name) and self.training_loss != "cross-entropy":
                why = f"the loss {self.training_loss!r} takes whole labels, and this makes labels of several classes"
                raise UsageError(name, why, "use training_loss=cross-entropy")
        if self.pretrained and self.weights:
            raise UsageError("weights", "the network can start from one set of weights alone", "leave pretrained out")
        if self.freeze and not (self.pretrained or self.weights):
            why = "without weights to start from, all but the classifier would stay random"
            raise UsageError("freeze", why, "add --pretrained or --weights FILE, or leave it out")
        if self.warmup_epochs >= self.epochs:
            raise UsageError(
                "warmup_epochs",
                f"{self.warmup_epochs} epochs of warm-up leave nothing of {self.epochs} epochs",
                "set warmup_epochs below epochs",
            )
        if self.accumulate > 1 and self.batch_norm == "synchronised":
            why = "the statistics of the whole batch are not known when its first micro-batch is computed"
            raise UsageError("batch_norm synchronised", why, "set accumulate=1 or batch_norm=local")
        if self.fixed_value_range and not self.fixed_value_range[0] < self.fixed_value_range[1]:
            raise UsageError("value_range", f"{self.value_range} has no lower and higher end", "write LOW:HIGH")
        if self.simultaneous and (self.meta_fraction < 1 or self.reject_below_mean):
            other = "reject_below_mean" if self.reject_below_mean else "meta_fraction"
            why = "the weighted step uses the virtual step's gradient, so it needs all samples and their weights"
            raise UsageError("simultaneous", why, f"leave {other} out")
        if self.weighting == REWEIGHT and self.learns_policy:
            self._check_reweighting()

    def _check_reweighting(self) -> None:
        """Weights of Ren et al. need a hypergradient of every sample in every iteration, and no policy network.

        Raises:
            UsageError: a setting contradicts that.
        """
        for name, value in (("meta_every", 1), ("meta_fraction", 1), ("simultaneous", False)):
            if getattr(self, name) != value:
                why = "every sample's weight comes from a hypergradient at the present network"
                raise UsageError(f"weighting {REWEIGHT}", why, f"set {name}={str(value).lower()}")
        if self.reject_below_mean:
            raise UsageError(f"weighting {REWEIGHT}", "it rejects samples by itself", "leave reject_below_mean out")
        if self.sampler == "mean-weight":
            why = "it trains no policy network, so p_jk would learn nothing"
            remedy = "set sampler=alignment; alignment_strength=0 draws uniformly"
            raise UsageError(f"weighting {REWEIGHT}", why, remedy)

    def _refuse(self, reasons: Mapping[str, str], where: str, remedy: str) -> None:
        for name, why in reasons.items():
            if getattr(self, name) != LATER[name]:
                raise UsageError(f"{name} in {where}", why, remedy)

    @property
    def keeps_best(self) -> bool:
        """Whether the result is the best epoch's network; that of early stopping always is."""
        return self.keep_best or self.early_stopping > 0

    @property
    def keeps_images(self) -> bool:
        """Whether random resized crops are cut from kept images."""
        crops = self.base_augmentation == "random_resized_crop"
        return self.keep_images != OFF and crops and self.interpolation == "bilinear"

    @property
    def fixed_value_range(self) -> tuple[float, float] | None:
        """The two numbers of `value_range`; None for `auto` and `full`."""
        if ":" not in self.value_range:
            return None
        low, _, high = self.value_range.partition(":")
        return float(low), float(high)

    @property
    def network(self) -> str:
        """Name of the network that this stage trains."""
        return str(getattr(self, self.network_field))

    @property
    def trains_on_validation(self) -> bool:
        """Whether the meta-validation images are among the training images."""
        return False

    @property
    def learns_policy(self) -> bool:
        """Whether the run learns a policy, or applies one."""
        return True

    @property
    def constant_rates(self) -> bool:
        """Whether the three learning rates are the constants of Theorem 1."""
        return False

    @classmethod
    def from_mapping(
        cls, values: Mapping[str, Any], source: str = "configuration", error: type[MapolicyError] = InputError
    ) -> Self:
        """A configuration from flat key-value pairs.

        Args:
            values: settings by field name.
            source: name of the settings' origin, for the error's text.
            error: type of the error for an unknown key, a missing one or a wrong value.
        """
        try:
            return cls(**values)
        except UsageError as problem:
            why = problem.why if problem.what == cls.__name__ else f"{problem.what}: {problem.why}"
            raise error(source, why, problem.remedy) from None

    def to_mapping(self) -> dict[str, Any]:
        """Every setting by field name."""
        return dataclasses.asdict(self)

    def to_toml(self) -> str:
        """The configuration as a recipe that reproduces this run."""
        return tomli_w.dumps(self.to_mapping())

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The settings with a default, which is what runs did before the setting existed."""
        return {
            name: setting.get_default(call_default_factory=True)
            for name, setting in cls.settings().items()
            if not setting.is_required()
        }

    @classmethod
    def settings(cls) -> Mapping[str, FieldInfo]:
        """Every setting by name: its type, range, default and description."""
        return cls.__pydantic_fields__

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema (2020-12) of a configuration, with ranges, defaults and descriptions."""
        return TypeAdapter(cls).json_schema()

    def portable(self) -> dict[str, Any]:
        """The settings that a bundle records: all but `MACHINE_FIELDS`.

        A setting that the first version did not have is recorded where it differs from what that version did, so that
        the same search still gives the same bytes.
        """
        found = result_settings(self.to_mapping())
        return {key: value for key, value in found.items() if key not in LATER or value != LATER[key]}

    def with_changes(self, **changes: Any) -> Self:
        """A copy with some settings changed."""
        return dataclasses.replace(self, **changes)
