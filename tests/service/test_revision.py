import subprocess
from pathlib import Path

import pytest

from service.revision import REVISION_VARIABLE, revision


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.check_output(["git", "-C", str(folder), *identity, *arguments], text=True).strip()


def test_the_revision_is_the_commit_and_says_where_files_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(REVISION_VARIABLE, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert revision(tmp_path) == ""
    git(tmp_path, "init", "-q")
    (tmp_path / "sweep.yaml").write_text("a")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "a")
    git(tmp_path, "tag", "-am", "v1", "v1")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "below").mkdir()
    assert revision(tmp_path / "below") == commit
    (tmp_path / "sweep.yaml").write_text("b")
    assert revision(tmp_path) == f"{commit}-dirty"


def test_a_jobs_revision_is_that_of_where_it_was_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REVISION_VARIABLE, "abc-dirty")
    assert revision(tmp_path) == "abc-dirty"
