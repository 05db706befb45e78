"""Registered operations and spaces: what they do to images, embeddings and texts, and what is refused."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mapolicy.errors import UsageError
from mapolicy.transforms import functional
from mapolicy.transforms.functional import apply_operation, apply_operations, operation_function
from mapolicy.transforms.parse import parse_transformations, spelled
from mapolicy.transforms.space import (
    DEFAULT_SPACE,
    OPERATION_NAMES,
    OPERATION_SPECS,
    SPACES,
    OperationSpace,
    Range,
    register_operation,
    register_space,
)
from mapolicy.transforms.transformation import Transformation

SEEN: list[tuple[int, list[float]]] = []


def invert(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    return 255 - images


def lighten(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    SEEN.append((len(images), value.tolist()))
    return (images + value[:, None, None, None]).clamp(0, 255).to(torch.uint8)


@pytest.fixture
def space() -> Iterator[OperationSpace]:
    register_operation("Invert", "255 minus the value")(invert)
    register_operation("Lighten", "adds to the value", Range(0, 100, signed=True), "levels")(lighten)
    yield register_space("mine", ["Lighten", *OPERATION_NAMES[:3], "Invert", "Identity"], "some")
    SPACES.remove("mine")
    OPERATION_SPECS.remove("Invert")
    OPERATION_SPECS.remove("Lighten")


def noise(batch: int) -> Tensor:
    return torch.randint(0, 256, (batch, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_registered_space_has_its_own_size(space: OperationSpace) -> None:
    assert SPACES["mine"] is space
    assert (space.size, space.embedding_width) == (6, 12)
    assert space.names == ("Lighten", "AutoContrast", "Equalize", "Rotate", "Invert", "Identity")
    assert space.has_magnitude == (True, False, False, True, False, False)
    assert space.ranges["Lighten"] == Range(0, 100, signed=True)
    assert OPERATION_SPECS["Lighten"].limits == (-100, 100)


@pytest.mark.parametrize("compiled", [True, False])
def test_registered_and_built_in_operations_of_one_batch(
    space: OperationSpace, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(functional, "COMPILED", frozenset())
    images, draws = noise(60), torch.Generator().manual_seed(1)
    before = images.clone()
    steps = [
        (torch.randint(0, 6, (60,), generator=draws), torch.rand(60, generator=draws, dtype=torch.float64) * 20 - 10)
        for _ in range(2)
    ]
    fill = torch.tensor([9, 8, 7], dtype=torch.uint8)
    found = apply_operations(images, steps, "mine", fill)
    assert torch.equal(images, before)
    for row in range(60):
        image = images[row : row + 1]
        for index, magnitude in steps:
            name, level = space.names[int(index[row])], magnitude[row : row + 1]
            if name == "Lighten":
                image = (image + 10 * float(level)).clamp(0, 255).to(torch.uint8)
            elif name == "Invert":
                image = 255 - image
            else:
                image = apply_operation(image, torch.tensor([OPERATION_NAMES.index(name)]), level, fill=fill)
        assert torch.equal(found[row : row + 1], image), row


def test_a_registered_operation_gets_all_images_of_a_step_at_once(space: OperationSpace) -> None:
    SEEN.clear()
    apply_operation(noise(4), torch.tensor([0, 4, 0, 5]), torch.tensor([5.0, 0.0, -10.0, 0.0]), "mine")
    assert SEEN == [(2, [50.0, -100.0])]


def test_embedding_pair_and_text_count_in_the_space(space: OperationSpace) -> None:
    chosen = parse_transformations("lighten:-4,invert; Rotate:2", "mine")
    assert chosen.pair.tolist() == [0 * 6 + 4, 3 * 6 + 5]
    assert spelled(chosen) == ["Lighten:-4.0, Invert", "Rotate:2.0, Identity"]
    embedding = chosen.embed()
    assert embedding.shape == (2, 12)
    assert embedding.nonzero().tolist() == [[0, 0], [0, 9], [1, 6], [1, 11]]
    assert embedding[embedding > 0].tolist() == [5, 11, 3, 11]
    moved = chosen.to(torch.device("cpu")).followed_by(chosen)
    assert moved.space is space
    assert len(moved) == 4
    images = noise(2)
    assert torch.equal(chosen.apply(images), chosen.apply(images, "mine"))
    with pytest.raises(UsageError, match="no operation 'Invert'"):
        parse_transformations("Invert")


def test_drawn_transformations_keep_their_space(space: OperationSpace) -> None:
    first = torch.tensor([0, 5])
    drawn = Transformation.draw_magnitudes(first, first, torch.Generator().manual_seed(0), space)
    plain = Transformation.draw_magnitudes(first, first, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.magnitude1, plain.magnitude1)
    assert (drawn.space.name, plain.space.name) == ("mine", DEFAULT_SPACE)


def test_a_cpu_function_serves_images_on_the_cpu() -> None:
    register_operation("Twice", "two ways", cpu_function=lambda images, value, fill: images * 0 + 1)(
        lambda images, value, fill: images * 0 + 2
    )
    try:
        images, fill = noise(2), torch.zeros(3, dtype=torch.uint8)
        assert operation_function("Twice")(images, torch.zeros(2), fill).unique().tolist() == [1]
        meta = torch.device("meta")
        assert operation_function("Twice")(images.to(meta), torch.zeros(2), fill).device == meta
    finally:
        OPERATION_SPECS.remove("Twice")


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda images, value, fill: images.float(), r"Wrong returned torch.float32 \[2, 3, 8, 8\]"),
        (lambda images, value, fill: images[:1], r"Wrong returned torch.uint8 \[1, 3, 8, 8\]"),
        (lambda images, value, fill: None, "Wrong returned NoneType"),
    ],
)
def test_a_wrong_answer_names_the_operation(function, why: str) -> None:
    register_operation("Wrong", "returns something else")(function)
    try:
        with pytest.raises(ValueError, match=why):
            apply_operation(
                noise(2), torch.zeros(2, dtype=torch.int64), torch.zeros(2), OperationSpace("x", {"Wrong": None})
            )
    finally:
        OPERATION_SPECS.remove("Wrong")


@pytest.mark.parametrize(
    ("operations", "why"),
    [
        (["Identity"], "needs Identity and 1 to 63 other operations"),
        (["Rotate", "Color"], "needs Identity"),
        (["Identity", "Rotate", "Rotate"], "names an operation twice"),
        ({"Identity": None, "Rotate": None}, "operation Rotate of space 'mine' needs a range"),
        ({"Identity": None, "Equalize": Range(0, 1)}, "operation Equalize of space 'mine' has no range"),
    ],
)
def test_a_space_that_cannot_be_used_is_refused(operations, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        register_space("mine", operations, "some")
    assert "mine" not in SPACES


def test_names_are_taken_once() -> None:
    with pytest.raises(ValueError, match="operation 'Rotate' exists already"):
        register_operation("Rotate", "again")(invert)
    with pytest.raises(ValueError, match="operation space 'wide' exists already"):
        register_space("wide", OPERATION_NAMES, "again")
    with pytest.raises(UsageError, match="there is none called 'rotate'; did you mean Rotate"):
        register_space("mine", ["Identity", "rotate"], "some")
