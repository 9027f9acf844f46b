"""The processors as processes of their own, to be killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka.admin import AdminClient

from segue.runtime import PROCESSORS
from segue.settings import Settings
from tests.support.stack import eventually


class Processes:
    """Starts the named processors with `settings`; each writes a log of its own into the data directory."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *names: str) -> None:
        for name in names or PROCESSORS:
            with self.log_of(name).open("ab") as output:
                self._running[name] = subprocess.Popen(
                    [sys.executable, "-m", "segue", "run", name],
                    env=environment(self.settings),
                    stdout=output,
                    stderr=output,
                )

    def kill(self, name: str) -> None:
        """SIGKILL: no time to say good-bye."""
        child = self._running.pop(name)
        child.kill()
        child.wait()

    def stop(self, name: str) -> int:
        """SIGTERM; returns the exit code."""
        child = self._running.pop(name)
        child.send_signal(signal.SIGTERM)
        return child.wait(20)

    def log_of(self, name: str) -> Path:
        return self.settings.data_dir / f"{name}.log"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for name in list(self._running):
            self.kill(name)


def environment(settings: Settings) -> dict[str, str]:
    """Settings as environment variables for a child process."""
    values = settings.model_dump(mode="json", exclude_none=True, exclude={"kafka_options"})
    return os.environ | {f"SEGUE_{name.upper()}": str(value) for name, value in values.items()}


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
