"""`mapolicy explore`: serves its page until Ctrl-C."""

import os
import signal
import threading
import urllib.request
from pathlib import Path

import pytest

from tests.helpers.command_line import snapshot


def test_explore_serves_until_ctrl_c(
    mapolicy, bundle_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    from mapolicy.report.explore_server import Site

    serve, answers = Site.serve, []

    def visited(site: Site) -> None:
        def visit() -> None:
            try:
                with urllib.request.urlopen(site.address, timeout=20) as answer:
                    answers.append((site.address, answer.read()))
            finally:
                os.kill(os.getpid(), signal.SIGINT)

        visitor = threading.Thread(target=visit)
        visitor.start()
        serve(site)
        visitor.join()

    monkeypatch.setattr(Site, "serve", visited)
    outcome = mapolicy("explore", bundle_file)
    ((address, page),) = answers
    assert (outcome.code, outcome.err) == (0, "mapolicy: reading the data set\n")
    assert f"open     {address}\n" in outcome.out
    assert b"Exploring the policy of digits" in page
    assert snapshot(tmp_path) == []


def test_explore_refuses_what_it_cannot_show(mapolicy) -> None:
    pytest.importorskip("starlette", reason="the extra explore")
    mapolicy("import", "randaugment:1,5", "--out", "r.safetensors")
    mapolicy("explore", "r.safetensors").is_error(3, "dataset-level policy")
    mapolicy("explore", "nowhere").is_error(3, "nowhere: No such file")
