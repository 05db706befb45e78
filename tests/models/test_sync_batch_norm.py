"""Batch normalisation over several processes against torch's over the whole batch: value, both derivatives."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from mapolicy.bilevel.forward_mode import load_rules
from mapolicy.distributed import ALONE, Communicator, communicator
from mapolicy.models.sync_batch_norm import batch_statistics
from tests.helpers.ranks import on_ranks

SIZE = 2


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def results(shape: tuple[int, ...], affine: bool, synchronised: bool) -> dict[str, Tensor]:
    """Of this process's rows of an input of `shape`; what belongs to the channels is summed over the processes."""
    load_rules()
    group: Communicator = communicator() if synchronised else ALONE
    shard = group.shard(shape[0])
    input, upstream, tangent = (shard.of(drawn(*shape, seed=seed)) for seed in (0, 1, 2))
    input = (input * 3 + 5).requires_grad_()
    channels = shape[1]
    weight, bias = (drawn(channels, seed=seed).requires_grad_() for seed in (3, 4))
    mean, var = torch.zeros(channels, dtype=torch.float64), torch.ones(channels, dtype=torch.float64)
    factors = (weight, bias) if affine else (None, None)
    with batch_statistics(synchronised, group):
        value = F.batch_norm(input, mean, var, *factors, training=True, momentum=0.3)
        value.backward(upstream)
        with forward_ad.dual_level():
            moving = forward_ad.make_dual(input.detach(), tangent)
            moved = [forward_ad.make_dual(f.detach(), f.detach() + 1) if f is not None else None for f in factors]
            slope = forward_ad.unpack_dual(F.batch_norm(moving, None, None, *moved, training=True)).tangent
    by_channel = group.sum([weight.grad, bias.grad]) if weight.grad is not None and bias.grad is not None else []
    assert input.grad is not None
    assert slope is not None
    rows = {"value": value.detach(), "gradient": input.grad, "slope": slope}
    own = {"mean": mean, "var": var} | {f"factor{place}": total for place, total in enumerate(by_channel)}
    return {name: group.gather(tensor) for name, tensor in rows.items()} | own


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(6, 3, 4, 5), (8, 3)])
def test_several_processes_normalise_like_one(shape: tuple[int, ...], affine: bool, tmp_path: Path) -> None:
    expected = results(shape, affine, False)
    for got in on_ranks(SIZE, partial(results, shape, affine, True), tmp_path):
        assert set(got) == set(expected)
        for name, tensor in expected.items():
            torch.testing.assert_close(got[name], tensor, rtol=1e-12, atol=1e-12, msg=name)


def test_a_process_alone_and_evaluation_are_torchs() -> None:
    assert type(batch_statistics(True, ALONE)).__name__ == "nullcontext"

    class Two(Communicator):
        size = 2

    layer, images = torch.nn.BatchNorm2d(3).eval(), drawn(2, 3, 4, 4, seed=0).float()
    expected = layer(images)
    with batch_statistics(True, Two()):
        assert torch.equal(layer(images), expected)


def test_half_precision_is_normalised_in_single(tmp_path: Path) -> None:
    def halves() -> Tensor:
        shard = communicator().shard(8)
        images = shard.of(drawn(8, 3, 16, 16, seed=0) + 100).bfloat16()
        with batch_statistics(True, communicator()):
            return F.batch_norm(images, None, None, training=True)

    got = torch.cat(on_ranks(SIZE, halves, tmp_path))
    assert got.dtype == torch.bfloat16
    rounded = (drawn(8, 3, 16, 16, seed=0) + 100).bfloat16().double()
    torch.testing.assert_close(got.double(), F.batch_norm(rounded, None, None, training=True), rtol=0.01, atol=0.01)
