"""The topology of docker/compose.yaml as processes: its own commands, with names of services replaced by addresses."""

import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..docker.files import DOCKER, ROOT, compose
from ..orchestrate.conftest import wait_for
from .hosts import Hosts

MACHINES = ("services", "head", "worker-1", "worker-2", "client")
SERVICES = {"postgres": "services", "s3": "services", "mlflow": "services", "head": "head"}
BIN = Path(sys.executable).parent
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
SECRETS = ("ray", "postgres", "mlflow", "flask", "s3")
S3_PORT = 7070


class Topology:
    """PostgreSQL, a bucket, MLflow, a Ray head and two workers, on machines of their own."""

    def __init__(self, folder: Path, hosts: Hosts) -> None:
        self.folder, self.hosts = folder, hosts
        self.secrets = {name: f"{name}{secrets.token_hex(12)}" for name in SECRETS}
        filled = {
            "BITFRONT_RAY_TOKEN": self.secrets["ray"],
            "BITFRONT_POSTGRES_PASSWORD": self.secrets["postgres"],
            "BITFRONT_MLFLOW_PASSWORD": self.secrets["mlflow"],
            "BITFRONT_MLFLOW_SECRET_KEY": self.secrets["flask"],
            "BITFRONT_S3_SECRET": self.secrets["s3"],
            "BITFRONT_GRAFANA_PASSWORD": "unused",
            "BITFRONT_WORKER_CPUS": "1",
        }
        self.services = compose(filled)["services"]
        self.shared = folder / "sweeps"
        self.shared.mkdir()
        self.database = folder / "postgres"

    def placed(self, text: str) -> str:
        """A text of the compose file with names of services as addresses."""
        for service, machine in SERVICES.items():
            text = re.sub(rf"(?<![\w.-]){service}(?=:\d)", self.hosts.address[machine], text)
        return text

    def command(self, service: str) -> list[str]:
        """What the compose file starts, which stands in this environment's folder."""
        program, *rest = [self.placed(str(word)) for word in self.services[service]["command"]]
        found = BIN / program
        return [str(found) if found.exists() else program, *rest]

    def environment(self, service: str) -> dict[str, str]:
        """What the compose file gives the service, and no more of ours than programs need."""
        given = {key: self.placed(str(value)) for key, value in self.services[service]["environment"].items() if value}
        kept = {key: os.environ[key] for key in ("HOME", "LANG", "TMPDIR") if key in os.environ}
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
        return {**kept, "PATH": path, **quiet, **given}

    def client(self, **changes: str) -> dict[str, str]:
        """Of somebody who submits: the token of Ray, and nothing of MLflow."""
        base = {key: value for key, value in self.environment("head").items() if not re.match("MLFLOW_|AWS_|RAY_", key)}
        found = {**base, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "RAY_AUTH_TOKEN": self.secrets["ray"], **changes}
        return {key: value for key, value in found.items() if value}

    @property
    def dashboard(self) -> str:
        """Where jobs are sent."""
        return f"http://{self.hosts.address['head']}:8265"

    @property
    def mlflow(self) -> str:
        """The tracking server."""
        return f"http://{self.hosts.address['services']}:5000"

    def bitfront(self, *arguments: str, on: str = "client", **changes: str) -> tuple[int, str]:
        """A command of ours, on the client or another machine."""
        command = [sys.executable, "-m", "service.cli", *arguments]
        return self.hosts.run(on, command, environment=self.client(**changes), folder=self.folder)

    def start_postgres(self) -> None:
        """PostgreSQL of Debian with a password, as a user without rights where this one is root."""
        if not self.database.exists():
            self._init_postgres()
        sockets = self.database.parent
        command = [str(POSTGRES[0] / "postgres"), "-D", str(self.database), "-p", "5432", "-k", str(sockets)]
        command += ["-c", f"listen_addresses={self.hosts.address['services']}"]
        self._postgres = self.hosts.start(
            "services", _unprivileged(command), environment=self._plain(), folder=self.folder
        )
        wait_for(lambda: self._sql("select 1") == 0, seconds=60)

    def _plain(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}

    def _init_postgres(self) -> None:
        self.database.mkdir()
        word = self.folder / "password"
        word.write_text(self.secrets["postgres"])
        if os.geteuid() == 0:
            shutil.chown(self.database, "postgres", "postgres")
            shutil.chown(word, "postgres", "postgres")
        user = self.services["postgres"]["environment"]["POSTGRES_USER"]
        command = [str(POSTGRES[0] / "initdb"), "-D", str(self.database), "--username", user, "--auth=scram-sha-256"]
        command += ["--pwfile", str(word), "--encoding=UTF8", "--no-sync"]
        subprocess.run(_unprivileged(command), check=True, capture_output=True, env=self._plain(), cwd="/")
        word.unlink()
        with (self.database / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 10.213.0.0/16 scram-sha-256\n")

    def _sql(self, statement: str, database: str = "postgres") -> int:
        place = ["-h", self.hosts.address["services"], "-p", "5432", "-U", "mlflow", "-d", database]
        environment = {**self._plain(), "PGPASSWORD": self.secrets["postgres"], "PGCONNECT_TIMEOUT": "5"}
        command = [str(POSTGRES[0] / "psql"), *place, "-c", statement]
        return self.hosts.run("services", command, environment=environment, folder=self.folder)[0]

    def restart_postgres(self, *, away_s: float) -> None:
        """It is stopped as an upgrade stops it, and comes back."""
        stop = [str(POSTGRES[0] / "pg_ctl"), "-D", str(self.database), "-m", "fast", "-w", "stop"]
        status, told = self.hosts.run(
            "services", _unprivileged(stop), environment=self._plain(), folder=self.folder, timeout=60
        )
        assert status == 0, told
        self._postgres.wait(30)
        wait_for(lambda: self._sql("select 1") != 0, seconds=10)
        self.hosts.run("services", ["sleep", str(away_s)], environment=self._plain(), folder=self.folder)
        self.start_postgres()

    def start_mlflow(self) -> None:
        """The bucket and the server on it, as the compose file starts them."""
        store = ["-H", self.hosts.address["services"], "-p", str(S3_PORT)]
        environment = self.environment("mlflow")
        self.hosts.start("services", [str(BIN / "moto_server"), *store], environment=environment, folder=self.folder)
        make = [sys.executable, str(DOCKER / "mlflow" / "create_bucket.py"), self.services["buckets"]["command"][-1]]
        # Again, as after a restart of everything.
        for seconds in (120, 10):
            wait_for(
                lambda: self.hosts.run("services", make, environment=environment, folder=self.folder)[0] == 0,
                seconds=seconds,
            )
        assert self._sql("create database mlflow") == 0
        settings = self.folder / "auth.ini"
        settings.write_text(self.placed((DOCKER / "mlflow" / "auth.ini").read_text()))
        environment |= {"MLFLOW_AUTH_CONFIG_PATH": str(settings), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        command = [word.replace("--workers=2", "--workers=1") for word in self.command("mlflow")]
        self.hosts.start("services", command, environment=environment, folder=self.folder)
        # As the image's own check.
        probe = f"import urllib.request; urllib.request.urlopen('{self.mlflow}/health', timeout=4)"
        self._wait_for("services", [sys.executable, "-c", probe])

    def start_ray(self) -> None:
        """The head, and the workers once it is healthy by the compose file's own check."""
        environment = {**self.environment("head"), "PYTHONPATH": ""}
        address, session = self.hosts.address, self.hosts.local
        common = ["--disable-usage-stats"]
        self.hosts.start(
            "head", [*self.command("head"), *common, f"--node-ip-address={address['head']}", f"--temp-dir={session}"],
            environment=environment, folder=self.folder,
        )  # fmt: skip
        _, *check = [self.placed(word) for word in self.services["head"]["healthcheck"]["test"]]
        wait_for(
            lambda: self.hosts.run("head", check, environment=environment, folder=self.folder)[0] == 0, seconds=180
        )
        _, *check = self.services["worker"]["healthcheck"]["test"]
        if not self.hosts.apart:
            check = [sys.executable, "-c", "pass"]
        # One after the other: on a busy machine they would take each other's time.
        for name in ("worker-1", "worker-2"):
            self._start_worker(name)
            self._wait_for(name, check)

    def _start_worker(self, name: str) -> None:
        command = [*self.command("worker"), "--disable-usage-stats", f"--node-ip-address={self.hosts.address[name]}"]
        environment = {**self.environment("worker"), "PYTHONPATH": ""}
        self.hosts.start(name, [*command, *self._ports(name)], environment=environment, folder=self.folder)

    def _ports(self, name: str) -> list[str]:
        """On one machine nodes take ports of their own."""
        if self.hosts.apart:
            return []
        offset = 100 * (1 + ("worker-1", "worker-2").index(name))
        return [f"--dashboard-agent-listen-port={52365 + offset}", f"--metrics-export-port={8080 + offset}"]

    def _wait_for(self, name: str, command: Sequence[str]) -> None:
        answers: list[str] = []

        def healthy() -> bool:
            if name.startswith("worker") and self.hosts.processes[name][-1].poll() is not None:
                # Ray gives up after 30 seconds, on a busy machine too soon; a container would be started again.
                self._start_worker(name)
            status, told = self.hosts.run(name, command, environment=self._plain(), folder=self.folder)
            answers.append(told)
            return status == 0

        try:
            wait_for(healthy, seconds=600)
        except AssertionError:
            logs = "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in self.hosts.logs.glob(f"{name}-*"))
            raise AssertionError(f"{name} is not healthy: {answers[-1]}\n{logs}") from None


def _unprivileged(command: Sequence[str]) -> list[str]:
    """PostgreSQL refuses to be root."""
    if os.geteuid():
        return list(command)
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *command]


@contextmanager
def running() -> Iterator[Topology]:
    """All of it, in a folder of its own that everybody may enter."""
    folder = Path(tempfile.mkdtemp(prefix="bfc"))
    folder.chmod(0o755 if os.geteuid() == 0 else 0o700)
    if os.geteuid() == 0:
        shutil.chown(folder, group="postgres")
        folder.chmod(0o775)
    hosts = Hosts(MACHINES, folder / "logs", folder / "ray")
    try:
        found = Topology(folder, hosts)
        found.start_postgres()
        found.start_mlflow()
        found.start_ray()
        yield found
    finally:
        hosts.close()
        shutil.rmtree(folder, ignore_errors=True)
