"""The time of a command is counted from the start of its process."""

import subprocess
import sys
import time

from mapolicy.cli import clock


def test_time_is_counted_from_the_start_of_the_process() -> None:
    code = "import time; time.sleep(1); from mapolicy.cli.clock import process_age; print(process_age())"
    start = time.monotonic()
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 1.0 <= float(told) <= time.monotonic() - start + 0.02


def test_elsewhere_it_is_counted_from_now() -> None:
    before = time.monotonic()
    assert before <= clock.began() <= time.monotonic()
    with clock.of_process():
        inside = clock.began()
        assert inside == clock.began() <= time.monotonic()
    assert clock.began() >= before
