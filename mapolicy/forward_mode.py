"""Forward-mode differentiation of a forward that has just been computed: its values are known, only tangents are new.

A forward-mode pass computes values and tangents side by side, which costs three forwards of a convolutional network:
one for the values and two for the products of either factor's tangent with the other's value. Where the same forward,
of the same batch at the same parameters with the same noise, was computed before and its graph is kept, the graph holds
nearly all of the values. `recorded` notes which, and `directional_derivative` takes them from there: two forwards.

What the graph does not hold is not kept for it either: such values matter only to operations that are linear in them.
They are replaced by NaN, so that a network in which one does matter gives NaN and not a wrong number.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

Parameters = Mapping[str, Tensor]
Losses = Callable[[dict[str, Tensor]], Tensor]
Function = Callable[..., Any]

SMALL = 2**20  # values that are kept even if the graph does not hold them
AGREEMENT = 1e-3  # relative; rounding in float32 is a hundred times smaller

PRODUCTS: tuple[Function, ...] = (torch.conv2d, F.linear)


@dataclass
class _Entry:
    """One call of a forward.

    Attributes:
        function: which.
        values: of a product or a ReLU its value, of a batch normalisation its input, mean and inverse deviation; empty
            where the first of them is large and the graph does not hold it, or where it was changed in place.
        version: torch's count of changes in place of the first value, when it was noted.
    """

    function: Function
    values: tuple[Tensor, ...]
    version: int


@dataclass
class Recording:
    """The calls of a forward, in its order."""

    entries: list[_Entry] = field(default_factory=list)

    def note(self, function: Function, *values: Tensor) -> None:
        """Take in one call."""
        self.entries.append(_Entry(function, tuple(value.detach() for value in values), values[0]._version))


@contextmanager
def recorded() -> Iterator[Recording]:
    """Within it the forward of a network is noted; leave it before the graph is freed."""
    recording = Recording()
    kept: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), _Recorder(recording):
        yield recording
    for entry in recording.entries:
        value = entry.values[0]
        large = value.numel() > SMALL and value.untyped_storage().data_ptr() not in kept
        if large or value._version != entry.version:
            entry.values = ()


def directional_derivative(
    function: Losses, parameters: Parameters, direction: Parameters, recording: Recording | None = None
) -> Tensor:
    """The derivative of `function` at the parameters along the direction, of the function's shape.

    Args:
        function: of the parameters by name; any tensor.
        parameters: where.
        direction: of the parameters' shapes.
        recording: of the same function at the same parameters, with its graph still there; None computes the values
            again.

    Raises:
        ReplayError: the function does not do what was recorded.
    """
    load_rules()
    replay = nullcontext() if recording is None else _Replayer(recording)
    with forward_ad.dual_level():
        at = {name: forward_ad.make_dual(tensor.detach(), direction[name]) for name, tensor in parameters.items()}
        with replay:
            value, tangent = forward_ad.unpack_dual(function(at))
        return torch.zeros_like(value) if tangent is None else tangent.detach()


def replay_agrees(function: Losses, parameters: Parameters, recording: Recording) -> bool:
    """Whether the derivative that replays the recording is the one that computes all values again, up to rounding."""
    direction = {name: tensor.detach().abs() + 0.01 for name, tensor in parameters.items()}
    try:
        replayed = directional_derivative(function, parameters, direction, recording)
    except RuntimeError:  # another function, or another shape
        return False
    computed = directional_derivative(function, parameters, direction)
    return bool((replayed - computed).norm() <= AGREEMENT * computed.norm())


class ReplayError(RuntimeError):
    """A forward took another way than the recorded one."""


@cache
def load_rules() -> None:
    """Let torch load its forward-mode rules, without its warning."""
    # torch loads its forward-mode rules at the first use, and in doing so warns of its own use of torch.jit.script.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
        torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))


@dataclass(frozen=True)
class _Normalisation:
    """The arguments of `F.batch_norm`, by its names."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5


class _Recorder(TorchFunctionMode):
    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_function__(
        self, function: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.batch_norm and (call := _Normalisation(*args, **kwargs)).training:
            # The same kernel as F.batch_norm's, which keeps the statistics to itself.
            value, mean, inverse = torch.native_batch_norm(
                call.input, call.weight, call.bias, call.running_mean, call.running_var, True, call.momentum, call.eps
            )
            self._recording.note(function, call.input, mean, inverse)
            return value
        value = function(*args, **kwargs)
        if function in PRODUCTS or function is F.relu:
            self._recording.note(function, value)
        return value


class _Replayer(TorchFunctionMode):
    """Computes tangents of the functions that were recorded, and leaves all others to torch."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._entries = iter(recording.entries)

    def __torch_function__(
        self, function: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in PRODUCTS:
            return self._product(function, *args, **kwargs)
        if function is F.relu:
            return self._relu(args[0])
        if function is F.batch_norm and (call := _Normalisation(*args, **kwargs)).training:
            return self._normalisation(call)
        return function(*args, **kwargs)

    def _next(self, function: Function) -> tuple[Tensor, ...]:
        entry = next(self._entries, None)
        if entry is None or entry.function is not function:
            raise ReplayError(f"the network calls {function.__name__} where it did not before")
        return entry.values

    def _product(
        self, function: Function, input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **options: Any
    ) -> Tensor:
        values = self._next(function)
        terms: list[Tensor] = []
        if (change := _tangent(weight)) is not None:
            terms.append(function(_value(input), change, None, *rest, **options))
        if (change := _tangent(input)) is not None:
            terms.append(function(change, _value(weight), None, *rest, **options))
        if not terms:
            value: Tensor = function(input, weight, bias, *rest, **options)
            return value
        tangent = terms[0] if len(terms) == 1 else terms[0].add_(terms[1])
        if bias is not None and (change := _tangent(bias)) is not None:
            tangent = tangent.add_(change if function is F.linear else change[:, None, None])
        return _dual(values[0] if values else torch.full_like(tangent, torch.nan), tangent)

    def _relu(self, input: Tensor) -> Tensor:
        values, change = self._next(F.relu), _tangent(input)
        if not values or change is None:
            return F.relu(input)
        return _dual(values[0], torch.ops.aten.threshold_backward(change, values[0], 0))

    def _normalisation(self, call: _Normalisation) -> Tensor:
        values = self._next(F.batch_norm)
        if not values:
            return F.batch_norm(**vars(call))
        input, mean, inverse = values
        shape = (1, -1) + (1,) * (input.ndim - 2)
        nothing = torch.zeros_like(inverse)
        weight, bias = (
            (plain, nothing) if factor is None else forward_ad.unpack_dual(factor)
            for factor, plain in ((call.weight, torch.ones_like(inverse)), (call.bias, nothing))
        )
        scale = weight[0] * inverse
        value = torch.addcmul((bias[0] - mean * scale).view(shape), input, scale.view(shape))
        change = _tangent(call.input)
        slope = nothing if weight[1] is None else weight[1] * inverse
        offset = -mean * slope if bias[1] is None else bias[1] - mean * slope
        if change is None:
            return _dual(value, torch.addcmul(offset.view(shape), input, slope.view(shape)))
        # By its input a batch normalisation's derivative is a symmetric matrix: the backward kernel gives the tangent.
        tangent = torch.ops.aten.native_batch_norm_backward(
            change, input, weight[0], None, None, mean, inverse, True, call.eps, [True, False, False]
        )[0]
        return _dual(value, tangent.addcmul_(input, slope.view(shape)).add_(offset.view(shape)))


def _value(tensor: Tensor) -> Tensor:
    value: Tensor = forward_ad.unpack_dual(tensor).primal
    return value


def _tangent(tensor: Tensor) -> Tensor | None:
    tangent: Tensor | None = forward_ad.unpack_dual(tensor).tangent
    return tangent


def _dual(value: Tensor, tangent: Tensor) -> Tensor:
    dual: Tensor = forward_ad.make_dual(value, tangent)
    return dual
