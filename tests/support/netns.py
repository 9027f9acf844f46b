"""A network namespace with one cable to this machine, to be cut: needs root and Linux.

A server that is started within it is reached at `inside`; packets are lost silently, and no connection breaks.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

_CLONE_NEWNET = 0x40000000


class NoNamespaces(Exception):
    """This machine does not let us make one. Says why."""


class Namespace:
    """Made by `start`, gone after `stop`. Two at once need two numbers, below 250."""

    def __init__(self, number: int = 7) -> None:
        self._name = f"segue{number}"
        self._here, self._there = f"sg{number}a", f"sg{number}b"
        self.outside, self.inside = f"10.231.{number}.1", f"10.231.{number}.2"

    def start(self) -> Self:
        self.stop()  # what a killed run left
        self._ip(f"netns add {self._name}")
        self._ip(f"link add {self._here} type veth peer name {self._there}")
        self._ip(f"link set {self._there} netns {self._name}")
        self._ip(f"addr add {self.outside}/30 dev {self._here}")
        self._ip(f"link set {self._here} up")
        self._ip(f"-n {self._name} addr add {self.inside}/30 dev {self._there}")
        self._ip(f"-n {self._name} link set {self._there} up")
        self._ip(f"-n {self._name} link set lo up")
        return self

    def stop(self) -> None:
        for command in (f"ip link del {self._here}", f"ip netns del {self._name}"):
            subprocess.run(command.split(), check=False, capture_output=True)

    def _ip(self, arguments: str) -> None:
        self._run(f"ip {arguments}")

    def _run(self, command: str) -> None:
        try:
            done = subprocess.run(command.split(), check=False, capture_output=True, text=True)
        except OSError as error:
            raise NoNamespaces(f"no `{command.split(maxsplit=1)[0]}` command: {error}") from error
        if done.returncode:
            raise NoNamespaces(f"`{command}`: {done.stderr.strip()}")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Within, this thread is in the namespace, and so is what it starts."""
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self._name}") as there:  # noqa: PTH123
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def cut(self) -> None:
        """Nothing passes in either direction. The cable stays: without it our packets would go to the next gateway, and
        an answer may come from there."""
        self.cut_replies()
        self.cut_requests()

    def cut_replies(self) -> None:
        """Nothing comes out of the namespace any more; what is sent into it arrives."""
        self._run(f"tc -n {self._name} qdisc add dev {self._there} root pfifo limit 0")

    def cut_requests(self) -> None:
        """Nothing that we send arrives any more; what the namespace sends does."""
        self._run(f"tc qdisc add dev {self._here} root pfifo limit 0")

    def mend(self) -> None:
        """Undo every cut."""
        for command in (
            f"tc -n {self._name} qdisc del dev {self._there} root",
            f"tc qdisc del dev {self._here} root",
        ):
            subprocess.run(command.split(), check=False, capture_output=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise NoNamespaces(f"setns: {os.strerror(ctypes.get_errno())}")
