"""Every open door, opened from outside the package by the examples of docs/extending.md, in few lines each.

Each example is run as a plugin by the command line, in a process of its own, and used there. One search is started as
a user starts it; to spare the others its imports, they are forked.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.forked import run_command

LONGEST = 15  # lines of a door's code

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")
DOORS = {
    register: next(
        block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if f"@register_{register}" in block
    )
    for register in ("operation", "policy", "dataset", "sampler", "loss")
}

# Its effect on a search can be told from the bundle.
EQUALIZE = """
import torch
from mapolicy.policy.sampler import TransformationSampler
from mapolicy.registries import register_sampler
from mapolicy.transforms.space import OPERATION_NAMES

@register_sampler("mostly-equalize", "draws Equalize nine times out of ten, and learns nothing")
class MostlyEqualize(TransformationSampler):
    def __init__(self, plan):
        share = torch.tensor([9.0 if name == "Equalize" else 1 / 13 for name in OPERATION_NAMES]) / 10
        super().__init__(probabilities=share[:, None] * share)

    def observe(self, observation):
        pass
"""
FAST = ("--set", "batch_size=16", "--set", "threads=1", "--epochs", "1", "--device", "cpu")
SIZES = ("--set", "validation_per_class=10", "--set", "test_per_class=10")
SHORT = (*FAST, *SIZES, "--set", "train_per_class=8")


def mapolicy(folder: Path, *arguments: str, plugins: str = "") -> subprocess.CompletedProcess[str]:
    """The command line with plugins that lie in a folder."""
    return run_command(*arguments, folder=folder, environment=with_plugins(folder, plugins))


def with_plugins(folder: Path, plugins: str) -> dict[str, str]:
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return {"MAPOLICY_PLUGINS": plugins, "PYTHONPATH": path}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outside")
    for name, code in DOORS.items():
        (folder / f"outside_{name}.py").write_text(code)
    return folder


def test_each_door_opens_in_few_lines() -> None:
    for name, code in DOORS.items():
        assert len([line for line in code.splitlines() if line.strip()]) < LONGEST, name


def test_an_operation(folder: Path) -> None:
    listed = mapolicy(folder, "operations", "lighten", "--json", plugins="outside_operation")
    assert json.loads(listed.stdout)["rows"] == [
        {
            "name": "Lighten",
            "description": "0 to 60 levels, either way; adds to the values",
            "ranges": {"bright": {"at_zero": 0, "at_ten": 60, "signed": True}},
        }
    ]
    search = ("search", "digits", "--proxy", "wrn10_1", "--set", "operation_space=bright", "--out", "b.safetensors")
    search += ("--set", "sampler=mean-weight", "--set", "weighting=policy")
    command = [sys.executable, "-m", "mapolicy", *search, *SHORT, "--quiet"]
    environment = os.environ | with_plugins(folder, "outside_operation")
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    inspected = mapolicy(folder, "inspect", "b.safetensors", "--json", plugins="outside_operation")
    operations = json.loads(inspected.stdout)["operations"]
    assert (operations["space"], operations["names"][13:]) == ("bright", ["Identity", "Invert", "Lighten"])
    use = (
        ("train", "--bundle", "b.safetensors", "--arch", "wrn10_1", *FAST, "--quiet"),
        ("train", "--bundle", "b.safetensors", "--arch", "wrn10_1", "--mode", "finetune", *FAST, "--quiet"),
        ("train", "digits", "--policy", "uniform", "--set", "operation_space=bright", *SHORT, "--quiet"),
        ("explain", "b.safetensors", "digit.png", "--transformations", "Invert,Lighten:-4", "--json"),
        ("report", "b.safetensors", "--samples", "28"),
        ("export", "b.safetensors", "--out", "policy.py"),
        ("slim", "b.safetensors", "--out", "slim.safetensors"),
    )
    Image.new("L", (8, 8), 100).save(folder / "digit.png")
    for command in use:
        done = mapolicy(folder, *command, plugins="outside_operation")
        assert done.returncode == 0, (command, done.stderr)
    assert '"Lighten": v2.Identity(),' in (folder / "policy.py").read_text()
    # Nothing that a bundle says makes a process import something.
    unknown = mapolicy(folder, "inspect", "b.safetensors")
    assert unknown.returncode == 3
    assert "operation 'Invert' is unknown here; install or import what registers it" in unknown.stderr


def test_a_policy(folder: Path) -> None:
    assert "invert" not in mapolicy(folder, "train", "--help").stdout
    for command in ("train", "compare"):
        assert "invert" in mapolicy(folder, command, "--help", plugins="outside_policy").stdout
    train = ("train", "digits", "--policy", "invert", "--arch", "wrn10_1", *SHORT, "--json", "--quiet")
    done = mapolicy(folder, *train, plugins="outside_policy")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["policy"] == "invert"
    unknown = mapolicy(folder, *train)
    assert unknown.returncode == 2
    assert "'invert' is not one of learned, sampler-only" in unknown.stderr
    assert unknown.stderr.endswith("; use one of them, or name its plugin in MAPOLICY_PLUGINS\n")


def test_a_data_set(folder: Path) -> None:
    assert "stripes" in mapolicy(folder, "search", "--help", plugins="outside_dataset").stdout
    listed = mapolicy(folder, "datasets", "stripes", "--json", plugins="outside_dataset")
    assert json.loads(listed.stdout)["rows"] == [
        {"name": "stripes", "description": "dark and light stripes of 8x8 pixels"}
    ]
    train = ("train", "stripes", "--recipe", "train-digits", "--policy", "none", *FAST, *SIZES, "--json", "--quiet")
    train += ("--set", "train_per_class=40")
    done = mapolicy(folder, *train, plugins="outside_dataset")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["test_top1"] > 60
    unknown = mapolicy(folder, *train, "--force")
    assert unknown.returncode == 2
    assert "there is none called 'stripes'" in unknown.stderr
    assert unknown.stderr.endswith("wds/NAME, or name its plugin in MAPOLICY_PLUGINS\n")
    assert len(unknown.stderr.strip()) <= 240


SEARCH = ("search", "digits", "--proxy", "wrn10_1", *SHORT, "--quiet", "--force", "--out")
TRAIN = ("train", "--arch", "wrn10_1", *FAST, "--quiet", "--force", "--bundle")


def test_a_sampler(folder: Path) -> None:
    done = mapolicy(folder, *SEARCH, "late.safetensors", "--set", "sampler=late", plugins="outside_sampler")
    assert done.returncode == 0, done.stderr
    # A frozen policy draws from what the bundle keeps; the plugin is not needed.
    done = mapolicy(folder, *TRAIN, "late.safetensors")
    assert done.returncode == 0, done.stderr
    finetune = (*TRAIN, "late.safetensors", "--mode", "finetune")
    unknown = mapolicy(folder, *finetune)
    assert unknown.returncode == 3
    assert unknown.stderr == (
        "mapolicy: error: late.safetensors: its search used the sampler 'late', which is not registered here; install "
        "or import what registers it, or name its module in MAPOLICY_PLUGINS\n"
    )
    for plugins, more in (("outside_sampler", ()), ("", ("--set", "sampler=mean-weight"))):
        done = mapolicy(folder, *finetune, *more, plugins=plugins)
        assert done.returncode == 0, done.stderr


def test_a_sampler_from_outside_draws(folder: Path) -> None:
    (folder / "equalize.py").write_text(EQUALIZE)
    arguments = ("digits", "--proxy", "wrn10_1", "--set", "sampler=mostly-equalize", "--out", "s.safetensors")
    done = mapolicy(folder, "search", *arguments, *SHORT, "--quiet", "--force", plugins="equalize")
    assert done.returncode == 0, done.stderr
    inspected = json.loads(mapolicy(folder, "inspect", "s.safetensors", "--json").stdout)
    likeliest = inspected["likeliest"][0]
    assert (likeliest["first"], likeliest["second"]) == ("Equalize", "Equalize")
    assert likeliest["probability"] == pytest.approx(0.81, abs=0.01)
    train = ("train", "--bundle", "s.safetensors", "--arch", "wrn10_1", *FAST, "--quiet")
    for mode in ("frozen", "finetune"):
        done = mapolicy(folder, *train, "--mode", mode, "--force", plugins="equalize")
        assert done.returncode == 0, (mode, done.stderr)
    # A frozen policy needs the bundle alone; one that goes on learning needs its sampler.
    assert mapolicy(folder, *train, "--force").returncode == 0
    unknown = mapolicy(folder, *train, "--mode", "finetune", "--force")
    assert unknown.returncode == 3
    assert "sampler" in unknown.stderr
    assert "mostly-equalize" in unknown.stderr


def test_a_loss(folder: Path) -> None:
    losses = ("--set", "training_loss=focal", "--set", "validation_loss=focal")
    arguments = ("search", "digits", "--proxy", "wrn10_1", *SHORT, "--quiet", "--json", "--force")
    found = {}
    for name, chosen in (("usual", ()), ("focal", losses)):
        out = f"{name}.safetensors"
        done = mapolicy(folder, *arguments, *chosen, "--out", out, "--run-dir", name, plugins="outside_loss")
        assert done.returncode == 0, done.stderr
        found[name] = json.loads((folder / name / "metrics.jsonl").read_text().splitlines()[0])
    # With ten classes a first loss is near log 10; the focal one is (1 - 1/10)^2 of it.
    for loss in ("loss", "validation_loss"):
        assert found["focal"][loss] == pytest.approx(0.81 * found["usual"][loss], rel=0.1)
    train = ("train", "digits", "--policy", "none", "--arch", "wrn10_1", *SHORT, "--quiet", "--force")
    done = mapolicy(folder, *train, *losses[:2], plugins="outside_loss")
    assert done.returncode == 0, done.stderr
    unknown = mapolicy(folder, *train, *losses[:2])
    assert unknown.returncode == 2
    assert (
        "'focal' is not one of cross-entropy; use one of them, or name its plugin in MAPOLICY_PLUGINS" in unknown.stderr
    )


# ---- what goes wrong in a plugin's code

POLICY_DOOR = """
import torch
from mapolicy.registries import register_policy

@register_policy("wrong", "is wrong")
class Wrong:
    def __init__(self, config, dataset):
        {init}

    def __call__(self, images, fill, generator, shard=None):
        {call}
"""
LOSS_DOOR = """
from mapolicy.registries import register_loss

@register_loss("wrong", "is wrong")
def wrong(logits, labels):
    return {result}
"""
DATASET_DOOR = """
import numpy as np
from mapolicy.data.image_dataset import ArrayImages, Source
from mapolicy.registries import register_dataset

@register_dataset("wrong", "is wrong")
def open_wrong(request):
    return {result}
"""
BUG = "mapolicy: error: plugin wrong_door: "
PAIR = "and a Transformation or None; mend the class that registers it"
LOSS_FIX = "expected a float for each sample, [16]; mend the function that registers it"
ARRAY = "Source('w', 'w', ('a', 'b'), ArrayImages({}, np.arange(200) % 2))"


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (POLICY_DOOR.format(init="1 / 0", call="pass"), BUG + "ZeroDivisionError: division by zero; mend the plugin"),
        (
            POLICY_DOOR.format(init="pass", call="return torch.stack([]), None"),
            BUG + "RuntimeError: stack expects a non-empty TensorList; mend the plugin",
        ),
        (
            POLICY_DOOR.format(init="pass", call="return images"),
            f"mapolicy: error: policy wrong: it returned a Tensor, expected torch.uint8 [16, 1, 8, 8] {PAIR}",
        ),
        (
            POLICY_DOOR.format(init="pass", call="return images / 255, None"),
            "mapolicy: error: policy wrong: it returned torch.float32 [16, 1, 8, 8] and a NoneType, expected "
            f"torch.uint8 [16, 1, 8, 8] {PAIR}",
        ),
        (
            "from mapolicy.registries import register_policy\nregister_policy('wrong', 'x')(lambda config, dataset: 3)",
            "mapolicy: error: policy wrong: it gave a int, expected an object that augments a batch when it is called; "
            "mend the class that registers it",
        ),
        (
            LOSS_DOOR.format(result="logits.square().mean()"),
            f"mapolicy: error: loss wrong: it returned torch.float32 [], {LOSS_FIX}",
        ),
        (LOSS_DOOR.format(result="labels"), f"mapolicy: error: loss wrong: it returned torch.int64 [16], {LOSS_FIX}"),
        (
            DATASET_DOOR.format(result=ARRAY.format("np.zeros((200, 8, 8))")),
            BUG + "ValueError: image 0 is float64 [8, 8], expected uint8 [H, W] or [H, W, 3]; mend the plugin",
        ),
        (
            DATASET_DOOR.format(result=ARRAY.format("[np.zeros((1, 8, 8), np.uint8)] * 200")),
            BUG + "ValueError: image 0 is uint8 [1, 8, 8], expected uint8 [H, W] or [H, W, 3]; mend the plugin",
        ),
        (
            DATASET_DOOR.format(result="[]"),
            "mapolicy: error: data set wrong: the function that opens it returned a list, expected a Source; "
            "mend the function that registers it",
        ),
    ],
)
def test_a_wrong_plugin_is_named_in_one_line(tmp_path: Path, code: str, line: str) -> None:
    (tmp_path / "wrong_door.py").write_text(code)
    policy = "wrong" if "register_policy" in code else "none"
    loss = ("--set", "training_loss=wrong") if "register_loss" in code else ()
    dataset = "wrong" if "register_dataset" in code else "digits"
    train = ("train", dataset, "--recipe", "train-digits", "--policy", policy, *SHORT, *loss, "--quiet")
    done = mapolicy(tmp_path, *train, plugins="wrong_door")
    assert (done.returncode, done.stderr) == (5, f"{line}\n")


# ---- plugins


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise RuntimeError('out\\nof order')", "RuntimeError: out of order"),
        ("import does_not_exist", "No module named 'does_not_exist'"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (
            "from mapolicy.registries import register_policy\nregister_policy('none', 'again')(object)",
            "policy 'none' exists already",
        ),
    ],
)
def test_an_error_in_a_plugin_is_one_line(tmp_path: Path, code: str, why: str) -> None:
    (tmp_path / "broken.py").write_text(code)
    done = mapolicy(tmp_path, "datasets", plugins="broken")
    assert done.returncode == 5
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("mapolicy: error: plugin broken: ")
    assert why in line
    last = len(code.splitlines())
    assert line.endswith(f"; mend it or take it out of MAPOLICY_PLUGINS (line {last} of {tmp_path / 'broken.py'})")


def test_a_plugin_that_is_not_there(tmp_path: Path) -> None:
    done = mapolicy(tmp_path, "datasets", plugins="nowhere")
    assert done.returncode == 5
    assert "No module named 'nowhere'; put its folder on PYTHONPATH" in done.stderr


def test_a_package_brings_its_plugin_along(tmp_path: Path) -> None:
    (tmp_path / "outside_dataset.py").write_text(DOORS["dataset"])
    record = tmp_path / "outside-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[mapolicy.plugins]\noutside = outside_dataset\n")
    # Also named in the environment: it is imported once.
    done = mapolicy(tmp_path, "datasets", "stripes", plugins="outside_dataset")
    assert done.returncode == 0, done.stderr
    assert "dark and light stripes" in done.stdout


def test_plugins_reach_the_processes_of_a_comparison(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from mapolicy.compare.process_pool import run_in_processes
from mapolicy.registries import ZERO_COST_POLICIES
from mapolicy.runtime.plugins import import_plugins

def work(piece, on_note):
    on_note(str(list(ZERO_COST_POLICIES)[-1]))

if __name__ == "__main__":
    import_plugins(["outside_policy"])
    run_in_processes(work, [0], 1, lambda position, failure: print(failure), print)
"""
    (tmp_path / "outside_policy.py").write_text(DOORS["policy"])
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.stdout.split() == ["invert", "None"], done.stderr
