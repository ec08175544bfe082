"""The command as a user calls it: bad input ends in one message and status 2, before anything was computed."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOOD = (ROOT / "sweeps" / "quickstart.yaml").read_text()


def bitfront(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  epochs: 6", "  epoch: 6", "s.yaml:LINE:3: method.epoch: unknown key 'epoch'; did you mean 'epochs'?"),
        ("trials: 12", "trials: many", "s.yaml:LINE:9: trials: found 'many'; expected a whole number"),
        ("space:", "spaces:", "s.yaml:LINE:1: unknown key 'spaces'; did you mean 'space'?"),
        ("name: digits ", "name: fashion-mnist\n  root: /nowhere #", "Fashion-MNIST is not in /nowhere"),
        ("name: digits ", "name: imagefolder\n  root: /nowhere #", "/nowhere/train is not a folder"),
        ("concurrency: 2", "workers: 64", "resources: a trial asks for 64 CPUs"),
        ("concurrency: 2", "workers: 2\n  concurrency: 64", "64 trials at once ask for 128 CPUs"),
        ("trials: 12", "trials: 12\ntracking: {uri: 'http://127.0.0.1:PORT'}", "cannot be reached"),
        ("trials: 12", "trials: 12\nstorage: {path: /dev/null/x}", "storage.path: /dev/null/x cannot be written"),
    ],
    ids=["unknown key", "wrong type", "empty space", "missing folder", "missing images", "too many workers",
         "too many trials", "unreachable server", "storage below a file"],
)  # fmt: skip
def test_bad_input_is_one_message_and_status_2(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new.replace("PORT", str(free_port())), 1)
    if "workers: 64" in new:
        text = text.replace("batch_size: 64", "batch_size: 128")
    (tmp_path / "s.yaml").write_text(text)
    line = text[: text.find(new)].count("\n") + 1
    found = bitfront("run", "s.yaml", cwd=tmp_path)
    assert found.returncode == 2
    assert message.replace("LINE", str(line)) in found.stderr
    assert found.stderr.startswith("bitfront: ")
    assert "Traceback" not in found.stdout + found.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


@pytest.mark.parametrize("status", [1, 2])
def test_a_reference_that_cannot_be_made_is_one_message(tmp_path: Path, status: int) -> None:
    """MobileNetV2 leaves one pixel of 16: found on the real network, at the latest before it is trained."""
    text = GOOD.replace("name: resnet8 ", "name: mobilenet_v2 ")
    if status == 1:
        # Nothing is compared with the network's map, so the sweep begins.
        text = re.sub(r"\n  method.top_k.*", "", text)
    (tmp_path / "s.yaml").write_text(text)
    found = bitfront("run", "s.yaml", cwd=tmp_path)
    assert found.returncode == status
    place = "" if status == 1 else "s.yaml:8:9: "
    assert found.stderr.startswith(
        f"bitfront: {place}of images of 16×16 pixels the last convolution, features.18.0, leaves a map"
    )
    assert "Traceback" not in found.stdout + found.stderr


def test_a_missing_sweep_file_is_named(tmp_path: Path) -> None:
    found = bitfront("run", "none.yaml", cwd=tmp_path)
    assert (found.returncode, found.stderr) == (2, "bitfront: none.yaml: no such file\n")


def test_the_ui_without_records_says_what_to_do(tmp_path: Path) -> None:
    found = bitfront("ui", "--storage", "empty", cwd=tmp_path)
    assert found.returncode == 2
    assert "empty/mlflow.db does not exist: run a sweep with this storage first" in found.stderr


def test_help_names_every_command(tmp_path: Path) -> None:
    found = bitfront("--help", cwd=tmp_path)
    assert found.returncode == 0
    commands = "check clean completion extend list logs plan rerun-failed resume run schema status stop submit sync ui"
    for command in commands.split():
        assert re.search(rf"^  {command} ", found.stdout, flags=re.MULTILINE), command
