"""The processors as processes of their own, to be killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka.admin import AdminClient

from segue.runtime import PROCESSORS
from segue.settings import Settings
from tests.support.stack import eventually


class Processes:
    """Starts the named processors with `settings`; each writes a log of its own into the data directory.

    Of one processor there may be several: `context.1` and `context.2` keep these numbers as their instance names
    over a restart; `context` and `context~2` get a new instance name at each start.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *names: str, more: Mapping[str, str] | None = None) -> None:
        """Start the processors; `more` are further environment variables."""
        for name in names or PROCESSORS:
            processor, _, instance = name.partition("~")[0].partition(".")
            named = {"SEGUE_INSTANCE": instance} if instance else {}
            with self.log_of(name).open("ab") as output:
                self._running[name] = subprocess.Popen(
                    [sys.executable, "-m", "segue", "run", processor],
                    env=environment(self.settings) | named | dict(more or {}),
                    stdout=output,
                    stderr=output,
                )

    @property
    def running(self) -> list[str]:
        """The names of those started and not ended by us."""
        return list(self._running)

    def ended(self) -> dict[str, int]:
        """Those that ended by themselves, with their exit codes (negative: the signal); they run no more."""
        found = {name: child.returncode for name, child in self._running.items() if child.poll() is not None}
        for name in found:
            del self._running[name]
        return found

    def kill(self, name: str) -> None:
        """SIGKILL: no time to say good-bye."""
        child = self._running.pop(name)
        child.kill()  # reaches a paused one too
        child.wait()

    def stop(self, name: str) -> int:
        """SIGTERM; returns the exit code."""
        child = self._running.pop(name)
        child.send_signal(signal.SIGTERM)
        return child.wait(120)  # generous: a machine may be busy

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def stopped(self, name: str) -> bool:
        """Whether it stands still after SIGSTOP, by whomever."""
        found = os.waitid(os.P_PID, self.pid(name), os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
        return found is not None

    def pause(self, name: str) -> None:
        """SIGSTOP: it keeps its connections and does nothing."""
        self._running[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT; does nothing to one that was not paused."""
        self._running[name].send_signal(signal.SIGCONT)

    def log_of(self, name: str) -> Path:
        return self.settings.data_dir / f"{name}.log"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for name in list(self._running):
            self.kill(name)


def environment(settings: Settings) -> dict[str, str]:
    """Settings as environment variables for a child process."""
    values = settings.model_dump(mode="json", exclude_none=True)
    texts = {name: json.dumps(value) if isinstance(value, dict) else str(value) for name, value in values.items()}
    return os.environ | {f"SEGUE_{name.upper()}": text for name, text in texts.items()}


def without_topics(bootstrap: str) -> str:
    """Delete what earlier tests left on a broker: our topics and groups have fixed names."""
    admin = AdminClient({"bootstrap.servers": bootstrap})

    def ours() -> list[str]:
        return [name for name in admin.list_topics(timeout=10).topics if name.startswith("segue.")]

    if ours():
        for done in admin.delete_topics(ours(), operation_timeout=30).values():
            done.result()
        eventually(lambda: not ours(), 30, "deletion of topics")
    groups = [g.group_id for g in admin.list_consumer_groups().result().valid if g.group_id.startswith("segue.")]
    for done in (admin.delete_consumer_groups(groups) if groups else {}).values():
        done.exception()  # one that is not empty yet belongs to a member that is gone; it expires by itself
    return bootstrap
