"""The documentation: the site builds, links lead somewhere, and every block of code runs as it is typed.

Where a block names a large data set or network, smaller ones stand in; the words typed are the documentation's.
"""

import itertools
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import timm
import torch
from mapolicy.cli import options
from PIL import Image
from safetensors.torch import save, save_file
from torchvision.transforms import v2

from mapolicy import recipes, train_network
from mapolicy.registries import DATASETS, LOSSES, SAMPLERS, ZERO_COST_POLICIES
from mapolicy.transforms.space import OPERATION_SPECS, SPACES
from tests.helpers.browser import WIDTHS, Visit, chromium
from tests.helpers.command_pages import PAGES as GENERATED
from tests.helpers.hub_server import HubServer
from tests.helpers.settings import FEW

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(ROOT.glob("*/README.md")),
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2])
        for match in FENCE.finditer(text)
        if match[1] in ("bash", "python", "sh", "console")
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def installs(block: Block) -> bool:
    """Set-up of a fresh machine, which continuous integration does."""
    return "pip install" in block.text


def test_every_page_is_read() -> None:
    assert {"README.md", "bundle-format.md", "paper.md", "runs.md"} <= {page.name for page in PAGES}
    assert sum(block.language == "python" for block in BLOCKS) >= 3
    assert sum(block.language == "bash" for block in BLOCKS) >= 5


PRETRAINED = "test_resnet.r160_in1k"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, bundle_file: Path, tmp_path: Path) -> Path:
    """A folder where digits stand for every data set, one epoch for every recipe, and small networks for large ones."""
    find = recipes.find
    networks = {"wrn28_10": "wrn10_1", "wrn40_2": "wrn10_1", "resnet18": "test_resnet", "pyramidnet": "test_resnet"}
    networks["resnet18.a1_in1k"] = PRETRAINED
    resolve = options.resolve

    def smaller(stage: str, dataset: str, network: str | None):
        name, values = find(stage, "digits", network)
        return name, values | FEW | {"epochs": 1, "batch_size": 160}

    def standing_in(kind, network, dataset, **rest):
        return resolve(kind, networks.get(network, network), dataset and "digits", **rest)

    monkeypatch.setattr(recipes, "find", smaller)
    monkeypatch.setattr(options, "resolve", standing_in)
    monkeypatch.chdir(tmp_path)
    bundles = ("artifacts/c100.safetensors", "artifacts/digits.safetensors", "artifacts/birds.safetensors")
    for name in (*bundles, "c100.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(bundle_file, tmp_path / name)
    for name in ("cat.jpg", "dog.png", "new1.jpg", "new2.png", "photos/bird.webp", "robin.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.linear_gradient("L").resize((60, 40)).convert("RGB").save(tmp_path / name)
    for name, photo in itertools.product(("owl", "robin", "wren"), range(8)):
        (tmp_path / "birds" / name).mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").rotate(10 * photo).resize((60, 40)).save(tmp_path / "birds" / name / f"{photo}.png")
    return tmp_path


@pytest.fixture
def type_line(small: Path, monkeypatch: pytest.MonkeyPatch, bundle, hub_server: HubServer) -> Callable[[str], None]:
    (entry,) = entry_points(group="console_scripts", name="mapolicy")

    def line(text: str) -> None:
        arguments = [word.replace("DIGEST", bundle.digest) for word in shlex.split(text, comments=True)]
        if "pull" in arguments:
            hub_server.large["digits.safetensors"] = Path("artifacts/digits.safetensors").read_bytes()
            arguments = [word.replace("https://example.org", f"{hub_server.address}/plain") for word in arguments]
        if arguments[1] == "evaluate":  # the network in the run folder was trained on digits
            arguments = [word.replace("folder:birds", "digits") for word in arguments]
        for option in ("--seeds", "--jobs"):
            if option in arguments:
                arguments[arguments.index(option) + 1] = "1"
        if {"--pretrained", "--weights"} & {*arguments}:
            weights = timm.create_model("test_resnet", num_classes=20).state_dict()
            hub_server.commit(f"timm/{PRETRAINED}", {"model.safetensors": save(weights)})
            save_file(weights, "model.safetensors")
            arguments += ["--epochs", "1", "--image-size", "8"]
        if arguments[1] in ("search", "train", "compare") or "--out" in arguments:
            arguments.append("--force")  # a page is read from top to bottom, but each block by itself
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as stop:
            entry.load()()
        assert not stop.value.code, text
        if "push" in arguments:  # a tag is the hub's own doing
            refs = hub_server.refs[arguments[3]]
            refs["v1"] = refs["main"]

    return line


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language != "python"], ids=str)
def test_commands_run(block: Block, type_line, small: Path) -> None:
    if installs(block):
        pytest.skip("set-up of a fresh machine: continuous integration runs it")
    if "ssh-keygen" in block.text:
        if shutil.which("ssh-keygen") is None:
            pytest.skip("no ssh-keygen")
        key = small / "id_ed25519"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        text = block.text.replace("~/.ssh/id_ed25519", str(key))
        subprocess.run(["bash", "-e", "-c", text], check=True, capture_output=True, timeout=60)
        return
    for name, run in (("digits", "runs/my-train"), ("birds", "runs/birds")):
        if run in block.text and f"--run-dir {run}" not in block.text:  # an earlier step of the page trained it
            type_line(f"mapolicy train --bundle artifacts/{name}.safetensors --arch resnet18 --run-dir {run}")
    if "hf://birdlab/digits-policy" in block.text:  # an earlier step of the page pushed it
        type_line("mapolicy push artifacts/digits.safetensors birdlab/digits-policy")
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.strip():
            assert line.startswith("mapolicy "), f"{line!r} is no command of ours"
            type_line(line)


def test_the_line_for_a_cluster_starts_and_resumes(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "cluster.md").read_text(encoding="utf-8")
    lines = textwrap.dedent(re.findall(r"```text\n(.*?)```", page, re.DOTALL)[0])
    script = 'mapolicy() { echo "$*"; }\n' + lines

    def typed() -> str:
        return subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert typed().endswith("--out birds.safetensors --force\n")
    (tmp_path / "runs" / "birds").mkdir(parents=True)
    (tmp_path / "runs" / "birds" / "checkpoint.safetensors").touch()
    assert typed().endswith("--out birds.safetensors --resume\n")


@pytest.fixture
def registries() -> Iterator[None]:
    """What a page registers is gone afterwards."""
    yield
    for registry in (SPACES, OPERATION_SPECS, ZERO_COST_POLICIES, DATASETS, SAMPLERS, LOSSES):
        for entry in registry.entries():
            if not entry.built_in:
                registry.remove(entry.name)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=str)
def test_python_runs(
    block: Block, small: Path, monkeypatch: pytest.MonkeyPatch, registries: None, make_train_config
) -> None:
    if "runs/my-train" in block.text:
        train_network(make_train_config(policy="none", epochs=1), run_dir=Path("runs/my-train"))
    for package in ("lightning", "transformers", "accelerate"):
        if re.search(rf"^(import|from) {package}\b", block.text, re.MULTILINE):
            pytest.importorskip(package, reason="the extra integrations")
    load = recipes.load
    monkeypatch.setattr(recipes, "load", lambda name: (name, load(name)[1] | FEW | {"epochs": 1}))
    gray = any(name in block.text for name in ("PolicyAugment", "PolicyMixup", "prepare_policy"))
    images = torch.randint(0, 256, (4, 1, 8, 8) if gray else (4, 3, 20, 28), dtype=torch.uint8)
    names = {
        "torch": torch,
        "loader": [(images, torch.arange(4))] * 2,
        "normalise": v2.ToDtype(torch.float32, scale=True),
        "network": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(images[0].numel(), 10)),
    }
    exec(block.text, names)
    if "loss" in names:
        assert torch.isfinite(names["loss"])
    if "transform" in names:  # timm's, with the network that it loaded
        with torch.no_grad(), Image.open("cat.jpg") as image:
            logits = names["network"](names["transform"](image.convert("L"))[None])
        assert logits.shape == (1, len(names["classes"]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, target


CODE_SPAN = re.compile(r"`([^`\s]+)`")
MENTIONED = re.compile(r"(?:mapolicy|cli|recipes|tests|docs|examples|benchmarks|\.ci)/[\w./-]*")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_in_code_spans_exist(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    paths = [span for span in CODE_SPAN.findall(text) if MENTIONED.fullmatch(span)]
    assert [path for path in paths if "NAME" not in path and not (ROOT / path).exists()] == []


def test_the_guard_sees_paths() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    found = {span for span in CODE_SPAN.findall(pages) if MENTIONED.fullmatch(span)}
    assert {"cli/resolve.py", "mapolicy/bundle/fetch.py", "recipes/"} <= found
    assert len(found) > 40


TESTS = set(
    re.findall(r"^def (test_\w+)", "".join(p.read_text("utf-8") for p in ROOT.glob("tests/**/test_*.py")), re.M)
)


@pytest.mark.parametrize("page", ["docs/inputs.md", "docs/reference/inputs-tested.md"])
def test_tests_that_are_named_exist(page: str) -> None:
    rows = [
        line for line in (ROOT / page).read_text(encoding="utf-8").splitlines() if re.match(r"\| (?!---|#|what)", line)
    ]
    assert len(rows) >= 28
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row.split("|")[-2])
        assert named, row
        assert [name for name in named if name not in TESTS] == []


def test_every_case_of_real_inputs_has_its_row() -> None:
    page = (ROOT / "docs" / "reference" / "inputs-tested.md").read_text(encoding="utf-8")
    assert [int(number) for number in re.findall(r"^\| (\d+) \|", page, re.M)] == list(range(1, 29))


def test_every_space_of_operations_has_its_picture() -> None:
    page = (ROOT / "docs" / "reference" / "operations.md").read_text(encoding="utf-8")
    linked = re.findall(r"\(\.\./images/operations-(.+)\.png\)", page)
    assert linked == re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert {*linked} == {entry.name for entry in SPACES.entries() if entry.built_in}


def test_messages_in_troubleshooting_are_those_of_the_code() -> None:
    """Their constant words, that is: names and numbers stand as ... or N."""
    code = "\n".join(
        file.read_text(encoding="utf-8") for part in ("mapolicy", "cli") for file in (ROOT / part).rglob("*.py")
    )
    code = re.sub(r"\{[^{}]*\}", "...", re.sub(r'"\s*\n\s*f?"', "", code))
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = [
        span
        for row in re.findall(r"^\| (`[^|]+`[^|]*) \|", page, re.MULTILINE)
        for span in re.findall(r"`([^`]+)`", row)
    ]
    parts = [part.strip() for text in messages for part in re.split(r"\.\.\.|\b(?:N|1|nan|404)\b|--out|[;:,'()]", text)]
    from_the_system = {"No space left on device", "Read-only file system", "No such file or directory"}
    words = {part for part in parts if len(part.split()) > 2} - from_the_system
    assert len(words) > 40
    assert sorted(part for part in words if part not in code) == []


@pytest.mark.parametrize("page", GENERATED, ids=lambda page: page.name)
def test_pages_made_from_the_command_line_are_up_to_date(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == GENERATED[page](), "python tests/helpers/command_pages.py"


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = {name for block in re.findall(r"```{toctree}(.*?)```", index, re.DOTALL) for name in block.split()}
    pages = {str(page.relative_to(ROOT / "docs").with_suffix("")) for page in (ROOT / "docs").rglob("*.md")}
    assert pages - listed == {"index"}
    assert re.findall(r":caption: (.+)", index) == ["Tutorials", "How-to", "Reference", "Explanation", "Help"]


def test_the_tree_of_files_is_complete() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = page.split("## Files\n")[1].split("```")[1]
    named, folder = [], ROOT / "mapolicy"
    for line in tree.splitlines():
        if heading := re.match(r"( *)(\w+)/ ", line):
            folder = ROOT / "mapolicy" / heading[2] if heading[1] else ROOT / heading[2]
        named += [folder / file for file in re.findall(r"[\w.-]+\.(?:py|json)\b", line)]
    assert [str(path) for path in named if not path.exists()] == []
    modules = {path for name in ("mapolicy", "cli") for path in (ROOT / name).rglob("*.py")}
    modules = {path for path in modules if path.name != "__init__.py" or path.parent == ROOT / "mapolicy"}
    assert len(modules) > 160
    assert modules - set(named) == set()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with warnings as errors."""
    pytest.importorskip("sphinx", reason="the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", str(ROOT / "docs"), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return folder


def test_the_site_has_every_page(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).exists()
    front = (site / "index.html").read_text()
    assert 'href="algorithm.html"' in front
    assert "<h1>mapolicy" in front


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_the_screen(site: Path, width: int) -> None:
    """Wide tables and blocks of code scroll by themselves."""
    with chromium() as browser, browser.new_page(viewport={"width": width, "height": 800}) as tab:
        visit, wide = Visit(tab), []
        for page in sorted((ROOT / "docs").rglob("*.md")):
            tab.goto((site / page.relative_to(ROOT / "docs").with_suffix(".html")).as_uri())
            wide += [page.name] * visit.overflows()
        assert wide == []
