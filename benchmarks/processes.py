"""Processes that are started to be measured: what they and all their children use."""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

STOP_S = 20


@dataclass(frozen=True)
class Usage:
    """cpu_seconds: on all cores, since the processes began. resident_mib: pages that processes share count in each."""

    cpu_seconds: float
    resident_mib: float


class Started:
    """A process with all its children, whose output goes to the file `log`. Who they are is found out by `look`.
    folder: that it works in, this process's by default."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        *,
        folder: Path | None = None,
        pipes: bool = False,
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **(environment or {})},
                cwd=folder,
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else output,
                stderr=output,
                start_new_session=True,
            )
        self.look()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        """To its input, and from its output."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        return self.process.stdin, self.process.stdout

    def look(self) -> None:
        """Find the children, which takes some milliseconds: no matter for the middle of a measurement."""
        try:
            first = psutil.Process(self.process.pid)
            self._tree = [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            self._tree = []

    def usage(self) -> Usage:
        return used(self._tree)

    def hold(self) -> None:
        """SIGSTOP for all."""
        self.look()
        for process in self._tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def go_on(self) -> None:
        for process in self._tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def stop(self) -> None:
        """SIGTERM, and after a while SIGKILL for whoever of the tree is left."""
        self.go_on()
        self.look()
        tree = self._tree
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        psutil.wait_procs(tree, timeout=STOP_S)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what could not be written any more
                    pipe.close()


def used(processes: Sequence[psutil.Process]) -> Usage:
    cpu_seconds = resident = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess), process.oneshot():
            times = process.cpu_times()
            cpu_seconds += times.user + times.system
            resident += process.memory_info().rss
    return Usage(cpu_seconds, resident / 2**20)


def own_usage() -> Usage:
    """Of this process alone, the load generator."""
    return used([psutil.Process()])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
