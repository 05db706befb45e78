"""Forward-mode differentiation of a forward that has just been computed: its values are known, only tangents are new.

A forward-mode pass computes values and tangents together. For a convolutional network this costs three forwards: one
for the values, and two for the products of each factor's tangent with the other's value. If the same forward (same
batch, parameters and noise) was computed before and its graph is kept, the graph holds nearly all values. `recorded`
notes which, and `directional_derivative` takes them from there: two forwards.

Values that the graph does not hold are not needed: they only reach operations that are linear in them. They are
replaced by NaN, so a network that does need one gives NaN and not a wrong number.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
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

SMALL = 2**18  # values that are kept even if the graph does not hold them
AGREEMENT = 1e-3  # relative; rounding in float32 is a hundred times smaller

PRODUCTS: tuple[Function, ...] = (torch.conv2d, F.linear)


@dataclass
class _Entry:
    """One call of a forward.

    Attributes:
        function: which.
        value: its result; None if it is large and the graph does not hold it, or if it was changed in place.
        version: torch's count of the result's in-place changes at that time.
        inputs: for batch normalisation its input, mean and inverse deviation, which the graph holds.
    """

    function: Function
    value: Tensor | None
    version: int
    inputs: tuple[Tensor, ...]


@dataclass
class Recording:
    """The calls of a forward, in its order."""

    entries: list[_Entry] = field(default_factory=list)

    def note(self, function: Function, value: Tensor, *inputs: Tensor) -> None:
        """Record one call."""
        self.entries.append(_Entry(function, value.detach(), value._version, tuple(one.detach() for one in inputs)))


@contextmanager
def recorded() -> Iterator[Recording]:
    """Record the forward of a network within this context; leave it before the graph is freed."""
    recording = Recording()
    kept: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), _Recorder(recording):
        yield recording
    for entry in recording.entries:
        value = entry.value
        assert value is not None
        large = value.numel() > SMALL and value.untyped_storage().data_ptr() not in kept
        if large or value._version != entry.version:
            entry.value = None


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
    return _derivative(function, parameters, direction, _Rules(recording))


def agrees_with_torch(function: Losses, parameters: Parameters, recording: Recording | None = None) -> bool:
    """Whether `directional_derivative` gives what torch's own forward mode gives, up to rounding."""
    direction = {name: tensor.detach().abs() + 0.01 for name, tensor in parameters.items()}
    try:
        ours = directional_derivative(function, parameters, direction, recording)
    except RuntimeError:  # another function, or another shape
        return False
    torchs = torchs_derivative(function, parameters, direction)
    return bool((ours - torchs).norm() <= AGREEMENT * torchs.norm())


def torchs_derivative(function: Losses, parameters: Parameters, direction: Parameters) -> Tensor:
    """The same derivative as `directional_derivative` by torch's own forward mode, as its check."""
    return _derivative(function, parameters, direction, nullcontext())


def _derivative(
    function: Losses, parameters: Parameters, direction: Parameters, rules: AbstractContextManager[Any]
) -> Tensor:
    load_rules()
    with forward_ad.dual_level():
        at = {name: forward_ad.make_dual(tensor.detach(), direction[name]) for name, tensor in parameters.items()}
        with rules:
            value, tangent = forward_ad.unpack_dual(function(at))
        return torch.zeros_like(value) if tangent is None else tangent.detach()


class ReplayError(RuntimeError):
    """A forward made other calls than the recorded one."""


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

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Value, mean and inverse deviation, by the kernel of `F.batch_norm`, which keeps the statistics to itself."""
        value, mean, inverse = torch.native_batch_norm(
            self.input, self.weight, self.bias, self.running_mean, self.running_var, True, self.momentum, self.eps
        )
        return value, mean, inverse

    def at_values(self) -> "_Normalisation":
        """The same without tangents."""
        weight, bias = (None if factor is None else _value(factor) for factor in (self.weight, self.bias))
        return replace(self, input=_value(self.input), weight=weight, bias=bias)


class _Recorder(TorchFunctionMode):
    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_function__(
        self, function: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.batch_norm and (call := _Normalisation(*args, **kwargs)).training:
            value, mean, inverse = call.compute()
            self._recording.note(function, value, call.input, mean, inverse)
            return value
        value = function(*args, **kwargs)
        if function in PRODUCTS or function is F.relu:
            self._recording.note(function, value)
        return value


class _Rules(TorchFunctionMode):
    """Forward mode of products, ReLU and batch normalisation; all other functions are torch's.

    Their values are taken from the recording where there is one.
    """

    def __init__(self, recording: Recording | None) -> None:
        super().__init__()
        self._entries = None if recording is None else iter(recording.entries)

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

    def _next(self, function: Function) -> _Entry | None:
        """The record of the next call; None if nothing is recorded at all."""
        if self._entries is None:
            return None
        entry = next(self._entries, None)
        if entry is None or entry.function is not function:
            raise ReplayError(f"the network calls {function.__name__} where it did not before")
        return entry

    def _product(
        self, function: Function, input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **options: Any
    ) -> Tensor:
        entry = self._next(function)
        terms: list[Tensor] = []
        if (change := _tangent(weight)) is not None:
            terms.append(function(_value(input), change, None, *rest, **options))
        if (change := _tangent(input)) is not None:
            terms.append(function(change, _value(weight), None, *rest, **options))
        if entry is None or not terms:
            fixed = None if bias is None else _value(bias)
            value: Tensor = function(_value(input), _value(weight), fixed, *rest, **options)
        if not terms:
            return value
        tangent = terms[0] if len(terms) == 1 else terms[0].add_(terms[1])
        if bias is not None and (change := _tangent(bias)) is not None:
            tangent = tangent.add_(change if function is F.linear else change[:, None, None])
        return _dual(value if entry is None else _known(entry, tangent), tangent)

    def _relu(self, input: Tensor) -> Tensor:
        entry, change = self._next(F.relu), _tangent(input)
        if change is None:
            return F.relu(input)
        value = entry.value if entry is not None and entry.value is not None else F.relu(_value(input))
        return _dual(value, torch.ops.aten.threshold_backward(change, value, 0))

    def _normalisation(self, call: _Normalisation) -> Tensor:
        entry, change = self._next(F.batch_norm), _tangent(call.input)
        if entry is None:
            input = _value(call.input)
            value, mean, inverse = call.at_values().compute()
        else:
            input, mean, inverse = entry.inputs
        shape = (1, -1) + (1,) * (input.ndim - 2)
        nothing = torch.zeros_like(inverse)
        weight, weight_change = (None, None) if call.weight is None else forward_ad.unpack_dual(call.weight)
        bias_change = None if call.bias is None else _tangent(call.bias)
        slope = nothing if weight_change is None else weight_change * inverse
        offset = -mean * slope if bias_change is None else bias_change - mean * slope
        if change is None:
            tangent = torch.addcmul(offset.view(shape), input, slope.view(shape))
        else:
            # Batch normalisation's derivative by its input is a symmetric matrix, so its backward gives the tangent.
            tangent = torch.ops.aten.native_batch_norm_backward(
                change, input, weight, None, None, mean, inverse, True, call.eps, [True, False, False]
            )[0]
            tangent = tangent.addcmul_(input, slope.view(shape)).add_(offset.view(shape))
        return _dual(value if entry is None else _known(entry, tangent), tangent)


def _known(entry: _Entry, like: Tensor) -> Tensor:
    """The value that was recorded, or NaN in its place."""
    return torch.full_like(like, torch.nan) if entry.value is None else entry.value


def _value(tensor: Tensor) -> Tensor:
    value: Tensor = forward_ad.unpack_dual(tensor).primal
    return value


def _tangent(tensor: Tensor) -> Tensor | None:
    tangent: Tensor | None = forward_ad.unpack_dual(tensor).tangent
    return tangent


def _dual(value: Tensor, tangent: Tensor) -> Tensor:
    dual: Tensor = forward_ad.make_dual(value, tangent)
    return dual
