"""Sweeps as jobs on a Ray cluster: sent there, followed and stopped from a client that may go away."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.object_store import is_url
from service.orchestrate.cluster import refused_token, set_auth_mode
from service.revision import REVISION_VARIABLE, revision
from service.spec import PROMOTE_FILE, SweepSpec
from service.tracking import first_line
from trainables.errors import ConfigError, StorageError
from trainables.user_code import local_sources

PACKAGES = ("service", "trainables", "dashboards")
RUN = "python -m service.cli run sweep.yaml --address auto"
POLL_S = 1.0
JOB_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
"""Ray would kill a job that is stopped after 3 seconds, where it may still be writing down how far it came.

Everybody who may see the dashboard sees a job's environment. No credentials are among it: the cluster's machines have
those of MLflow and of the storage in theirs, which a job inherits.
"""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


def submit_sweep(spec: SweepSpec, address: str, *, then: str = "") -> str:
    """Sends the sweep with our own code, so that all machines run one version; the job's name.

    `then` is a command of the shell that follows, whatever the sweep came to; the job ends as the sweep did.
    Raises ConfigError where a job of this sweep is running, or where its storage would be the job's own folder.
    """
    if not is_url(spec.storage.path) and not Path(spec.storage.path).is_absolute():
        raise spec.refuse(
            ("storage", "path"),
            f"storage.path: {spec.storage.path!r} would lie in the job's own folder, which the cluster deletes; "
            "give the absolute path of a folder that all its machines share, or s3://BUCKET/FOLDER",
        )
    client = _client(address)
    earlier = _jobs(client, spec.name)
    active = [job.submission_id for job in earlier if str(job.status) not in ENDED]
    if active:
        raise ConfigError(f"{spec.name} is running on {address} already, as {active[0]}; stop it, or wait for its end.")
    last = int(earlier[-1].submission_id.removeprefix(_prefix(spec.name))) if earlier else 0
    name = f"{_prefix(spec.name)}{last + 1}"
    with tempfile.TemporaryDirectory() as folder:
        _pack(spec, Path(folder))
        try:
            client.submit_job(
                entrypoint=f"{RUN}; status=$?; {then}; exit $status" if then else RUN,
                submission_id=name,
                runtime_env={
                    "working_dir": folder,
                    "env_vars": {**JOB_ENVIRONMENT, REVISION_VARIABLE: revision(Path.cwd())},
                },
                metadata={"sweep": spec.name, "spec": spec.hash[:12]},
            )
        except RuntimeError as error:
            raise ConfigError(f"--address {address}: the job {name} was refused: {first_line(error)}") from None
    return name


def _pack(spec: SweepSpec, folder: Path) -> None:
    root = Path(__file__).parents[2]
    for package in PACKAGES:
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    names = [*spec.names("network"), *spec.names("data")]
    if spec.promotion and spec.promotion.task == "classification":
        names.append(spec.promotion.sections["data"].name)
    for source in local_sources(names):
        if source.is_dir() and source.name not in PACKAGES:
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy(source, folder)
    (folder / "sweep.yaml").write_text(spec.text)
    if spec.promotion:
        (folder / PROMOTE_FILE).write_text(spec.promotion.text)


def is_running(name: str, address: str) -> bool:
    """Whether a job of the sweep is on its way, or waits for its turn."""
    jobs = _jobs(_client(address), name)
    return bool(jobs) and str(jobs[-1].status) not in ENDED


def job_status(name: str, address: str) -> dict[str, Any]:
    """The last job of the sweep, its status and what Ray says about it."""
    job = _last(_client(address), name, address)
    return {"job": job.submission_id, "status": str(job.status), "message": job.message or ""}


def job_exit_status(name: str, address: str) -> int | None:
    """Of the command of the sweep's last job; None where it has none, as its machine was lost."""
    status: int | None = _last(_client(address), name, address).driver_exit_code
    return status


def job_logs(name: str, address: str, *, follow: bool) -> Iterator[str]:
    """What the last job of the sweep has printed; with `follow` until it ends."""
    client, shown = _client(address), 0
    while True:
        job = _last(client, name, address)
        text = str(client.get_job_logs(job.submission_id))
        yield text[shown:]
        shown = len(text)
        if not follow or str(job.status) in ENDED:
            return
        time.sleep(POLL_S)


def stop_job(name: str, address: str) -> str:
    """Asks the last job of the sweep to end, as Ctrl-C would; its name."""
    client = _client(address)
    job = _last(client, name, address)
    client.stop_job(job.submission_id)
    return str(job.submission_id)


def _prefix(name: str) -> str:
    return f"bitfront-{name}-"


def _jobs(client: Any, name: str) -> list[Any]:
    """The jobs of one sweep, by number; another sweep's name may begin like this one's."""
    ours = [job for job in client.list_jobs() if _number(job, name)]
    return sorted(ours, key=lambda job: _number(job, name))


def _number(job: Any, name: str) -> int:
    """Of a job of this sweep, from 1; 0 for others."""
    prefix, submission = _prefix(name), job.submission_id or ""
    number = submission.removeprefix(prefix)
    return int(number) if submission.startswith(prefix) and number.isdecimal() else 0


def _last(client: Any, name: str, address: str) -> Any:
    jobs = _jobs(client, name)
    if not jobs:
        raise StorageError(f"{address} knows no job of a sweep {name!r}; send it there with: bitfront submit.")
    return jobs[-1]


def _client(address: str) -> Any:
    set_auth_mode()
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise ConfigError(refused_token(address, error)) from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--address {address}: no Ray dashboard answers there: {first_line(error)}") from None
