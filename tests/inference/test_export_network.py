"""Exported networks give torch's logits, in a program that has never seen mapolicy."""

import functools
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mapolicy import TrainedNetwork, load_network
from mapolicy.errors import EnvironmentFault, InputError
from mapolicy.inference import export_network as exporting
from mapolicy.inference.export_network import FORMS, Exported, export_network
from mapolicy.inference.network_config import EXPORT_FORMS


@pytest.fixture(scope="module")
def network(trained_run: Path) -> TrainedNetwork:
    return load_network(trained_run)


@pytest.fixture(scope="module")
def exported(network: TrainedNetwork) -> Callable[[str], Exported]:
    """The network in a form; in each of them once."""
    return functools.cache(lambda form: export_network(network, form))


def needs(form: str) -> None:
    for package in FORMS[form].packages:
        pytest.importorskip(package, reason=f"{package} is not installed")


def test_the_forms_are_those_of_the_command_line() -> None:
    assert tuple(FORMS) == EXPORT_FORMS


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore")
def test_any_number_of_images_gives_the_same_logits(
    form: str, network: TrainedNetwork, exported: Callable[[str], Exported]
) -> None:
    needs(form)
    file = exported(form)
    assert file.difference <= 1e-5
    images = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(FORMS[form].run(file.content, images), network(images), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_file_says_what_it_is(exported: Callable[[str], Exported]) -> None:
    for form, load in (("torchscript", torch.jit.load), ("exported", torch.export.load)):
        extra = {"config.json": ""}
        key = "_extra_files" if form == "torchscript" else "extra_files"
        load(io.BytesIO(exported(form).content), **{key: extra})
        assert json.loads(extra["config.json"])["label_names"] == list("0123456789")


@pytest.mark.filterwarnings("ignore")
def test_onnx_in_a_program_of_its_own(exported: Callable[[str], Exported]) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model = onnx.load_from_string(exported("onnx").content)
    onnx.checker.check_model(model)
    described = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(described["config.json"])["architecture"] == "test_resnet"
    (images,), (logits,) = model.graph.input, model.graph.output
    assert (images.name, logits.name) == ("images", "logits")
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [dimension.dim_value for dimension in images.type.tensor_type.shape.dim] == [0, 1, 8, 8], "any batch"


def test_other_logits_are_refused(network: TrainedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(FORMS["torchscript"], run=lambda content, images: network(images) * 1.01)
    monkeypatch.setitem(dict(FORMS), "torchscript", wrong)
    monkeypatch.setattr(exporting, "FORMS", {"torchscript": wrong})
    with pytest.raises(InputError, match=r"test_resnet: as torchscript it gives other logits than torch: 0\.01"):
        export_network(network, "torchscript")
    for value in (float("nan"), float("inf")):
        broken = replace(wrong, run=lambda content, images, value=value: torch.full((len(images), 10), value))
        monkeypatch.setattr(exporting, "FORMS", {"torchscript": broken})
        with pytest.raises(InputError, match="gives other logits"):
            export_network(network, "torchscript")


def test_what_cannot_be_exported_is_one_line(network: TrainedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise RuntimeError("no such operator\nand much more")

    monkeypatch.setattr(exporting, "FORMS", {"torchscript": replace(FORMS["torchscript"], write=fail)})
    with pytest.raises(InputError, match=r"cannot be exported to torchscript \(no such operator\); try another --to"):
        export_network(network, "torchscript")


def test_a_missing_package_is_named(network: TrainedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match=r"onnx is not installed; pip install 'mapolicy\[onnx\]'"):
        export_network(network, "onnx")
