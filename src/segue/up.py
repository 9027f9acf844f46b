"""Everything in one process tree: `segue up` and `segue demo`.

The processors and the API are child processes (each has a Python of its own, so they share the cores);
the embedded Valkey is a child too. They end in the order of the data: API, processors, Valkey.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO

import httpx

from segue import runtime
from segue.embedded.child import end_child, spawn_bound_child, tail_of
from segue.embedded.valkey import EmbeddedValkey
from segue.errors import SegueError, SettingsError
from segue.settings import PREFIX, Settings

GRACE_MS = 10_000


class StackError(SegueError):
    """A part of the stack did not start or ended by itself. The message holds the end of its log."""


class Stack:
    """The parts of a deployment on this machine, as the settings say. A context manager: leaving stops all."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.api_url = settings.api
        self._directory = settings.data_dir.absolute()
        self._valkey: EmbeddedValkey | None = None
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._lock: IO[str] | None = None

    def start(self) -> Stack:
        """Start every part. Raises SettingsError when another stack uses the directory."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        url = self.settings.redis
        if url is None:
            self._valkey = EmbeddedValkey(self._directory / "valkey").start()
            url = self._valkey.url
            (self._directory / "valkey.url").write_text(url)
        environment = self._environment(url)
        source = runtime.open_log(self.settings)
        runtime.wait_for("topics", lambda: runtime.make_topics(self.settings, source), lambda: False)
        source.close()
        for name in runtime.PROCESSORS:
            self._spawn(name, ["run", name], environment)
        self._spawn("api", ["api"], environment)
        return self

    def _take_lock(self) -> None:
        """One stack per directory: two would share the names of their group members."""
        self._lock = (self._directory / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingsError(f"SEGUE_DATA_DIR: another stack runs in {self._directory}") from None

    def _environment(self, redis_url: str) -> dict[str, str]:
        """The settings in force, as the children's environment."""
        mine = self.settings.model_dump(mode="json", exclude_none=True, exclude={"kafka_options"})
        mine |= {"redis": redis_url, "data_dir": str(self._directory)}
        # A name that survives a restart, so that a killed stack's leases and transactions end at once.
        mine.setdefault("instance", "up")
        options = {"SEGUE_KAFKA_OPTIONS": os.environ["SEGUE_KAFKA_OPTIONS"]} if self.settings.kafka_options else {}
        return os.environ | options | {PREFIX + name.upper(): str(value) for name, value in mine.items()}

    def _spawn(self, name: str, arguments: list[str], environment: dict[str, str]) -> None:
        with self._log(name).open("ab") as output:
            self._children[name] = spawn_bound_child(
                [sys.executable, "-m", "segue", *arguments], output=output, environment=environment
            )

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until the API says that all is ready. Raises StackError when a part ends or time is up."""
        until = time.monotonic() + timeout_s
        with httpx.Client(trust_env=False) as client:  # no proxy stands between us and our child
            while True:
                self.check()
                try:
                    answer = client.get(f"{self.api_url}/readyz", timeout=2)
                    if answer.status_code == 200:
                        return
                    why = answer.text
                except httpx.TransportError as error:
                    why = str(error)
                if time.monotonic() > until:
                    raise StackError(f"not ready after {timeout_s:g} s: {why}")
                time.sleep(0.05)

    def check(self) -> None:
        """Raise StackError when a part has ended by itself."""
        for name, child in self._children.items():
            code = child.poll()
            if code is not None:
                raise StackError(f"{name} ended with code {code}; its log ends:\n{tail_of(self._log(name))}")

    def stop(self) -> None:
        """Stop every part, readers first, the store last."""
        for name in ("api", *reversed(runtime.PROCESSORS)):
            child = self._children.pop(name, None)
            if child is not None:
                end_child(child, signal.SIGTERM, grace_ms=GRACE_MS)
        if self._valkey is not None:
            self._valkey.stop()
            (self._directory / "valkey.url").unlink(missing_ok=True)
            self._valkey = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Stack:
        with self._undone():
            return self.start()

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Stop what was started when the rest does not start."""
        try:
            yield
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
