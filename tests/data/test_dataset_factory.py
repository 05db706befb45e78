"""Data sets by name: every kind is opened for real, on small files made here."""

import hashlib
import os
import pickle
import tarfile
import threading
import warnings
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset
from torchvision.datasets import CIFAR10, CIFAR100, Omniglot

from mapolicy.data import timm_datasets
from mapolicy.data.dataset_factory import open_source
from mapolicy.data.decode import CorruptImageError, bombs_as_errors, decode, read_header
from mapolicy.data.reading import Cropper, ImageReading
from mapolicy.errors import EnvironmentFault, InputError, UsageError
from mapolicy.registries import DATASETS, dataset_entry
from tests.helpers import image_folders
from tests.helpers.image_folders import CLASSES


def write_folder(root, classes=CLASSES, per_class=4, mode="RGB", size=(12, 10)):
    return image_folders.write_folder(root, classes, per_class, size, mode)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


# ---- names


def test_unknown_name_gets_suggestions(tmp_path):
    with pytest.raises(UsageError, match=r"did you mean cifar100"):
        open_source("CIFAR-100", tmp_path)
    for name in ("folder:", "torch/", "x\x1b[2J", "hfds/"):
        with pytest.raises(UsageError) as caught:
            open_source(name, tmp_path)
        assert str(caught.value).isprintable()


def test_digits(tmp_path):
    from sklearn.datasets import load_digits

    source = open_source("digits", tmp_path)
    expected = load_digits()
    assert source.classes == tuple("0123456789")
    assert source.open_test is None
    assert source.pool.labels.tolist() == expected.target.tolist()
    image = source.pool.read(5)
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), np.floor(expected.images[5] * 255 / 16 + 0.5))
    assert list(tmp_path.iterdir()) == []


# ---- folders


def test_folder_without_test_split(tmp_path):
    folder = write_folder(tmp_path / "zoo")
    (folder / ".hidden").mkdir()
    (folder / "ant" / "notes.txt").write_text("no image")
    (folder / "bee" / "deep").mkdir()
    Image.new("L", (3, 3)).save(folder / "bee" / "deep" / "x.PNG")
    source = open_source(f"folder:{folder}/", tmp_path)
    assert source.name == "folder:zoo"
    assert source.classes == ("ant", "bee", "cow")
    assert source.open_test is None
    assert [source.pool.name(index) for index in (0, 8)] == ["ant/00.png", "bee/deep/x.PNG"]
    assert torch.bincount(source.pool.labels).tolist() == [4, 5, 4]
    assert np.array_equal(np.asarray(source.pool.read(1)), np.asarray(Image.open(folder / "ant" / "01.png")))


@pytest.mark.parametrize("test", ["test", "val"])
def test_folder_with_test_split_of_its_own(tmp_path, test):
    write_folder(tmp_path / "zoo" / "train")
    write_folder(tmp_path / "zoo" / test, per_class=2)
    source = open_source("folder:zoo", tmp_path)  # a bare name is looked up in data_dir
    assert source.name == "folder:zoo"
    assert len(source.pool) == 12
    assert len(source.open_test()) == 6


def test_test_split_with_other_classes_is_refused(tmp_path):
    write_folder(tmp_path / "zoo" / "train")
    write_folder(tmp_path / "zoo" / "test", classes=("ant", "bee", "cat"))
    with pytest.raises(InputError, match="'cat' is only in this split"):
        open_source("folder:zoo", tmp_path).open_test()


def test_imagenet_layout(tmp_path):
    with pytest.raises(InputError, match="cannot be downloaded"):
        open_source("imagenet", tmp_path)
    write_folder(tmp_path / "imagenet" / "train", classes=("n01", "n02"))
    write_folder(tmp_path / "imagenet" / "val", classes=("n01", "n02"), per_class=1)
    source = open_source("imagenet", tmp_path)
    assert (source.name, len(source.pool), len(source.open_test())) == ("imagenet", 8, 2)


def make_missing(root):
    pass


def make_file(root):
    root.write_text("x")


def make_empty(root):
    root.mkdir()


def make_flat(root):
    root.mkdir()
    Image.new("L", (2, 2)).save(root / "a.png")


def make_one_class(root):
    write_folder(root, classes=("ant",))


def make_empty_class(root):
    write_folder(root)
    (root / "dodo\x1b[1m").mkdir()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (make_missing, "No such file"),
        (make_file, "Not a directory"),
        (make_empty, "is empty"),
        (make_flat, "no class folders"),
        (make_one_class, "at least two"),
        (make_empty_class, "'dodo.*' has no images"),
    ],
)
def test_bad_folders(tmp_path, make, says):
    root = tmp_path / "zo\x07o"
    make(root)
    with pytest.raises(InputError, match=says) as caught:
        open_source(f"folder:{root}", tmp_path)
    assert str(caught.value).isprintable()
    assert caught.value.remedy


# ---- single images


def spoil_empty(path):
    path.write_bytes(b"")


def spoil_truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_text(path):
    path.write_text("not an image at all")


def spoil_dangling(path):
    path.unlink()
    path.symlink_to("nowhere.png")


def spoil_pipe(path):
    path.unlink()
    os.mkfifo(path)


def spoil_folder(path):
    path.unlink()
    path.mkdir()


def spoil_bomb(path):
    # 20,000 x 20,000 one-bit pixels: above twice Pillow's limit, 50 kB.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    Image.new("1", (20_000, 20_000)).save(path)
    Image.MAX_IMAGE_PIXELS = limit


def spoil_smaller_bomb(path):
    Image.new("1", (10_000, 10_000)).save(path)  # between the limit and twice the limit: Pillow only warns


SPOILERS = [
    spoil_empty,
    spoil_truncated,
    spoil_text,
    spoil_dangling,
    spoil_pipe,
    spoil_bomb,
    spoil_smaller_bomb,
]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_bad_image_is_named(tmp_path, spoil):
    path = write_folder(tmp_path / "zoo", size=(40, 40)) / "ant" / "02.png"
    spoil(path)
    source = open_source("folder:zoo", tmp_path)
    with bombs_as_errors(), pytest.raises(CorruptImageError, match=r"ant/02\.png: ") as caught:
        source.pool.read(2)
    assert caught.value.exit_code == 3
    assert "0x" not in str(caught.value)


def test_bomb_is_refused_whatever_the_warning_filter(tmp_path):
    path = tmp_path / "bomb.png"
    spoil_smaller_bomb(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(CorruptImageError, match="decompression bomb"):
            decode(path.read_bytes(), "bomb")


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, 255),
        ("L", 77, 77),
        ("LA", (77, 255), 77),
        ("LA", (77, 51), 219),  # a fifth of it over white
        ("I;16", 0x4D12, 0x4D),
        ("P", 1, None),
        ("RGBA", (1, 2, 3, 255), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 0), (255, 255, 255)),
    ],
)
def test_modes(tmp_path, mode, colour, expected):
    image = Image.new(mode, (5, 5), colour)
    if mode == "P":
        image.putpalette([9, 9, 9, 50, 60, 70])
        image.info["transparency"] = bytes([0, 255])
        expected = (50, 60, 70)
    image.save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    assert read_header(content, "x").gray == (not isinstance(expected, tuple))
    colours = expected if isinstance(expected, tuple) else (expected,)
    read = ImageReading(len(colours), 5).read(content, "x")
    assert tuple(read[:, 2, 2].tolist()) == colours
    assert (read == read[:, :1, :1]).all()


def test_the_central_crop_against_torchvision():
    from torchvision.transforms import functional

    pixels = np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    got = Cropper(ImageReading(3, 30, share=1.0), False, 0, "train").central(image)
    resized = functional.center_crop(functional.resize(image, 30), 30)  # 80 x 60 to 40 x 30, then 30 x 30
    assert np.abs(got.transpose(1, 2, 0).astype(int) - np.asarray(resized)).max() <= 1
    square = image.crop((0, 0, 60, 60))
    assert np.array_equal(
        Cropper(ImageReading(3, 60, share=1.0), False, 0, "train").central(square).transpose(1, 2, 0),
        np.asarray(square),
    )
    needle = Image.new("L", (1, 20_000), 9)
    assert Cropper(ImageReading(1, 64, share=1.0), False, 0, "train").central(needle).shape == (1, 64, 64)


# ---- downloads: torchvision's own code, on small archives from a server on this machine


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def address(tmp_path, monkeypatch):
    """Of a server of tmp_path; torchvision's download cannot read file:// addresses."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def cifar_archive(folder, address, monkeypatch, kind, right=True):
    """A tiny CIFAR archive on the server, and the class told its checksums."""
    fine = kind is CIFAR100
    names = [f"class {number}" for number in range(3)]
    key = "fine_labels" if fine else "labels"
    inner = folder / "made" / kind.base_folder
    inner.mkdir(parents=True)
    draws = np.random.default_rng(3)

    def batch(name, count):
        data = draws.integers(0, 256, (count, 3072), dtype=np.uint8)
        (inner / name).write_bytes(pickle.dumps({"data": data, key: [index % 3 for index in range(count)]}))
        return [name, md5(inner / name)]

    train_names = [name for name, _ in kind.train_list]
    monkeypatch.setattr(kind, "train_list", [batch(name, 12) for name in train_names])
    monkeypatch.setattr(kind, "test_list", [batch(kind.test_list[0][0], 6)])
    meta = inner / kind.meta["filename"]
    meta.write_bytes(pickle.dumps({kind.meta["key"]: names}))
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta)})
    archive = folder / kind.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(inner, arcname=kind.base_folder)
    monkeypatch.setattr(kind, "tgz_md5", md5(archive) if right else "0" * 32)
    monkeypatch.setattr(kind, "url", f"{address}/{kind.filename}")
    return archive


@pytest.mark.parametrize(("name", "kind", "count"), [("cifar10", CIFAR10, 60), ("cifar100", CIFAR100, 12)])
def test_cifar_downloads_checks_and_reads(tmp_path, address, monkeypatch, capsys, name, kind, count):
    archive = cifar_archive(tmp_path, address, monkeypatch, kind)
    data = tmp_path / "data"
    source = open_source(name, data)
    assert (source.name, len(source.classes), len(source.pool)) == (name, 3, count)
    image = np.asarray(source.pool.read(4))
    entry = pickle.loads((data / kind.base_folder / kind.train_list[0][0]).read_bytes())
    assert np.array_equal(image, entry["data"][4].reshape(3, 32, 32).transpose(1, 2, 0))
    archive.unlink()  # what is there is not downloaded again
    test = open_source(name, data).open_test()
    assert len(test) == 6
    assert capsys.readouterr().out == ""


def test_cifar_opens_the_test_batch_only_when_asked(tmp_path, address, monkeypatch):
    cifar_archive(tmp_path, address, monkeypatch, CIFAR100)
    opened = []
    before = CIFAR100.__init__

    def spy(self, *args, train=True, **kwargs):
        opened.append(train)
        before(self, *args, train=train, **kwargs)

    monkeypatch.setattr(CIFAR100, "__init__", spy)
    source = open_source("cifar100", tmp_path / "data")
    assert opened == [True]
    source.open_test()
    assert opened == [True, False]


def test_wrong_checksum_is_refused_before_the_archive_is_opened(tmp_path, address, monkeypatch):
    cifar_archive(tmp_path, address, monkeypatch, CIFAR100, right=False)

    def opened(*args, **kwargs):
        raise AssertionError("the archive was opened")

    monkeypatch.setattr(tarfile, "open", opened)
    with pytest.raises(InputError, match=r"cifar-100-python\.tar\.gz is not the published file \(wrong MD5\)"):
        open_source("cifar100", tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar-100-python.tar.gz"]


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/gone.tar.gz")  # nobody listens there
    with pytest.raises(InputError, match=r"neither found there nor downloaded.*put cifar-10-python\.tar\.gz"):
        open_source("cifar10", tmp_path / "new" / "data")
    assert list(tmp_path.iterdir()) == []  # no empty folders are left
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar-10-python.tar.gz").write_bytes(b"broken")
    with pytest.raises(InputError, match="wrong MD5"):
        open_source("cifar10", tmp_path / "data")


@pytest.fixture
def no_request(monkeypatch):
    """Whatever reaches for the network fails the test."""

    def reach(*args, **kwargs):
        pytest.fail("the network was asked")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", reach)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", reach)
    monkeypatch.setattr("timm.data.dataset_factory.create_dataset", reach)


@pytest.mark.parametrize("kind", [CIFAR10, CIFAR100])
def test_cifar_without_download_takes_what_is_there(tmp_path, address, monkeypatch, no_request, kind):
    archive = cifar_archive(tmp_path, address, monkeypatch, kind)
    name, data = kind.__name__.lower(), tmp_path / "data"
    says = rf"{name} in .*: is not there, and download is false; name DATASET yourself .*put {kind.filename} there"
    with pytest.raises(InputError, match=says):
        open_source(name, data, download=False)
    assert not data.exists()
    data.mkdir()
    archive.rename(data / kind.filename)
    assert len(open_source(name, data, download=False).pool) > 0, "unpacked"
    (data / kind.filename).unlink()
    assert len(open_source(name, data, download=False).open_test()) == 6, "read where it was unpacked"
    (data / kind.base_folder / kind.train_list[0][0]).write_bytes(b"torn")
    with pytest.raises(InputError, match="is not there, and download is false"):
        open_source(name, data, download=False)
    (data / kind.filename).write_bytes(b"broken")
    with pytest.raises(InputError, match=r"wrong MD5.*; name DATASET yourself"):
        open_source(name, data, download=False)


def test_omniglot_without_download_takes_what_is_there(tmp_path, address, monkeypatch, no_request):
    omniglot_archives(tmp_path, address, monkeypatch)
    with pytest.raises(InputError, match=r"omniglot in .*: is not there, and download is false"):
        open_source("omniglot", tmp_path / "data", download=False)
    folder = tmp_path / "data" / Omniglot.folder
    folder.mkdir(parents=True)
    for part in Omniglot.zips_md5:
        (tmp_path / f"{part}.zip").rename(folder / f"{part}.zip")
    assert len(open_source("omniglot", tmp_path / "data", download=False).pool) == 12


@pytest.mark.parametrize("name", ["torch/cifar10", "hfds/me/zoo", "wds/x", "TFDS/mnist", "hfids/me/zoo"])
def test_timms_names_are_refused_without_download(tmp_path, no_request, name):
    with pytest.raises(UsageError, match=r"is read through timm, maybe from the network, and download is false"):
        open_source(name, tmp_path, download=False)


def test_folder_that_cannot_be_written(tmp_path, address, monkeypatch):
    cifar_archive(tmp_path, address, monkeypatch, CIFAR10)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", full)
    with pytest.raises(EnvironmentFault, match="No space left"):
        open_source("cifar10", tmp_path / "data")


def omniglot_archives(folder, address, monkeypatch):
    monkeypatch.setattr(Omniglot, "download_url_prefix", address)
    sums = {}
    for part, alphabets in (("images_background", ("Latin", "Greek")), ("images_evaluation", ("Tifinagh",))):
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
            for alphabet in alphabets:
                for character in ("character01", "character02"):
                    for number in (2, 1):
                        path = folder / "one.png"
                        Image.new("1", (105, 105), number % 2).save(path)
                        archive.write(path, f"{part}/{alphabet}/{character}/000{number}.png")
        sums[part] = md5(folder / f"{part}.zip")
    monkeypatch.setattr(Omniglot, "zips_md5", sums)


def test_omniglot_joins_both_parts(tmp_path, address, monkeypatch, capsys):
    omniglot_archives(tmp_path, address, monkeypatch)
    source = open_source("omniglot", tmp_path / "data")
    expected = [f"{alphabet}/character0{number}" for alphabet in ("Greek", "Latin", "Tifinagh") for number in (1, 2)]
    assert list(source.classes) == expected
    assert torch.bincount(source.pool.labels).tolist() == [2] * 6
    assert source.open_test is None
    assert source.pool.read(0).getextrema() == (255, 255)
    assert capsys.readouterr().out == ""
    # An unpacking that was interrupted is made good.
    torn = tmp_path / "data" / Omniglot.folder / source.pool.name(3)
    torn.unlink()
    assert len(open_source("omniglot", tmp_path / "data").pool) == 12
    assert torn.exists()


def test_omniglot_with_a_wrong_checksum(tmp_path, address, monkeypatch):
    omniglot_archives(tmp_path, address, monkeypatch)
    monkeypatch.setitem(Omniglot.zips_md5, "images_evaluation", "0" * 32)
    with pytest.raises(InputError, match=r"images_evaluation\.zip is not the published file"):
        open_source("omniglot", tmp_path / "data")


# ---- timm


def test_timm_image_folder(tmp_path):
    write_folder(tmp_path / "plain", mode="L")
    source = open_source("torch/image_folder", tmp_path / "plain")
    assert (source.name, source.classes, source.open_test) == ("torch/image_folder", ("ant", "bee", "cow"), None)
    assert source.pool.read(0).mode == "L"
    write_folder(tmp_path / "parts" / "train")
    write_folder(tmp_path / "parts" / "val", per_class=1)
    source = open_source("torch/image_folder", tmp_path / "parts")
    assert len(source.pool) == 12
    assert len(source.open_test()) == 3


def test_timm_cifar_is_torchvisions(tmp_path, address, monkeypatch, capsys):
    cifar_archive(tmp_path, address, monkeypatch, CIFAR10)
    source = open_source("torch/cifar10", tmp_path / "data")
    assert (len(source.classes), len(source.pool), len(source.open_test())) == (3, 60, 6)
    assert source.pool.read(3).size == (32, 32)
    assert source.pool.content(3) != source.pool.content(4)
    assert capsys.readouterr().out == ""


def test_timm_errors_are_one_line(tmp_path):
    for name in ("torch/nothing", "torch/image_folder"):
        with pytest.raises(InputError) as caught:
            open_source(name, tmp_path / "gone")
        assert str(caught.value).isprintable()


class Stream(IterableDataset):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        for index in range(self.count):
            yield Image.new("RGB", (16, 16), (index, 0, 0)), np.int64(index % 3)


def test_iterable_data_sets_are_read_once_within_the_limit(tmp_path, monkeypatch):
    class Info:
        splits = ("train", "validation")

    def create(name, data_dir, split):
        stream = Stream(9 if split == "train" else 3)
        stream.reader = type("Reader", (), {"info": Info(), "class_to_idx": {}})()
        return stream

    monkeypatch.setattr(timm_datasets, "_create", create)
    source = open_source("wds/x", tmp_path)
    assert (source.classes, len(source.pool), len(source.open_test())) == (("0", "1", "2"), 9, 3)
    assert source.pool.read(7).getpixel((0, 0)) == (7, 0, 0)
    with pytest.raises(InputError, match="memory_limit_gib"):
        open_source("wds/x", tmp_path, 1e-6)


def test_reader_with_random_access(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "zoo")
    files = sorted(folder.glob("*/*.png"))

    class Reader:
        def __init__(self):
            self.class_to_idx = {"b": 1, "a": 0}
            self.dataset = type("Data", (), {"info": type("Info", (), {"splits": {"train": 0}})})

        def iter_targets(self):
            return (index % 2 for index in range(len(files)))

        def __getitem__(self, index):
            return Path(files[index]).open("rb"), index % 2

    holder = type("Holder", (), {"reader": Reader()})
    monkeypatch.setattr(timm_datasets, "_create", lambda *_: holder())
    spoil_text(files[5])
    source = open_source("hfds/me/zoo", tmp_path)
    assert (source.name, source.classes, source.open_test) == ("hfds/me/zoo", ("a", "b"), None)
    assert source.pool.read(4).size == (12, 10)
    with pytest.raises(CorruptImageError, match="image 5"):  # timm's own data set would give image 6 instead
        source.pool.read(5)


def test_labels_must_be_whole():
    assert timm_datasets.whole_labels([1, np.int64(2), torch.tensor(3)]) == [1, 2, 3]
    for label in (None, 1.5, "a", True):
        with pytest.raises(InputError, match="not a whole number"):
            timm_datasets.whole_labels([label])


def test_every_name_is_described_and_opens_something() -> None:
    plain = {name for name in DATASETS if not set(name) & set(":/")}
    assert plain >= {"digits", "cifar10", "cifar100", "omniglot", "imagenet"}
    families = {"folder:PATH", *(f"{prefix}/NAME" for prefix in ("torch", "hfds", "hfids", "tfds", "wds"))}
    assert {entry.name for entry in DATASETS.entries() if entry.built_in} - plain == families
    for entry in DATASETS.entries():
        assert callable(entry.load())
    assert [dataset_entry(name) for name in ("digits", "folder:a/b", "HFDS/x/y", "x/y", "x")] == [
        "digits",
        "folder:PATH",
        "hfds/NAME",
        None,
        None,
    ]
