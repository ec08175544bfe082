"""Machines of a cluster without containers: network namespaces on a bridge where root may make them, else loopback."""

import contextlib
import os
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..orchestrate.conftest import descendants, kill

NETWORK = "10.213.{}.{}"
"""Of the namespaces alone; nothing else on the machine reaches it."""


def permitted() -> bool:
    """Whether namespaces can be made here."""
    name = f"bf{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True) if os.geteuid() == 0 else None
    if made is None or made.returncode:
        return False
    subprocess.run(["ip", "netns", "del", name], check=True)
    return True


class Hosts:
    """Named machines, each with an address; what is started on them ends with `close`."""

    def __init__(self, names: Sequence[str], logs: Path, local: Path) -> None:
        self.apart = permitted()
        self.logs, self.local = logs, local
        self.processes: dict[str, list[subprocess.Popen[bytes]]] = {name: [] for name in names}
        self._prefix = f"bf{secrets.token_hex(3)}"
        self._third = secrets.randbelow(250) + 1
        self.address = {name: self._address(number) for number, name in enumerate(names, start=1)}
        for folder in {local, logs, *(self.own(name) for name in names)}:
            folder.mkdir(exist_ok=True)
        if self.apart:
            self._connect()

    def _address(self, number: int) -> str:
        return NETWORK.format(self._third, number) if self.apart else "127.0.0.1"

    def _connect(self) -> None:
        hub = f"{self._prefix}-hub"
        _ip("netns", "add", hub)
        _ip("-n", hub, "link", "add", "br0", "type", "bridge")
        _ip("-n", hub, "link", "set", "br0", "up")
        for number, name in enumerate(self.address):
            space = self.space(name)
            _ip("netns", "add", space)
            _ip("link", "add", f"p{number}", "netns", hub, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("-n", hub, "link", "set", f"p{number}", "master", "br0", "up")
            _ip("-n", space, "addr", "add", f"{self.address[name]}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", space, "link", "set", "eth0", "up")
            # Ray finds a machine's own address by asking for the way to elsewhere.
            _ip("-n", space, "route", "add", "default", "dev", "eth0")

    def space(self, name: str) -> str:
        """The namespace of a machine."""
        return f"{self._prefix}-{name}"

    def _within(self, name: str, command: Sequence[str]) -> list[str]:
        """As the machine runs it: with a network and a local folder of its own, which the others do not see."""
        if not self.apart:
            return list(command)
        mount = f'mount --bind "{self.own(name)}" "{self.local}" && exec "$@"'
        return ["ip", "netns", "exec", self.space(name), "sh", "-c", mount, "sh", *command]

    def own(self, name: str) -> Path:
        """What `local` is on the machine `name`, seen from outside."""
        return self.local.with_name(f"{self.local.name}-{name}") if self.apart else self.local

    def start(
        self, name: str, command: Sequence[str], *, environment: Mapping[str, str], folder: Path
    ) -> subprocess.Popen[bytes]:
        """Begins a process on the machine `name`; what it prints goes to a file of its own."""
        number = len(self.processes[name])
        with (self.logs / f"{name}-{number}.log").open("wb") as log:
            process = subprocess.Popen(
                self._within(name, command), env=dict(environment), cwd=folder, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.processes[name].append(process)
        return process

    def run(
        self, name: str, command: Sequence[str], *, environment: Mapping[str, str], folder: Path, timeout: float = 300
    ) -> tuple[int, str]:
        """Runs a command on the machine to its end; its exit status and what it printed."""
        done = subprocess.run(
            self._within(name, command), env=dict(environment), cwd=folder, timeout=timeout, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.returncode, done.stdout

    def lose(self, name: str) -> None:
        """All processes of the machine are gone at once."""
        for pid in self._pids(name):
            kill(pid)
        for process in self.processes[name]:
            process.wait(20)

    def _pids(self, name: str) -> list[int]:
        if self.apart:
            listed = subprocess.run(["ip", "netns", "pids", self.space(name)], capture_output=True, text=True)
            return [int(pid) for pid in listed.stdout.split()]
        found = [pid for process in self.processes[name] for pid in (process.pid, *descendants(process.pid))]
        return list(reversed(found))

    def close(self) -> None:
        """Ends everything; the machines are gone too."""
        for name in self.processes:
            # Twice: one may have begun another meanwhile.
            for _ in range(2):
                for pid in self._pids(name):
                    kill(pid)
            for process in self.processes[name]:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
        if self.apart:
            for name in [*self.address, "hub"]:
                subprocess.run(["ip", "netns", "del", self.space(name)], capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
