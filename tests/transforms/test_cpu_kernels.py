"""What numba is asked for; tests/test_operations.py compares what comes out with Pillow, pixel for pixel."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mapolicy.transforms import cpu_kernels as kernels
from mapolicy.transforms.space import OPERATION_NAMES


def test_works_where_no_machine_code_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """numba refuses to cache where neither the module's folder nor the user's can be written to."""
    asked = []

    def njit(**options: bool) -> Callable[[Any], Any]:
        asked.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")
        return lambda function: function

    monkeypatch.setattr(kernels, "njit", njit)

    def function(number: int) -> int:
        return number + 1

    assert kernels.compiled(function)(1) == 2
    first, second = asked
    assert first == second | {"cache": True}


def test_the_machine_code_is_one_for_all_batches() -> None:
    """Another layout or type would compile again, seconds in the middle of a run."""
    value = np.zeros((1, 2))
    for channels in (1, 3):
        images = np.zeros((2, channels, 4, 5), np.uint8)
        operation = np.full((1, 2), OPERATION_NAMES.index("Identity"))
        kernels.transform(images, operation, value, np.zeros(channels, np.uint8), np.empty_like(images), 0, 2)
    assert len(kernels.transform.signatures) == 1  # type: ignore[attr-defined]  # numba's


def test_whole_numbers_for_a_thirteenth() -> None:
    """Sharpness multiplies by 5042 / 65536 where it means the rounded thirteenth."""
    for total in range(13 * 255 + 1):
        assert ((total + 6) * 5042) >> 16 == (total + 6) // 13
