"""`comparison.json`: what a comparison's folder is for, so that `resume` never mixes two comparisons."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..bundle.manifest_base import PolicyFile
from ..errors import InputError, UsageError
from ..runtime.files import COMPARISON_FILE, foreign_to_comparison, has_files, read_regular_file, write_atomically
from ..runtime.sanitize import printable
from .policies import DIGEST_DIGITS

LARGEST_JSON = 2**24  # bytes


def open_record(
    run_dir: Path, bundles: Mapping[str, PolicyFile], budget: str, resume: bool, overwrite: bool
) -> dict[str, Any]:
    """The folder's record: a new one, or with `resume` the old one with the new bundles added. Writes nothing.

    Args:
        run_dir: folder of the comparison.
        bundles: by digest.
        budget: `equal-epochs` or `equal-time`.
        resume: continue the comparison in the folder.
        overwrite: start a new comparison in a folder that holds one.

    Raises:
        UsageError: the folder holds a comparison, and neither `resume` nor `overwrite` was given; or it holds files
            and is no comparison's, so it is somebody's folder.
        InputError: the folder holds another comparison.
    """
    path = run_dir / COMPARISON_FILE
    new: dict[str, Any] = {"budget": budget, "bundles": list(bundles)}
    if odd := foreign_to_comparison(run_dir):
        raise UsageError(str(run_dir), f"holds {printable(odd)}, which is no comparison's", "use another --run-dir")
    if not resume:
        if has_files(run_dir) and not overwrite:
            raise UsageError(str(run_dir), "holds a comparison", "use --resume, --force or another --run-dir")
        return new
    if not path.exists():  # stopped before its first run began
        return new
    old = read_json_object(path)
    known = old.get("bundles", [])
    if old.get("budget") != budget:
        raise other_comparison(run_dir, [f"budget {old.get('budget')} -> {budget}"])
    if not set(known) & set(bundles):
        raise other_comparison(run_dir, [f"bundle {known[0][:DIGEST_DIGITS]} -> {next(iter(bundles))[:DIGEST_DIGITS]}"])
    return old | {"bundles": list(dict.fromkeys([*known, *bundles]))}


def save_record(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Write the record into the comparison's folder."""
    write_json(run_dir / COMPARISON_FILE, record)


def other_comparison(folder: Path, differences: Sequence[str]) -> InputError:
    """The error for a folder whose comparison differs from the requested one."""
    remedy = "undo the changes, or use another --run-dir"
    return InputError(str(folder), f"belongs to another comparison: {', '.join(differences)}", remedy)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as indented JSON, atomically."""
    write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object that a comparison or a run wrote.

    Raises:
        InputError: the file holds something else.
    """
    try:
        found = json.loads(read_regular_file(path, LARGEST_JSON))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(str(path), "is not a record that mapolicy wrote", "start again with --force")
    return found
