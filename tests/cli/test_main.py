"""Every command: exit codes, one-line errors, clean output."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from mapolicy.cli.main import COMMANDS

from mapolicy import PolicyBundle
from mapolicy.training.checkpoint import load_checkpoint
from tests.helpers.command_line import LAUNCHED, TRAIN, Outcome, run_process, snapshot


def test_no_arguments_show_the_help(mapolicy) -> None:
    outcome = mapolicy()
    assert outcome.code == 0
    assert "Usage: mapolicy" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("search", "digits", "--proxy", "wrn11_2"), ("closest are wrn",)),
        (("search", "digits", "--proxy", "hf-hub:timm/resnet18"), ("registry",)),
        (("search", "digits", "--proxy", "local-dir:/tmp"), ("registry",)),
        (("search", "digit", "--proxy", "wrn10_1"), ("digits",)),
        (("search",), ("DATASET",)),
        (("search", "digits", "--proxy", "wrn10_1", "--epochs", "0"), ("epochs",)),
        (("search", "digits", "--proxy", "wrn10_1", "--epochs", "-1"), ("epochs",)),
        (("search", "digits", "--proxy", "wrn10_1", "--epochs", "nan"), ("epochs",)),
        (("search", "digits", "--proxy", "wrn10_1", "--set", "learning_rate=1e400"), ("learning_rate",)),
        (("search", "digits", "--proxy", "wrn10_1", "--set", "learning_rate=nan"), ("learning_rate",)),
        (("search", "digits", "--proxy", "wrn10_1", "--set", "learnig_rate=1"), ("learning_rate?",)),
        (("search", "digits", "--proxy", "wrn10_1", "--set", "epochs"), ("KEY=VALUE",)),
        (("search", "digits", "--proxy", "wrn10_1", "--device", "tpu"), ("device",)),
        (("search", "digits", "--proxy", "wrn10_1", "--set", "operation_space=huge"), ("metaaugment-v1",)),
        (("search", "digits", "--proxy", "wrn10_1", "--set", "optimizer=sdg"), ("optimizer",)),
        (("search", "digits", "--proxy", "vit_tiny_patch16_224"), ("img_size",)),
        (("search", "digits", "--nonsense"), ("nonsense",)),
        (("train", "digits", "--arch", "resnet10t"), ("type mapolicy train digits --arch resnet10t --policy none",)),
        (("train", "digits", "--arch", "resnet10t", "--policy", "best"), ("policy",)),
        (("train", "digits", "--arch", "resnet10t", "--policy", "none", "--mode", "finetune"), ("finetune",)),
        (("train", "digits", "--arch", "resnet10t", "--policy", "none", "--out", "x"), ("--out",)),
        (("fly",), ("fly",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_usage_errors_exit_2_and_write_nothing(mapolicy, tmp_path: Path, arguments: tuple, parts: tuple) -> None:
    mapolicy(*arguments).is_error(2, *parts)
    assert snapshot(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("train", "--bundle", "none.safetensors", "--arch", "resnet10t"), ("none.safetensors", "No such file")),
        (("inspect", "none.safetensors"), ("No such file",)),
        (("inspect", "."), ("folder",)),
        (("search", "folder:none", "--proxy", "wrn10_1"), ("none",)),
        (("search", "digits", "--proxy", "wrn10_1", "--recipe", "none"), ("recipe none",)),
        (("search", "digits", "--proxy", "wrn10_1", "--set", "batch_size=5000"), ("batch_size",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bad_input_exits_3(mapolicy, arguments: tuple, parts: tuple) -> None:
    mapolicy(*arguments).is_error(3, *parts)


def test_a_recipe_with_an_unknown_key_exits_3(mapolicy, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("epocs = 3\n")
    mapolicy("search", "digits", "--proxy", "wrn10_1", "--recipe", "mine.toml").is_error(3, "epocs", "epochs?")
    (tmp_path / "mine.toml").write_text("epochs = = 3\n")
    mapolicy("search", "digits", "--proxy", "wrn10_1", "--recipe", "mine.toml").is_error(3, "not TOML")


@pytest.mark.parametrize("command", ["inspect", "pull", "slim", "export", "train"])
def test_no_command_shows_a_secret(mapolicy, tmp_path: Path, command: str) -> None:
    for place in ("http://me:secret@host/a?key=secret", "https://host/a b?key=secret", "https://[::1?key=secret"):
        source = ("--bundle", place, *TRAIN) if command == "train" else (place,)
        outcome = mapolicy(command, *source)
        outcome.is_error(2, "http")
        assert "secret" not in outcome.err
    assert snapshot(tmp_path) == []


def test_the_digest_is_printed_and_recorded_by_whatever_uses_a_bundle(
    mapolicy, bundle_file: Path, tmp_path: Path
) -> None:
    digest = PolicyBundle.load(bundle_file).digest
    assert digest in mapolicy("inspect", bundle_file, "--expect-digest", digest).out
    for kind in (("--mode", "frozen"), ("--policy", "uniform"), ("--mode", "finetune")):
        run = tmp_path / kind[1]
        outcome = mapolicy("train", "--bundle", bundle_file, *TRAIN, *kind, "--run-dir", run, "--expect-digest", digest)
        assert outcome.code == 0, outcome.err
        assert digest in outcome.out
        assert json.loads((run / "result.json").read_text())["digest"] == digest
        assert json.loads((run / "status.json").read_text())["digest"] == digest
        assert load_checkpoint(run / "checkpoint.safetensors")[1]["identity"]["bundle"] == digest
    assert mapolicy("inspect", bundle_file, "--expect-digest", digest.upper()).code == 0
    for command in ("inspect", "pull", "slim", "export", "compare", "train", "push"):
        # Before anything is opened: a digest with a mistake in it is no other digest.
        outcome = mapolicy(command, "missing", "--expect-digest", digest[:-1])
        outcome.is_error(2, "is not 64 hexadecimal digits")


def test_a_file_of_any_name_is_shown_clean(mapolicy, bundle_file: Path, tmp_path: Path) -> None:
    odd = "a\x1b[31m\nzz\u202e.safetensors"
    (tmp_path / odd).write_bytes(bundle_file.read_bytes())
    for command in (
        ("inspect", odd),
        ("pull", odd, "--out", f"c{odd}"),
        ("export", odd, "--out", f"d{odd}"),
        ("slim", odd, "--out", f"e{odd}"),
        ("train", "--bundle", odd, *TRAIN, "--run-dir", f"f{odd}"),
        ("import", "autoaugment-cifar10", "--out", f"g{odd}"),
    ):
        outcome = mapolicy(*command)
        assert outcome.code == 0, outcome.err
        assert "a?[31m?zz?.safetensors" in outcome.out
        assert "\nzz" not in outcome.out
        for character in "\x1b\u202e":
            assert character not in outcome.out + outcome.err
    (next_line,) = [line for line in mapolicy("pull", bundle_file, "--out", "a b").out.splitlines() if "next" in line]
    assert "--bundle 'a b' --arch" in next_line


def test_a_bug_exits_1_with_a_traceback_only_for_debug(mapolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_, **__) -> None:
        raise ZeroDivisionError("by zero\nand \x1b[31mmore")

    monkeypatch.setattr("mapolicy.search.search_policy", fail)
    outcome = mapolicy("search", "digits", "--proxy", "wrn10_1", "--quiet")
    outcome.is_error(1, "ZeroDivisionError", "bug")
    shown = mapolicy("search", "digits", "--proxy", "wrn10_1", "--quiet", "--debug", "--force")
    assert "Traceback" in shown.err


@pytest.mark.parametrize("group", [(), ("bench",)], ids=["mapolicy", "bench"])
def test_every_commands_summary_fits_its_line(
    mapolicy, monkeypatch: pytest.MonkeyPatch, group: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line for panel in command_panels(mapolicy(*group, "--help").out).values() for line in panel]
    assert len(lines) == (4 if group else sum(map(len, COMMANDS.values())))
    for line in lines:
        assert re.fullmatch(r"[a-z-]+ +[A-Z].*[^.]\.", line), line


def panels(text: str) -> dict[str, list[str]]:
    """The lines of each panel of a help, by its title."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        assert len(line) <= 80 or line.startswith("Example: "), line
        if title := re.match("╭─ (.*?) ─+╮$", line):
            found[title[1]] = []
        elif line.startswith("│"):
            found[list(found)[-1]].append(line.strip("│ "))
    return found


def command_panels(text: str) -> dict[str, list[str]]:
    return {title: lines for title, lines in panels(text).items() if not lines[0].startswith("-")}


def test_every_command_is_in_a_panel(mapolicy) -> None:
    shown = command_panels(mapolicy("--help").out)
    assert list(shown) == list(COMMANDS) == ["Start", "Policies", "Results", "Share", "Lists", "Machine"]
    named = {panel: [line.split()[0] for line in lines] for panel, lines in shown.items()}
    assert named == {panel: list(commands) for panel, commands in COMMANDS.items()}


def test_options_are_in_panels_with_their_defaults(mapolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = {
        title: " ".join(" ".join(lines).split()) for title, lines in panels(mapolicy("compare", "--help").out).items()
    }
    settings = "Settings (by default the recipe's)"
    assert list(shown) == ["Arguments", "Policy", "Comparison", settings, "Run", "Output"]
    assert shown["Arguments"].startswith("DATASET Data set")
    assert "--seeds N Number of seeds, from --seed on. [default: 3; 1 to 10000]" in shown["Comparison"]
    for option in ("--image-size N", "--batch-size N", "--lr N", "--workers N"):
        assert option in shown[settings]
    assert "hf://NAMESPACE/NAME[/FILE][@REVISION]" in shown["Policy"]  # brackets are no markup
    assert shown["Output"].endswith("--help Show this message and exit.")
    for command in ("search", "predict", "evaluate", "doctor"):
        shown = panels(mapolicy(command, "--help").out)
        assert list(shown)[-1] == "Output", command
        assert shown["Output"][-1].startswith("--help "), command


def test_a_narrow_terminal_gets_help_too(mapolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    outcome = mapolicy("train", "--help")
    assert outcome.code == 0
    assert "╭" not in outcome.out
    assert "--allow-dataset-mismatch" in outcome.out


def test_the_version_is_printed(mapolicy) -> None:
    assert mapolicy("--version").out == f"mapolicy {version('mapolicy')}\n"


def test_a_setting_that_is_typed_as_an_option_comes_with_set(mapolicy) -> None:
    said = "No such option: --layer-decay; use --set layer_decay=VALUE (`mapolicy settings layer_decay` explains it)"
    mapolicy("train", "digits", "--layer-decay", "0.75").is_error(2, said)
    mapolicy("train", "digits", "--nonsense").is_error(2, "No such option: --nonsense", "see mapolicy --help")


def test_every_command_shows_its_options_once(mapolicy) -> None:
    names = [name for commands in COMMANDS.values() for name in commands]
    for name in [*names, "bench step"]:
        text = mapolicy(*name.split(), "--help").out
        options = re.findall(r"^│ (--[a-z-]+)", text, re.MULTILINE)
        assert len(options) == len(set(options)) > 0, name
        assert {"--json", "--debug"} <= set(options) or name == "bench"


def test_the_module_runs_too(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mapolicy", "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert {"search", "train", "inspect", "slim", "export", "import", "push", "pull", "demo"} <= set(
        result.stdout.split()
    )


def test_a_closed_stdout_is_no_bug(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("mapolicy")
    command = ["bash", "-c", f"{script} operations >&-"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_usage_error_as_a_process(tmp_path: Path) -> None:
    result = run_process("inspect", folder=tmp_path)
    Outcome(result.returncode, result.stdout, result.stderr).is_error(2, "FILE")


def test_of_several_processes_one_says_what_was_typed_wrongly(mapolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    for rank in ("0", "1"):
        for name, value in (LAUNCHED | {"RANK": rank}).items():
            monkeypatch.setenv(name, value)
        outcome = mapolicy("search", "digits", "--set", "epochs=-1")
        assert outcome.code == 2
        said.append(len(outcome.err.splitlines()))
    assert said == [1, 0]


@pytest.mark.parametrize(
    ("command", "resumes"),
    [
        (("search", "digits", "--proxy", "wrn10_1"), True),
        (("search", "digits", "--proxy", "wrn10_1", "--dry-run"), False),
        (("data", "digits"), False),
        (("inspect", "x.safetensors"), False),
        (("archs",), False),
    ],
)
@pytest.mark.parametrize(("problem", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_only_commands_that_resume_speak_of_resume(
    mapolicy, monkeypatch: pytest.MonkeyPatch, command: tuple, resumes: bool, problem: BaseException, code: int
) -> None:
    def stopped(**_) -> None:
        raise problem

    monkeypatch.setattr("mapolicy.cli.main.app", stopped)
    outcome = mapolicy(*command)
    outcome.is_error(code, "interrupted")
    assert ("--resume" in outcome.err) == resumes
