"""Files of tensors: a bit that has flipped, a pickle that runs code, and a disk that is full are all noticed."""

import errno
import os
import pickle
import random
from pathlib import Path

import pytest
import torch

from trainables.tensor_files import DamagedError, read_tensors, replace_tensors, save_tensors

CONTENT = {"weights": torch.arange(300.0), "stage": "search", "generators": [torch.get_rng_state()]}


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_any_bit_that_flips_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path, draws, noticed, unseen_by_torch = tmp_path / "x.pt", random.Random(0), 0, 0
    save_tensors(CONTENT, path)
    whole = path.read_bytes()
    for _ in range(400):
        place, changed = draws.randrange(8 * len(whole)), bytearray(whole)
        changed[place // 8] ^= 1 << (place % 8)
        path.write_bytes(changed)
        try:
            assert same(read_tensors(path), CONTENT), f"bit {place} went unnoticed"
        except DamagedError:
            noticed += 1
            try:
                unseen_by_torch += not same(torch.load(path, weights_only=True), CONTENT)
            except Exception:
                continue
    assert noticed > 300
    assert unseen_by_torch > 200


def test_a_file_that_was_cut_off_anywhere_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save_tensors(CONTENT, path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedError, match="is damaged"):
            read_tensors(path)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_that_would_run_code_is_refused_without_running_it(tmp_path: Path, form: str) -> None:
    path, sprung = tmp_path / "x.pt", tmp_path / "sprung"
    if form == "torch":
        torch.save({"weights": Trap(sprung)}, path)
    else:
        path.write_bytes(pickle.dumps({"weights": Trap(sprung)}))
    with pytest.raises(DamagedError, match="damaged"):
        read_tensors(path)
    assert not sprung.exists()


def test_a_disk_that_is_full_is_an_error_of_the_system_and_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="No space left") as found:
        save_tensors(CONTENT, Path("/dev/full"))
    assert found.value.errno == errno.ENOSPC
    path = tmp_path / "x.pt"
    replace_tensors(CONTENT, path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        replace_tensors({"weights": torch.zeros(1)}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]
    assert path.read_bytes() == before
