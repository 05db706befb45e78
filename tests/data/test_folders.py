"""Folders as people have them: splits by many names, one level too high, leftovers, formats, links, class names."""

import unicodedata
from pathlib import Path

import pytest
import torch
from PIL import Image

from mapolicy.data.dataset_factory import open_source
from mapolicy.data.folders import split_role
from mapolicy.data.image_dataset import Source
from mapolicy.errors import InputError
from tests.helpers.image_folders import CLASSES, write_folder


def opened(root: Path, **options: bool) -> Source:
    return open_source(f"folder:{root}", root.parent, **options)


def left_out(source: Source) -> dict[str, str]:
    return {each.path: each.why for each in source.left_out}


# ---- splits


@pytest.mark.parametrize(
    ("names", "role"),
    [
        (("train", "Train", "TRAINING", "training_set", "train-images", "Train Set", "train_data"), "train"),
        (("val", "valid", "Validation", "validation_set", "dev", "eval"), "validation"),
        (("test", "Test", "testing", "test_set", "TestImages"), "test"),
        (("tests", "trains", "valley", "cat", "train2", "contest", "detest"), None),
    ],
)
def test_names_of_splits(names: tuple[str, ...], role: str | None) -> None:
    assert {split_role(name) for name in names} == {role}


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "valid"), ("train", "validation"), ("Train", "Test"), ("training_set", "test_set"), ("TRAIN", "VAL")],
)
def test_split_folders_are_recognised_by_any_name(tmp_path: Path, train: str, test: str) -> None:
    write_folder(tmp_path / "zoo" / train)
    write_folder(tmp_path / "zoo" / test, per_class=2)
    source = opened(tmp_path / "zoo")
    assert (source.name, source.classes, len(source.pool)) == ("folder:zoo", CLASSES, 36)
    assert source.open_test is not None
    assert len(source.open_test()) == 6
    assert source.meta_validation is None
    assert source.notes == (
        f"{train}/ for training, {test}/ for testing; meta-validation images are drawn from {train}/",
    )


def test_the_users_validation_split_is_the_meta_validation_split(tmp_path: Path) -> None:
    for part, count in (("Train", 5), ("Valid", 2), ("Test", 3)):
        write_folder(tmp_path / "zoo" / part, per_class=count)
    source = opened(tmp_path / "zoo")
    assert source.meta_validation is not None
    assert source.open_test is not None
    assert (len(source.pool), len(source.open_test())) == (21, 9)
    assert {source.pool.name(int(index)).split("/")[0] for index in source.meta_validation} == {"Valid"}
    assert torch.bincount(source.pool.labels[source.meta_validation]).tolist() == [2, 2, 2]
    assert source.notes == ("Train/ for training, Valid/ for meta-validation, Test/ for testing",)


def test_a_test_folder_without_classes_is_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path / "zoo" / "train")
    (tmp_path / "zoo" / "test").mkdir()
    Image.new("L", (3, 3)).save(tmp_path / "zoo" / "test" / "1.png")
    (tmp_path / "zoo" / "Examples").mkdir()
    (tmp_path / "zoo" / "README.md").write_text("x")
    source = opened(tmp_path / "zoo")
    assert (len(source.pool), source.open_test) == (36, None)
    assert left_out(source) == {
        "test/": "has no class folders, so its images have no labels",
        "Examples/": "lies beside the splits",
        "README.md": "lies beside the splits",
    }


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    for part in ("Train", "training_set", "test"):
        write_folder(tmp_path / "zoo" / part, per_class=1)
    with pytest.raises(InputError, match="both 'Train' and 'training_set' look like its train split; rename"):
        opened(tmp_path / "zoo")
    (tmp_path / "zoo" / "Train").rename(tmp_path / "zoo" / "train")  # the plain name is meant
    source = opened(tmp_path / "zoo")
    assert left_out(source) == {"training_set/": "lies beside the splits"}


def test_validation_classes_must_be_the_training_splits(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        write_folder(tmp_path / "zoo" / part, per_class=1)
    (tmp_path / "zoo" / "val" / "cow").rename(tmp_path / "zoo" / "val" / "Cow")
    with pytest.raises(
        InputError, match="val: its classes are not the training split's: class 'Cow' is only in this split"
    ):
        opened(tmp_path / "zoo")


def test_an_accent_may_be_written_in_two_ways(tmp_path: Path) -> None:
    """An archive may hold a letter and its accent apart; their order among other names is then another one."""
    names = ("f", *(unicodedata.normalize(form, "\u00e9") for form in ("NFD", "NFC")))
    for part, accent in (("train", names[1]), ("val", names[2]), ("test", names[2])):
        write_folder(tmp_path / "zoo" / part, classes=("f", accent), per_class=2)
    source = opened(tmp_path / "zoo")
    assert source.classes == (names[1], "f")
    assert source.open_test is not None
    for images in (source.pool, source.open_test()):
        for index, label in enumerate(images.labels.tolist()):
            assert ("/f/" in f"/{images.name(index)}") == bool(label)


# ---- one level too high


def test_linked_folders_are_no_level(tmp_path: Path) -> None:
    """Half of the images of each class come through a link of the same name."""
    root = write_folder(tmp_path / "zoo", per_class=2)
    for name in CLASSES:
        (root / name / "more").symlink_to(write_folder(tmp_path / "else", classes=(name,), per_class=2) / name)
    assert torch.bincount(opened(root).pool.labels).tolist() == [4, 4, 4]


def test_the_folder_that_was_typed_is_not_named(tmp_path: Path) -> None:
    for part in ("train", "others"):
        write_folder(tmp_path / "zoo" / part, per_class=3 if part == "train" else 2)
    with pytest.raises(InputError, match=r"use folder:.*/zoo/train, or add"):
        opened(tmp_path / "zoo")


def test_a_repositorys_root_is_refused_and_the_folder_named(tmp_path: Path) -> None:
    root = tmp_path / "Sign-Language"
    write_folder(root / "Dataset")
    (root / "Examples").mkdir()
    Image.new("RGB", (8, 8)).save(root / "Examples" / "example_0.JPG")
    with pytest.raises(
        InputError, match=rf"Dataset holds folders of images.*use folder:.*/{root.name}/Dataset, or add --nest"
    ):
        opened(root)
    assert len(opened(root / "Dataset").pool) == 36
    source = opened(root, nested_classes=True)
    assert (source.classes, len(source.pool)) == (("Dataset", "Examples"), 37)


def test_several_sets_of_the_same_classes_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "zoo" / "setA")
    write_folder(tmp_path / "zoo" / "setB")
    with pytest.raises(InputError, match=r"setA and setB hold folders.*use folder:.*/zoo/setA, or add --nested"):
        opened(tmp_path / "zoo")


def test_a_folder_above_splits_is_refused_and_the_splits_folder_named(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_folder(tmp_path / "zoo" / "images" / part, per_class=2)
    with pytest.raises(InputError, match=r"use folder:.*/zoo/images, or add"):
        opened(tmp_path / "zoo")


def test_splits_below_the_classes_are_refused(tmp_path: Path) -> None:
    for name in CLASSES:
        write_folder(tmp_path / "zoo" / name, classes=("train", "test"), per_class=2)
    with pytest.raises(InputError, match="class folders hold the splits test and train; use test/CLASS/IMAGE instead"):
        opened(tmp_path / "zoo")


def test_a_class_may_hold_some_images_deeper(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "zoo")
    write_folder(root / "ant", classes=("red", "black"), per_class=2)
    write_folder(root / "bee", classes=("red",), per_class=2)
    assert len(opened(root).pool) == 36 + 6


# ---- leftovers and formats


def test_leftovers_are_left_out_and_listed(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "zoo", per_class=2)
    for folder in ("__pycache__", "__MACOSX", ".idea", ".ipynb_checkpoints", "ant/.ipynb_checkpoints", "ant/@eaDir"):
        (root / folder).mkdir()
        Image.new("L", (3, 3)).save(root / folder / "x.png")
    for file in ("ant/._x.jpg", "ant/.DS_Store", "bee/Thumbs.db", "bee/notes.txt", "cow/LICENSE", "labels.csv"):
        (root / file).write_bytes(b"x")
    source = opened(root)
    assert (source.classes, len(source.pool)) == (CLASSES, 6)
    assert left_out(source) == {
        **dict.fromkeys((".idea/", ".ipynb_checkpoints/", "ant/.ipynb_checkpoints/"), "hidden"),
        **dict.fromkeys(("__pycache__/", "__MACOSX/", "ant/@eaDir/", "bee/Thumbs.db"), "left by another program"),
        **dict.fromkeys(("ant/._x.jpg", "ant/.DS_Store"), "hidden"),
        "bee/notes.txt": ".txt is not the ending of an image format",
        "cow/LICENSE": "has no image format's ending",
        "labels.csv": "lies beside the class folders",
    }


@pytest.mark.parametrize(
    "ending",
    ["jfif", "jpe", "JPG", "gif", "Gif", "avif", "jp2", "webp", "bmp", "TIF", "pcx", "tga", "ico", "qoi", "png", "ppm"],
)
def test_every_format_that_pillow_reads_is_read(tmp_path: Path, ending: str) -> None:
    root = write_folder(tmp_path / "zoo", per_class=1, size=(16, 16))
    Image.init()
    form = Image.registered_extensions()[f".{ending.lower()}"]
    expected = Image.new("RGB", (16, 16), (200, 40, 40))
    expected.save(root / "ant" / f"x.{ending}", format=form)
    source = opened(root)
    assert len(source.pool) == 4
    (index,) = (n for n in range(4) if source.pool.name(n) == f"ant/x.{ending}")
    found = source.pool.read(index).convert("RGB")
    assert found.size == (16, 16)
    assert max(abs(a - b) for a, b in zip(found.getpixel((8, 8)), (200, 40, 40), strict=True)) < 12


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "zoo", per_class=1)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(root / "ant" / "x.gif", save_all=True, append_images=frames[1:])
    source = opened(root)
    assert source.pool.header(1).animated
    assert source.pool.read(1).convert("RGB").getpixel((3, 3)) == (255, 0, 0)


def test_postscript_is_not_run(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "zoo", per_class=1)
    Image.new("RGB", (8, 8)).save(root / "ant" / "x.eps")
    (root / "ant" / "x.eps").rename(root / "bee" / "x.jpg")
    Image.new("RGB", (8, 8)).save(root / "ant" / "y.eps")
    source = opened(root)
    assert left_out(source) == {"ant/y.eps": ".eps is not the ending of an image format"}
    with pytest.raises(InputError, match=r"bee/x\.jpg: is not an image that Pillow can read"):
        source.pool.read(2)


# ---- links and names


def test_linked_folders_are_followed_once_each(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "zoo", per_class=2)
    elsewhere = write_folder(tmp_path / "more", classes=("a",), per_class=3) / "a"
    (root / "ant" / "a link").symlink_to(elsewhere)
    (root / "ant" / "the same").symlink_to(elsewhere)
    (root / "bee" / "inner").mkdir()
    Image.new("L", (3, 3)).save(root / "bee" / "inner" / "x.png")
    (root / "bee" / "again").symlink_to(root / "bee" / "inner")
    source = opened(root)
    assert torch.bincount(source.pool.labels).tolist() == [5, 3, 2]
    names = [source.pool.name(index) for index in range(len(source.pool))]
    assert "bee/inner/x.png" in names, "a real folder's images keep their names"
    assert left_out(source) == dict.fromkeys(
        ("ant/the same/", "bee/again/"), "links to a folder that the class has already"
    )


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_loops_of_links_are_refused(tmp_path: Path, target: str) -> None:
    root = write_folder(tmp_path / "above" / "zoo", per_class=1)
    (root / "ant" / "loop").symlink_to(target, target_is_directory=True)
    with pytest.raises(InputError, match=r"loop: is a link to a folder that it lies in; remove the link"):
        opened(root)


def test_class_names_of_every_script(tmp_path: Path) -> None:
    names = ("two words", unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é"), "中文", "ß")
    write_folder(tmp_path / "zoo", classes=names, per_class=1)
    assert opened(tmp_path / "zoo").classes == tuple(sorted(names))
