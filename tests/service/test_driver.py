"""One driver at a time, known to be gone when it is, however it went."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service import driver
from trainables.errors import StorageError

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from service import driver
with driver.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_driver_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    assert not driver.alive(tmp_path)
    with driver.hold(tmp_path):
        assert driver.alive(tmp_path)
        with (
            pytest.raises(StorageError, match=f"is run by process {os.getpid()} on .*bitfront stop"),
            driver.hold(tmp_path),
        ):
            pass
        assert driver.alive(tmp_path)
    assert not driver.alive(tmp_path)


def test_a_driver_that_was_killed_is_gone_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert driver.alive(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not driver.alive(tmp_path)
    with driver.hold(tmp_path):
        assert driver.alive(tmp_path)


def test_a_driver_on_another_machine_is_alive_while_its_heart_beats(tmp_path: Path) -> None:
    lock = tmp_path / "driver.lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    assert driver.alive(tmp_path)
    with pytest.raises(StorageError, match="process 7 on elsewhere"), driver.hold(tmp_path):
        pass
    long_ago = time.time() - 2 * driver.SILENCE_S
    os.utime(lock, (long_ago, long_ago))
    assert not driver.alive(tmp_path)
    with driver.hold(tmp_path):
        pass


def test_a_request_to_stop_lasts_until_the_next_driver(tmp_path: Path) -> None:
    with driver.hold(tmp_path):
        assert not driver.stop_requested(tmp_path)
        driver.request_stop(tmp_path)
        assert driver.stop_requested(tmp_path)
    with driver.hold(tmp_path):
        assert not driver.stop_requested(tmp_path)
