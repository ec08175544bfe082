"""One driver at a time, known to be gone when it is, however it went."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

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


def test_a_driver_on_another_machine_is_alive_while_its_heart_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "HEARTBEAT_S", 0.05)
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


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_driver_on_another_machine_that_beats_is_not_replaced_when_a_clock_jumps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    monkeypatch.setattr(driver, "HEARTBEAT_S", 0.1)
    lock, ended = tmp_path / "driver.lock", threading.Event()
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 7}))

    def beat() -> None:
        for count in itertools.count():
            moment = time.time() + 3600 * hours + count
            os.utime(lock, (moment, moment))
            if ended.wait(0.1):
                return

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        time.sleep(0.05)
        with pytest.raises(StorageError, match="process 7 on elsewhere"), driver.hold(tmp_path):
            pass
    finally:
        ended.set()
        heart.join()
    # Now it is silent, whatever its last heartbeat was dated.
    with driver.hold(tmp_path):
        assert driver.alive(tmp_path)


def test_of_many_that_take_a_sweep_at_once_exactly_one_gets_it_and_the_others_are_told_which(tmp_path: Path) -> None:
    start, here = tmp_path / "start", socket.gethostname()
    children = [os.fork() or _contend(tmp_path, start) for _ in range(24)]
    start.touch()
    for child in children:
        os.waitpid(child, 0)
    said = [(tmp_path / f"{child}.txt").read_text() for child in children]
    assert said.count("held") == 1, said
    (winner,) = [child for child, words in zip(children, said, strict=True) if words == "held"]
    refused = [words for words in said if words != "held"]
    assert all(words.startswith(f"{tmp_path.name} is run by process") for words in refused)
    assert sum(f"process {winner} on {here}" in words for words in refused) >= len(refused) - 2


def _contend(folder: Path, start: Path) -> NoReturn:
    """In a fork: takes the sweep once all may, and keeps it until the others have tried."""
    words = "nothing"
    try:
        while not start.exists():
            time.sleep(0.001)
        try:
            with driver.hold(folder):
                words = "held"
                time.sleep(1.5)
        except StorageError as error:
            words = str(error)
    finally:
        (folder / f"{os.getpid()}.txt").write_text(words)
        os._exit(0)
