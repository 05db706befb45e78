"""Configurations: complete, checked, frozen, and the same again after TOML."""

import math
import tomllib
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import pytest
import timm
from pydantic import TypeAdapter, ValidationError

import mapolicy.models  # noqa: F401 - registers the networks in timm
from mapolicy.config import RunConfig, SearchConfig, TrainConfig
from mapolicy.config.choices import FAST, LATER, MACHINE_FIELDS, NOT_IN_SEARCH, NOT_WHILE_LEARNING
from mapolicy.config.types import OneOf
from mapolicy.errors import InputError, UsageError
from mapolicy.registries import LOSSES
from mapolicy.runtime.toml_file import read_toml

COMMON = {
    "dataset": "digits",
    "image_size": 8,
    "train_per_class": 0,
    "validation_per_class": 0.1,
    "test_per_class": 0.15,
    "base_augmentation": "none",
    "cutout": 0,
    "epochs": 20,
    "batch_size": 128,
    "learning_rate": 0.1,
    "weight_decay": 5e-4,
    "clip_norm": 5,
    "validation_batch_size": 64,
    "policy_learning_rate": 1e-3,
    "alpha_learning_rate": 1e-3,
    "sampler_every": 1,
    "sampler_history": 20,
}
# The least that a configuration must be told.
REQUIRED: dict[type[RunConfig], dict[str, Any]] = {
    SearchConfig: COMMON | {"proxy": "wrn10_1", "alpha_initial": 0.1},
    TrainConfig: COMMON | {"arch": "resnet10t"},
}
POLICIES = (
    "learned", "sampler-only", "weights-only", "none", "uniform", "trivialaugment", "randaugment", "autoaugment",
)  # fmt: skip
STAGES = pytest.mark.parametrize("kind", REQUIRED, ids=lambda kind: kind.stage)
NUMBERS = [
    pytest.param(kind, name, setting.annotation, id=f"{kind.stage}-{name}")
    for kind in REQUIRED
    for name, setting in kind.settings().items()
    if setting.annotation in (int, float)
]


def make(kind: type[RunConfig] = TrainConfig, **changes: Any) -> RunConfig:
    return kind.from_mapping(REQUIRED[kind] | changes)


@STAGES
def test_all_missing_settings_are_named_at_once(kind: type[RunConfig]) -> None:
    with pytest.raises(UsageError) as problem:
        kind(**{name: value for name, value in REQUIRED[kind].items() if name not in ("cutout", "epochs")})
    remedy = "a recipe has them, `mapolicy recipes` lists the recipes"
    assert str(problem.value) == f"{kind.__name__}: 2 settings are missing: cutout, epochs; {remedy}"
    with pytest.raises(UsageError) as problem:
        kind()
    assert str(problem.value).startswith(f"{kind.__name__}: {len(REQUIRED[kind])} settings are missing: dataset, image")
    assert str(problem.value).endswith(f" more; {remedy}")
    assert len(f"mapolicy: error: {problem.value}") <= 240


@STAGES
def test_every_field_is_described(kind: type[RunConfig]) -> None:
    schema = kind.json_schema()["properties"]
    assert list(schema) == [spec.name for spec in fields(kind)] == list(kind.settings())
    assert len(schema) > 35
    for name, setting in schema.items():
        assert len(setting["description"].split()) >= 3, name


@STAGES
def test_required_fields_are_those_that_must_be_told(kind: type[RunConfig]) -> None:
    assert set(kind.json_schema()["required"]) == set(REQUIRED[kind])
    assert set(kind.settings()) - set(kind.defaults()) == set(REQUIRED[kind])
    for name in REQUIRED[kind]:
        values = {key: value for key, value in REQUIRED[kind].items() if key != name}
        with pytest.raises(InputError, match=rf"^recipe r: setting '{name}' is missing; it means: "):
            kind.from_mapping(values, "recipe r")


@STAGES
def test_unknown_key_is_refused_with_the_closest(kind: type[RunConfig]) -> None:
    with pytest.raises(InputError) as refusal:
        kind.from_mapping(REQUIRED[kind] | {"lerning_rate": 0.1}, "recipe r")
    assert str(refusal.value) == "recipe r: unknown setting 'lerning_rate'; did you mean learning_rate?"
    with pytest.raises(InputError, match=f"unknown setting 'zzz'; {kind.stage} has no such setting$"):
        make(kind, zzz=1)


def test_a_stage_does_not_take_the_other_ones_settings() -> None:
    with pytest.raises(InputError, match="unknown setting 'policy'"):
        make(SearchConfig, policy="none")
    with pytest.raises(InputError, match="unknown setting 'alpha_initial'"):
        make(TrainConfig, alpha_initial=0.1)


def test_the_caller_chooses_the_error() -> None:
    for values in ({"zzz": 1}, {}, REQUIRED[TrainConfig] | {"epochs": 0}):
        with pytest.raises(UsageError, match=r"^command line: "):
            TrainConfig.from_mapping(values, "command line", UsageError)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("epochs", True, "a whole number"),
        ("epochs", 2.0, "a whole number"),
        ("epochs", "2", "a whole number"),
        ("epochs", None, "a whole number"),
        ("learning_rate", True, "a number"),
        ("learning_rate", "0.1", "a number"),
        ("learning_rate", [0.1], "a number"),
        ("dataset", 3, "a text"),
        ("dataset", ["digits"], "a text"),
        ("policy", False, "a text"),
        ("skip_corrupt", 1, "true or false"),
        ("skip_corrupt", "true", "true or false"),
        ("model_args", "img_size=8", "a table"),
        ("model_args", [], "a table"),
        ("model_args", True, "a table"),
    ],
)
def test_wrong_type_is_refused(name: str, value: object, wanted: str) -> None:
    with pytest.raises(InputError) as refusal:
        make(**{name: value})
    assert refusal.value.why == f"{name}: {value!r} is not {wanted}"
    assert "\n" not in str(refusal.value)


def test_a_whole_number_is_a_number() -> None:
    config = make(learning_rate=1)
    assert config.learning_rate == 1.0
    assert type(config.learning_rate) is float


@pytest.mark.parametrize(("kind", "name", "number"), NUMBERS)
def test_numbers_keep_to_their_range(kind: type[RunConfig], name: str, number: type[int] | type[float]) -> None:
    schema = kind.json_schema()["properties"][name]
    low, high = schema["minimum"], schema.get("maximum")
    assert low is not None
    assert low >= 0, "nothing here may be negative"
    refused = kind is SearchConfig and name in NOT_IN_SEARCH  # but for the default, its lowest value
    inside = [end for end in (low, None if refused else high) if end is not None]
    for end in inside:
        assert getattr(make(kind, **{name: number(end)}), name) == end
    outside = [low - 1] if number is int else [math.nextafter(low, -math.inf), math.nan, math.inf, -math.inf]
    if high is not None:
        outside.append(high + 1 if number is int else math.nextafter(high, math.inf))
    for value in outside:
        with pytest.raises(InputError, match=f"{name}: .* is not a finite number (at least|between) {low}"):
            make(kind, **{name: number(value)})


@pytest.mark.parametrize("name", ["epochs", "learning_rate"])
def test_a_huge_whole_number_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=name):
        make(**{name: 10**400})


@pytest.mark.parametrize(
    ("kind", "name", "choices"),
    [
        (TrainConfig, "base_augmentation", ("none", "flip_crop", "random_resized_crop")),
        (TrainConfig, "fill", ("mean", "black")),
        (TrainConfig, "device", ("auto", "cpu", "cuda")),
        (TrainConfig, "policy", POLICIES),
        (TrainConfig, "mode", ("frozen", "finetune")),
        (SearchConfig, "alpha", ("scalar", "per-layer")),
        (SearchConfig, "policy_input", ("both", "features", "embedding", "loss")),
        (TrainConfig, "weighting", ("as-searched", "policy", "equal", "reweight")),
    ],
)
def test_choices(kind: type[RunConfig], name: str, choices: tuple[str, ...]) -> None:
    for choice in choices:
        assert getattr(make(kind, **{name: choice}), name) == choice
    for other in ("", choices[0].upper(), choices[0] + " "):
        with pytest.raises(InputError) as refusal:
            make(kind, **{name: other})
        assert refusal.value.why == f"{name}: {other!r} is not one of {', '.join(choices)}"


def test_a_name_that_is_registered_later_is_a_choice_too() -> None:
    names = ["first"]
    kind = TypeAdapter(Annotated[str, OneOf(lambda: names)])
    with pytest.raises(ValidationError, match="'second' is not one of first"):
        kind.validate_python("second")
    names.append("second")
    assert kind.validate_python("second") == "second"
    assert kind.json_schema()["enum"] == names


@STAGES
def test_a_constructor_names_the_setting_that_is_wrong(kind: type[RunConfig]) -> None:
    with pytest.raises(UsageError, match=r"^epochs: 2\.0 is not a whole number; it means: "):
        kind(**REQUIRED[kind] | {"epochs": 2.0})
    with pytest.raises(UsageError, match=rf"^{kind.__name__}: setting 'dataset' is missing; it means: "):
        kind(**{name: value for name, value in REQUIRED[kind].items() if name != "dataset"})
    with pytest.raises(UsageError, match=rf"^{kind.__name__}: unknown setting 'epoch'; did you mean epochs"):
        kind(epoch=2)


@STAGES
def test_the_schema_accepts_what_the_constructor_accepts(kind: type[RunConfig]) -> None:
    schema = kind.json_schema()
    valid = jsonschema.Draft202012Validator(schema).is_valid
    assert valid(REQUIRED[kind])
    assert valid(make(kind).to_mapping())
    for change in ({"epochs": 0}, {"epochs": "2"}, {"fill": "white"}, {"zzz": 1}, {"momentum": 1.5}):
        assert not valid(REQUIRED[kind] | change), change


def test_settings_that_contradict_each_other() -> None:
    assert make(mode="finetune").mode == "finetune"
    with pytest.raises(InputError, match=r"include_validation: .* cannot be trained on"):
        make(mode="finetune", include_validation=True)
    for policy in POLICIES[1:]:
        assert make(policy=policy).policy == policy
        with pytest.raises(InputError, match=f"mode finetune: policy '{policy}' has nothing to learn"):
            make(policy=policy, mode="finetune")


@STAGES
def test_warm_up_must_leave_epochs(kind: type[RunConfig]) -> None:
    assert make(kind, epochs=3, warmup_epochs=2).warmup_epochs == 2
    for warmup in (3, 4):
        with pytest.raises(InputError, match=f"warmup_epochs: {warmup} epochs .* of 3 epochs; set warmup_epochs below"):
            make(kind, epochs=3, warmup_epochs=warmup)


def test_what_the_validation_images_are_for() -> None:
    assert not make(SearchConfig).trains_on_validation
    assert not make(TrainConfig).trains_on_validation
    assert make(TrainConfig, include_validation=True).trains_on_validation


def test_the_network_is_the_one_that_the_stage_trains() -> None:
    assert make(SearchConfig).network == "wrn10_1"
    assert make(TrainConfig).network == "resnet10t"


@STAGES
def test_frozen(kind: type[RunConfig]) -> None:
    config = make(kind)
    for spec in fields(kind):
        with pytest.raises(FrozenInstanceError):
            setattr(config, spec.name, getattr(config, spec.name))
    with pytest.raises(FrozenInstanceError):
        config.something_else = 1


def test_default_tables_are_not_shared() -> None:
    make().model_args["img_size"] = 8
    assert make().model_args == {}


def test_changes_are_checked_too() -> None:
    config = make()
    assert config.with_changes(epochs=3).epochs == 3
    assert config.epochs == 20
    with pytest.raises(UsageError, match="epochs"):
        config.with_changes(epochs=0)


@STAGES
def test_toml_brings_the_same_configuration_back(kind: type[RunConfig], tmp_path: Path) -> None:
    config = make(
        kind,
        dataset="folder:C:\\b\"i'r\nd\x7f \u00e9\u202e",
        learning_rate=1 / 3,
        weight_decay=5e-324,
        clip_norm=1e22,
        seed=2**31,
        skip_corrupt=True,
        model_args={"img_size": 8, "drop rate": 0.1, "act": {"name": "relu"}, "sizes": [1, 2], "flag": False},
    )
    values = tomllib.loads(config.to_toml())
    assert set(values) == {spec.name for spec in fields(kind)}
    assert kind.from_mapping(values) == config
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8", newline="")
    assert kind.from_mapping(read_toml(path)) == config


@STAGES
def test_a_bundle_records_all_but_the_machine(kind: type[RunConfig]) -> None:
    where = {"data_dir", "weights", "download", "workers", "memory_limit_gib", "cache_dir", "device", "threads"}
    machine = where | {"checkpoint_minutes", "on_divergence", "patience_seconds"}
    assert machine == MACHINE_FIELDS
    config = make(kind, data_dir="/somewhere", threads=3)
    # What the first version did not have is recorded where it differs from what that version did.
    later = {name for name, value in LATER.items() if getattr(config, name, None) == value}
    assert {"alignment_strength", "training_loss"} <= later
    assert set(config.portable()) == {spec.name for spec in fields(kind)} - machine - later
    assert (
        make(kind, sampler="alignment", level_bins=3).portable().items()
        >= {"sampler": "alignment", "level_bins": 3}.items()
    )
    assert config.portable() == make(kind).portable()
    assert all(config.to_mapping()[name] == value for name, value in config.portable().items())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file or directory"),
        (b"epochs 3", "not TOML (Expected '=' "),
        (b"epochs = 3\nepochs = 4", "not TOML (Cannot overwrite a value "),
        (b"\xff\xfe", "not TOML ('utf-8' codec can't decode byte 0xff "),
    ],
    ids=["missing", "no-toml", "twice", "no-utf8"],
)
def test_unreadable_toml(content: bytes | None, why: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as refusal:
        read_toml(path)
    assert refusal.value.what == str(path)
    assert refusal.value.why.startswith(why)
    assert "\n" not in str(refusal.value)


def test_a_folder_is_no_toml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        read_toml(tmp_path)


@pytest.mark.parametrize("content", ["a = " + "[" * 100_000, "a = " + "1" * 5_000], ids=["deep", "long-number"])
def test_hostile_toml(content: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(content)
    with pytest.raises(InputError, match="not TOML"):
        read_toml(path)


def test_a_number_too_long_to_be_shown(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("epochs = 0x" + "f" * 5_000)
    with pytest.raises(InputError, match="epochs"):
        make(**read_toml(path))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"simultaneous": True, "meta_fraction": 0.5}, "leave meta_fraction out"),
        ({"simultaneous": True, "reject_below_mean": True}, "leave reject_below_mean out"),
        ({"schedule": "theorem1"}, "alpha_learning_rate=0"),
        ({"schedule": "theorem1", "alpha_learning_rate": 0.0, "warmup_epochs": 1}, "warmup_epochs=0"),
        ({"extractor": "own", "policy_input": "embedding"}, "sees no features"),
        ({"extractor": "own", "policy_input": "loss"}, "sees no features"),
        ({"weighting": "reweight"}, "p_jk would learn nothing; set sampler=alignment"),
        ({"weighting": "reweight", "sampler": "alignment", "meta_every": 2}, "set meta_every=1"),
        ({"weighting": "reweight", "sampler": "alignment", "meta_fraction": 0.5}, "set meta_fraction=1"),
        ({"weighting": "reweight", "sampler": "alignment", "simultaneous": True}, "set simultaneous=false"),
        ({"weighting": "reweight", "sampler": "alignment", "reject_below_mean": True}, "leave reject_below_mean out"),
        ({"sampler": "adversarial", "sampler_input": "class"}, "adversarial draws the same for every image"),
        ({"adversarial_entropy": 0.0}, "adversarial_entropy"),
        ({"meta_every": 0}, "meta_every"),
        ({"meta_fraction": 0.0}, "meta_fraction"),
        ({"extractor": "none"}, "extractor"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(make_search_config, changes: dict, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        make_search_config(epochs=3).with_changes(**changes)


def test_fast_is_made_of_settings_of_both_stages(make_search_config, make_train_config) -> None:
    for config in (make_search_config(), make_train_config()):
        assert config.with_changes(**FAST) != config


@STAGES
def test_a_short_name_of_a_network_is_a_name_of_the_registry(kind: type[RunConfig]) -> None:
    assert timm.is_model("pyramidnet272_a200")
    config = make(kind, **{kind.network_field: "pyramidnet"})
    assert config.network == config.to_mapping()[kind.network_field] == "pyramidnet272_a200"
    assert make(kind, **{kind.network_field: "resnet18"}).network == "resnet18"


# ---- what a policy cannot be learned with

OTHER = {"mixup": 0.2, "cutmix": 1.0, "ema_decay": 0.99, "keep_best": True, "early_stopping": 3, "last_batch": "keep"}


@pytest.mark.parametrize("name", OTHER)
def test_what_a_search_cannot_do_is_refused_with_its_reason(name: str) -> None:
    assert OTHER.keys() == NOT_IN_SEARCH.keys()
    with pytest.raises(InputError, match=f"{name} in a search: {NOT_IN_SEARCH[name]}; leave it out; `train` has it"):
        make(SearchConfig, **{name: OTHER[name]})
    make(TrainConfig, **{name: OTHER[name]})
    if name in NOT_WHILE_LEARNING:
        with pytest.raises(InputError, match=f"{name} in mode finetune: {NOT_IN_SEARCH[name]}; use --mode frozen"):
            make(TrainConfig, mode="finetune", **{name: OTHER[name]})
    else:
        make(TrainConfig, mode="finetune", **{name: OTHER[name]})


def test_the_best_epoch_needs_images_that_are_not_trained_on() -> None:
    for name in ("early_stopping", "keep_best"):
        with pytest.raises(InputError, match="the best epoch is found on the meta-validation images"):
            make(TrainConfig, include_validation=True, **{name: OTHER[name]})


@pytest.mark.parametrize("name", ["label_smoothing", "mixup", "cutmix"])
def test_labels_of_several_classes_need_the_cross_entropy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    LOSSES.register("other", "for the test")(lambda logits, labels: logits)
    try:
        with pytest.raises(InputError, match=f"{name}: the loss 'other' takes whole labels"):
            make(TrainConfig, training_loss="other", **{name: 0.1})
    finally:
        LOSSES.remove("other")


def test_nothing_is_frozen_at_random(make_train_config) -> None:
    with pytest.raises(InputError, match=r"freeze: without weights to start from.*add --pretrained or --weights FILE"):
        make_train_config(freeze=True)
    assert make_train_config(freeze=True, pretrained=True).freeze
