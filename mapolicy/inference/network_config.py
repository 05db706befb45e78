"""What a network file says of itself: timm's `config.json`, and how images are read. Imports no torch.

The keys outside `mapolicy` are those of a model on the Hugging Face Hub that timm loads
(`timm.models.save_for_hf`), so timm rebuilds the network without mapolicy.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from ..bundle import canonical_json
from ..bundle.manifest_base import ManifestPart, first_problem
from ..bundle.manifest_fields import Count, Deviations, Digest, ManyClasses, Means, Positive, Text, one_of
from ..runtime.sanitize import invalid_bundle, quoted

FORMAT = 1
MAX_DEPTH, MAX_KEYS, MAX_ENTRIES = 5, 200, 1_000
SIZE_ARGUMENTS = ("num_classes", "in_chans")  # of timm's `create_model`, which `model_args` holds as timm writes them
EXPORT_FORMS = ("onnx", "torchscript", "exported")  # what `export_network` writes
LARGEST_SIDE = 4096  # pixels
MOST_ARGUMENTS = 50

# How timm's evaluation transform names our ways to make an image square.
CROP_MODES: Mapping[str, str] = {"crop": "center", "pad": "border", "squash": "squash"}

Layers = Annotated[tuple[Text, ...], Field(max_length=8, strict=False)] | Text | None
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Channels = Annotated[int, one_of((1, 3))]
Name = Annotated[str, Field(max_length=80, pattern="^[A-Za-z0-9_]+$")]  # nothing that timm would open or download
Sketch = Annotated[str, Field(min_length=12, max_length=12 * 2048, pattern="^([0-9a-f]{12})+$")]
InputSize = Annotated[tuple[Channels, Side, Side], Field(strict=False)]


class PretrainedConfig(ManifestPart):
    """timm's description of the network's input and of its outer layers (`timm.models.PretrainedCfg`)."""

    input_size: InputSize
    fixed_input_size: bool
    interpolation: Text
    crop_pct: Annotated[float, Field(gt=0, le=1)]
    crop_mode: Annotated[str, one_of(tuple(CROP_MODES.values()))]
    mean: Means
    std: Deviations
    num_classes: Positive
    first_conv: Layers
    classifier: Layers


class Dataset(ManifestPart):
    """The data set that the network was trained on.

    Attributes:
        name: without its folder.
        images: in the pool that its splits were drawn from.
        split_seed, test_per_class: how the test split was drawn, where the data set has none of its own.
        learned: digests of the images that it learned from or was chosen by, as `data.splits.sketch` writes them. None
            in files of older versions, and where the training did not read the contents of its images.
    """

    name: Text
    images: Count
    split_seed: Count
    test_per_class: Annotated[float, Field(ge=0)]
    learned: Sketch | None = None


class Origin(ManifestPart):
    """Where the network comes from, and how images are read for it.

    Attributes:
        format: version of this description.
        versions: of Python, mapolicy, torch, torchvision, timm and safetensors.
        stage: `train`, or `search` for the proxy of a search.
        images: fields of `data.reading.ImageReading`, which checks them.
        dataset: what it was trained on.
        bundle: digest of the policy that it was trained with or that was searched with it; None for a baseline.
    """

    format: Annotated[int, one_of((FORMAT,))]
    versions: Annotated[dict[Text, Text], Field(max_length=20)]
    stage: Annotated[str, one_of(("train", "search"))]
    images: Annotated[dict[Text, Any], Field(max_length=20)]
    dataset: Dataset
    bundle: Digest | None


class NetworkConfig(ManifestPart):
    """The whole description.

    Attributes:
        architecture: name in timm's registry.
        num_classes: number of logits.
        label_names: classes in the order of the logits.
        model_args: arguments of `timm.create_model` that give the same network.
        pretrained_cfg: its input.
        mapolicy: what timm does not know.
    """

    architecture: Name
    num_classes: Positive
    label_names: ManyClasses
    model_args: Annotated[dict[Text, Any], Field(max_length=MOST_ARGUMENTS)]
    pretrained_cfg: PretrainedConfig
    mapolicy: Origin

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        about = self.pretrained_cfg
        channels, height, width = about.input_size
        expected = {"num_classes": len(self.label_names), "in_chans": channels}
        if self.num_classes != len(self.label_names) or about.num_classes != self.num_classes:
            raise ValueError(f"num_classes are not the {len(self.label_names)} of label_names")
        if height != width:
            raise ValueError(f"input_size is {height} x {width}, expected a square")
        for name, value in expected.items():
            if self.model_args.get(name) != value:
                raise ValueError(f"model_args {name} is {quoted(self.model_args.get(name))}, expected {value}")
        for name in ("mean", "std"):
            if len(getattr(about, name)) != channels:
                raise ValueError(f"{name} has {len(getattr(about, name))} numbers, input_size has {channels} channels")
        reading = self.mapolicy.images
        same = {
            "channels": channels,
            "image_size": height,
            "interpolation": about.interpolation,
            "share": about.crop_pct,
            "resize": next(name for name, mode in CROP_MODES.items() if mode == about.crop_mode),
        }
        for name, said in same.items():
            if reading.get(name) != said:
                raise ValueError(f"mapolicy.images.{name} is {quoted(reading.get(name))}, pretrained_cfg says {said!r}")
        return self

    @property
    def channels(self) -> int:
        """Of the input: 1 or 3."""
        return self.pretrained_cfg.input_size[0]

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.pretrained_cfg.input_size[1]

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the network's constructor besides its classes and channels."""
        return {name: value for name, value in self.model_args.items() if name not in SIZE_ARGUMENTS}

    def to_json(self) -> str:
        """Canonical JSON: equal descriptions give equal text."""
        values = self.model_dump()
        if self.mapolicy.dataset.learned is None:
            del values["mapolicy"]["dataset"]["learned"]  # files of older versions do not have it
        return canonical_json.canonical(values)


def read_config(text: str, source: str) -> NetworkConfig:
    """Parse and check a network file's description.

    Args:
        text: value of the file's only metadata key.
        source: the file's name, for the error.

    Raises:
        InputError: it is not what `NetworkConfig.to_json` writes; one line names the field.
    """
    try:
        raw = canonical_json.parse(text.encode("utf-8", "surrogatepass"), MAX_DEPTH, MAX_KEYS, MAX_ENTRIES)
    except ValueError as problem:
        raise invalid_bundle(source, f"config.json {problem}") from None
    version = raw["mapolicy"].get("format") if isinstance(raw, dict) and isinstance(raw.get("mapolicy"), dict) else None
    if version != FORMAT or type(version) is not int:
        why = f"has a description of format {quoted(version)}; this mapolicy reads format {FORMAT}"
        raise invalid_bundle(source, why, "upgrade mapolicy, or train the network again")
    try:
        config = NetworkConfig.model_validate(raw)
    except ValidationError as problem:
        raise invalid_bundle(source, first_problem(problem).replace("manifest", "config.json", 1)) from None
    if text != config.to_json():
        raise invalid_bundle(source, "config.json is not spelled as mapolicy writes it (canonical JSON)")
    return config
