"""A trained network for other programs: ONNX, TorchScript, torch.export. What was written is checked against torch.

Normalisation is part of what is exported: the input is uint8 [B, C, S, S], named `images`, the output float32 [B, K],
named `logits`. Each file holds the network's description, so classes and size travel with it.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..errors import EnvironmentFault, InputError
from ..runtime.random import generator
from ..runtime.sanitize import escaped
from .network import TrainedNetwork

CHECKED_IMAGES = 16
TOLERANCE = 1e-3  # of the largest logit: other programs add in another order
DESCRIPTION = "config.json"

Run = Callable[[bytes, Tensor], Tensor]


@dataclass(frozen=True)
class Form:
    """A format that a network is exported to.

    Attributes:
        write: from a network and two images to the file's content.
        run: from the content and uint8 images to logits.
        packages: that it needs besides torch.
        checked_by: the program that `run` uses.
    """

    write: Callable[[TrainedNetwork, Tensor], bytes]
    run: Run
    packages: tuple[str, ...] = ()
    checked_by: Callable[[], str] = lambda: "torch"


@dataclass(frozen=True)
class Exported:
    """An exported network.

    Attributes:
        content: of the file.
        difference: largest difference of a logit from torch's, as a share of the largest logit.
        checked_by: the program that computed the logits.
    """

    content: bytes
    difference: float
    checked_by: str


def export_network(network: TrainedNetwork, form: str) -> Exported:
    """Export a network, and compare what was exported with the network on 16 images, together and one alone.

    Args:
        network: as `load_network` returned it, on the CPU.
        form: a key of `FORMS`.

    Raises:
        EnvironmentFault: a package is missing.
        InputError: the network cannot be exported, or gives other logits when it was.
    """
    chosen = FORMS[form]
    missing = [package for package in chosen.packages if find_spec(package) is None]
    if missing:
        raise EnvironmentFault(f"--to {form}", f"{missing[0]} is not installed", "pip install 'mapolicy[onnx]'")
    images = torch.randint(
        0, 256, (CHECKED_IMAGES, *network.config.pretrained_cfg.input_size), dtype=torch.uint8,
        generator=generator(0, "export", "images", 0),
    )  # fmt: skip
    arch = network.config.architecture
    with torch.inference_mode():
        expected = network(images)
    try:
        with _quiet(), torch.no_grad():
            content = chosen.write(network, images[:2])
            found = [chosen.run(content, images), chosen.run(content, images[:1])]
    except MemoryError:
        raise
    except Exception as problem:  # exporters raise exceptions of many kinds
        reason = escaped(str(problem).strip().split("\n")[0], 100)
        raise InputError(arch, f"cannot be exported to {form} ({reason})", "try another --to") from None
    scale = float(expected.abs().max().clamp(min=1e-6))
    difference = max(
        float((got - wanted).abs().max()) / scale for got, wanted in zip(found, (expected, expected[:1]), strict=True)
    )
    if not difference <= TOLERANCE:  # also if it is not a number
        why = f"as {form} it gives other logits than torch: {difference:.2g} of the largest, allowed {TOLERANCE:g}"
        raise InputError(arch, why, "try another --to")
    return Exported(content, difference, chosen.checked_by())


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print, and warn of what the check finds out."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _described(network: TrainedNetwork) -> dict[str, Any]:
    return {DESCRIPTION: network.config.to_json()}


def _dynamic() -> dict[str, Any]:
    return {"images": {0: torch.export.Dim("batch", min=1)}}


def _write_torchscript(network: TrainedNetwork, images: Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(network, images, check_trace=False), buffer, _extra_files=_described(network))
    return buffer.getvalue()


def _run_torchscript(content: bytes, images: Tensor) -> Tensor:
    logits: Tensor = torch.jit.load(io.BytesIO(content))(images)
    return logits


def _write_exported(network: TrainedNetwork, images: Tensor) -> bytes:
    program = torch.export.export(network, (images,), dynamic_shapes=_dynamic())
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=_described(network))
    return buffer.getvalue()


def _run_exported(content: bytes, images: Tensor) -> Tensor:
    logits: Tensor = torch.export.load(io.BytesIO(content)).module()(images)
    return logits


def _write_onnx(network: TrainedNetwork, images: Tensor) -> bytes:
    program = torch.onnx.export(
        network, (images,), input_names=["images"], output_names=["logits"], dynamic_shapes=_dynamic(), dynamo=True,
        verbose=False,
    )  # fmt: skip
    assert program is not None
    model = program.model_proto
    for key, value in _described(network).items():
        model.metadata_props.add(key=key, value=value)
    content: bytes = model.SerializeToString()
    return content


def _run_onnx(content: bytes, images: Tensor) -> Tensor:
    inputs = {"images": images.numpy()}
    outputs: Any
    if find_spec("onnxruntime") is not None:
        import onnxruntime

        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        outputs = session.run(["logits"], inputs)
    else:
        import onnx
        from onnx.reference import ReferenceEvaluator

        outputs = ReferenceEvaluator(onnx.load_from_string(content)).run(["logits"], inputs)
    return torch.from_numpy(outputs[0])


def _onnx_runner() -> str:
    return "onnxruntime" if find_spec("onnxruntime") is not None else "onnx's reference"


FORMS: Mapping[str, Form] = {
    "onnx": Form(_write_onnx, _run_onnx, ("onnx", "onnxscript"), _onnx_runner),
    "torchscript": Form(_write_torchscript, _run_torchscript),
    "exported": Form(_write_exported, _run_exported),
}
