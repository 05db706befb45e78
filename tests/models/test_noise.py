"""Shake-Shake and ShakeDrop against their rules written out, forward and gradient, with the noise that was drawn."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mapolicy.models import noise
from mapolicy.models.noise import ShakeDrop, ShakeShake, has_unequal_noise, noise_at_its_mean

COUNT = 6
SHAPE = (COUNT, 3, 4, 4)


def values(seed: int) -> Tensor:
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def factors(layer: Callable[..., Tensor], *inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each input what the layer multiplied its images by, forward and backward, each float [COUNT].

    Found from outside: the output with the other inputs at zero, and the gradient of the output's sum.
    """
    found = []
    for position, x in enumerate(inputs):
        alone = [y if n == position else torch.zeros_like(y) for n, y in enumerate(inputs)]
        torch.manual_seed(3)
        output = layer(*alone)
        (gradient,) = torch.autograd.grad(output.sum(), x)
        forward = output / x
        for each in (forward, gradient):
            assert torch.allclose(each, each[:, :1, :1, :1].expand(SHAPE), rtol=1e-9), "one factor for each image"
        found.append((forward[:, 0, 0, 0].detach(), gradient[:, 0, 0, 0]))
    return found


def test_shake_shake_mixes_each_image_by_its_own_numbers() -> None:
    first, second = values(0), values(1)
    (forward1, backward1), (forward2, backward2) = factors(ShakeShake().train(), first, second)
    for alpha, others in ((forward1, forward2), (backward1, backward2)):
        torch.testing.assert_close(alpha + others, torch.ones(COUNT, dtype=torch.float64))
        assert ((alpha > 0) & (alpha < 1)).all()
        assert len(alpha.unique()) == COUNT
    assert (forward1 - backward1).abs().min() > 1e-3, "backward has numbers of its own"
    torch.manual_seed(3)
    mixed = ShakeShake().train()(first, second)
    expected = torch.stack([a * x + (1 - a) * y for a, x, y in zip(forward1, first, second, strict=True)])
    torch.testing.assert_close(mixed, expected)


def test_shake_shake_is_uniform() -> None:
    layer, ones = ShakeShake().train(), torch.ones(20_000, 1, 1, 1, requires_grad=True)
    torch.manual_seed(0)
    output = layer(ones, torch.zeros_like(ones))
    (gradient,) = torch.autograd.grad(output.sum(), ones)
    for drawn in (output.detach().flatten(), gradient.flatten()):
        quantiles = torch.quantile(drawn, torch.linspace(0, 1, 11))
        torch.testing.assert_close(quantiles, torch.linspace(0, 1, 11), atol=0.02, rtol=0)
    assert abs(torch.corrcoef(torch.stack([output.detach().flatten(), gradient.flatten()]))[0, 1]) < 0.03


def test_shake_drop_gates_the_batch_and_shakes_each_image() -> None:
    layer, ones = ShakeDrop(0.3).train(), torch.ones(50, 1, 1, 1, requires_grad=True)
    torch.manual_seed(0)
    kept, alphas, betas = 0, [], []
    for _ in range(1000):
        output = layer(ones)
        (gradient,) = torch.autograd.grad(output.sum(), ones)
        if (output == 1).any():
            kept += 1
            assert (output == 1).all(), "the gate is one for the batch"
            assert (gradient == 1).all()
        else:
            alphas.append(output.detach().flatten())
            betas.append(gradient.flatten())
    assert kept == pytest.approx(700, abs=3 * (1000 * 0.3 * 0.7) ** 0.5)
    levels = torch.linspace(0, 1, 11)
    torch.testing.assert_close(torch.quantile(torch.cat(alphas), levels), 2 * levels - 1, atol=0.05, rtol=0)
    torch.testing.assert_close(torch.quantile(torch.cat(betas), levels), levels, atol=0.03, rtol=0)
    assert abs(torch.corrcoef(torch.stack([torch.cat(alphas), torch.cat(betas)]))[0, 1]) < 0.03


def test_shake_drop_written_out() -> None:
    x = values(0)
    ((forward, backward),) = factors(ShakeDrop(1.0).train(), x)
    assert len(forward.unique()) == len(backward.unique()) == COUNT
    torch.manual_seed(3)
    output = ShakeDrop(1.0).train()(x)
    upstream = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(output, forward[:, None, None, None] * x)
    (gradient,) = torch.autograd.grad(output, x, upstream)
    torch.testing.assert_close(gradient, backward[:, None, None, None] * upstream)
    ((forward, backward),) = factors(ShakeDrop(0.0).train(), x)
    assert (forward == 1).all()
    assert (backward == 1).all()


@pytest.mark.parametrize("at_mean", [False, True])
def test_evaluation_scales_by_the_mean(at_mean: bool) -> None:
    """And so does training where the noise stands at its mean; both are functions with a true gradient."""
    network = nn.ModuleList([ShakeShake(), ShakeDrop(0.3)]).train(at_mean)
    shake, drop = network
    first, second = values(0), values(1)
    before = torch.get_rng_state()
    with noise_at_its_mean(network if at_mean else nn.Identity()):
        torch.testing.assert_close(shake(first, second), 0.5 * first + 0.5 * second)
        torch.testing.assert_close(drop(first), 0.7 * first)
        assert torch.autograd.gradcheck(shake, (first, second))
        assert torch.autograd.gradcheck(drop, (first,))
    assert torch.equal(before, torch.get_rng_state()), "nothing is drawn"
    assert shake.training == at_mean


def test_forward_has_the_evaluations_factor_on_average() -> None:
    ones = torch.ones(4000, 1, 1, 1)
    torch.manual_seed(0)
    for layer, mean in ((ShakeShake(), 0.5), (ShakeDrop(0.3), 0.7)):
        arguments = (ones, torch.zeros_like(ones)) if isinstance(layer, ShakeShake) else (ones,)
        average = torch.stack([layer.train()(*arguments).mean() for _ in range(2000)]).mean()
        assert float(average) == pytest.approx(mean, abs=0.04)


def test_the_noise_is_torchs_global_one() -> None:
    shake, drop = ShakeShake().train(), ShakeDrop(0.5).train()
    first, second = values(0), values(1)

    def once(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.stack([shake(first, second), drop(first), drop(second)])

    assert torch.equal(once(1), once(1))
    assert not torch.equal(once(1), once(2))


def test_noise_is_back_after_an_error() -> None:
    layer = ShakeShake().train()
    with pytest.raises(RuntimeError, match="in between"), noise_at_its_mean(nn.Sequential(layer)):
        raise RuntimeError("in between")
    assert layer.noisy
    assert not layer.eval().noisy


def test_which_networks_have_it() -> None:
    assert has_unequal_noise(nn.Sequential(nn.Linear(2, 2), nn.ModuleList([ShakeDrop(0.1)])))
    assert not has_unequal_noise(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))


def test_shaken_is_what_both_layers_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements replace it."""
    calls = []
    monkeypatch.setattr(noise, "shaken", lambda x, forward, backward: calls.append(forward.shape) or x)
    ShakeShake().train()(values(0), values(1))
    ShakeDrop(0.5).train()(values(0))
    assert calls == [(COUNT, 1, 1, 1)] * 3
