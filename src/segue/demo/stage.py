"""The demo from its first line to its exit code: start a stack, play, count, show, stop."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.text import Text

from segue import runtime
from segue.client import Client
from segue.demo import summary
from segue.demo.counts import Counts, Row, agrees, compared
from segue.demo.incidents import Excerpt, excerpt
from segue.demo.player import INCIDENTS, STORY, Player
from segue.demo.reading import ApiReader
from segue.demo.screen import Screen
from segue.demo.story import Story
from segue.errors import SegueError, SettingsError
from segue.settings import load
from segue.up import Stack

READY_S = 60.0
STORY_S = 80.0
"""How long the story's three hours take at speed 1: one or two events a second can be followed."""
INCIDENTS_PER_S = 300.0
CLOSE_S = 5.0
INTERRUPTED = 130
"""The exit code of a run that was to be checked and was stopped before: 128 + SIGINT, as shells have it."""


@dataclass(frozen=True)
class Options:
    """What the command line says. `once`: no pauses, then a verdict, and the end."""

    once: bool = False
    seed: int = 7
    speed: float = 1.0
    port: int = 8321
    keep: bool = False
    data_dir: Path | None = None


def perform(options: Options, console: Console, stop: threading.Event, story_implies: Counts | None = None) -> int:
    """Run the demo until `stop`, or with `once` to its end. Returns the exit code.

    `story_implies` stands in for what the story says of itself. Raises SegueError.
    """
    began = time.monotonic()
    with _directory(options, console) as directory, ThreadPoolExecutor(1, "reading") as reading:
        real = reading.submit(excerpt)  # a second of reading, while the processes start
        settings = load(data_dir=directory, api_port=_port(options.port, console), api_url=None)
        _say(console, f"Starting Segue in {directory} ...")
        with Stack(settings) as stack, ApiReader(stack.api_url) as reader:
            stack.wait_ready(READY_S)
            try:
                show = Show(options, console, stop, stack, reader)
                good = show.play(real.result(), began, story_implies)
                while not options.once and not stop.wait(0.5):
                    stack.check()
            except SegueError:
                stack.check()  # when a part of the stack has ended, that is the news
                raise
            if not options.once:
                _say(console, "\nStopping ...")
    if stop.is_set():
        return INTERRUPTED if options.once else 0
    return 0 if good else 1


class Show:
    """One performance on a running stack."""

    def __init__(
        self, options: Options, console: Console, stop: threading.Event, stack: Stack, reader: ApiReader
    ) -> None:
        self._options, self._console, self._stop = options, console, stop
        self._stack, self._reader = stack, reader
        # So that nothing in it lies in the future, however fast it is played.
        self._story = Story(options.seed, datetime.now(UTC) - timedelta(hours=3))

    def play(self, real: Excerpt, began: float, story_implies: Counts | None) -> bool:
        """Play both parts and print what came of them. Returns whether that is what they imply."""
        options, reader = self._options, self._reader
        before = reader.counts()
        fresh = not before.events and not before.dead_letters
        if options.once and not fresh:
            raise SettingsError("--once counts everything, so it needs an empty stack; this one has events already")
        events, implied = real.events(), real.expected()
        with (
            closing(runtime.open_log(self._stack.settings)) as log,
            Client(url=reader.url, timeout_s=CLOSE_S) as client,
            Screen(self._console, quiet=options.once) as screen,
        ):
            player = Player(client, log, reader, screen, self._stop, self._stack.check)
            readable_s = player.first(events[0]) - began
            if self._stop.is_set():
                return False
            if not options.once:
                _say(self._console, f"First context readable {readable_s:.1f} s after the start.")
                self._introduce(real)
            player.incidents(events[1:], 1, INCIDENTS_PER_S)
            incidents = self._settled(implied, before, Counts())
            middle = reader.counts()
            player.story(self._story, None if options.once else STORY_S / options.speed)
            rest = Counts(refused=player.refused)
            story = self._settled(story_implies or self._story.expected(), middle, rest)
        if self._stop.is_set():
            return False
        return self._tell({INCIDENTS: incidents, STORY: story}, fresh, readable_s)

    def _settled(self, implied: Counts, before: Counts, more: Counts) -> list[Row]:
        """The counts since `before`, when all is counted that was sent, beside what is implied."""

        def rows(now: Counts) -> list[Row]:
            counted = now - before
            counted.refused += more.refused
            return compared(implied, counted)

        if self._stop.is_set():
            return []
        return rows(self._reader.settle(lambda now: all(map(agrees, rows(now)))))

    def _introduce(self, real: Excerpt) -> None:
        """Say what will be played, and where else to look meanwhile."""
        url, person = self._reader.url, self._story.interesting
        address = f"{url}/v1/customers/{person.identifiers[0]}"
        implied, seconds = real.expected(), STORY_S / self._options.speed
        lines = (
            "",
            f"First {len(real.entries):,} events of {implied.cases} real service cases (UCI incident log, CC BY 4.0),",
            f"then a story of {len(self._story.people)} invented customers: three hours in {seconds:.0f} seconds.",
            "Meanwhile, in another window:",
            "",
            f"  API docs  {url}/docs",
            f"  metrics   {url}/metrics",
            "",
            f"  One customer, by any identifier ({person.title!r}, from minute two of the story):",
            f"  curl -s {address}/context",
            "  The same, live:",
            f"  curl -N {address}/stream",
            "",
        )
        _say(self._console, "\n".join(lines))

    def _tell(self, parts: dict[str, list[Row]], fresh: bool, readable_s: float) -> bool:
        console, person = self._console, self._story.interesting
        console.print()
        answer = self._reader.customer(person.identifiers[0])
        if answer is not None:
            summary.print_context(console, person.title, answer)
            console.print()
        good = summary.print_counts(console, parts, fresh)
        summary.print_latency(console, self._reader.latency(), readable_s)
        if not self._options.once:
            address = f"{self._reader.url}/v1/customers/{person.identifiers[0]}/context"
            _say(console, f"\nThe stack stays up: {self._reader.url}/docs\ncurl -s {address}\nCtrl-C stops everything.")
        return good


def _say(console: Console, words: str) -> None:
    """Print as it is: no markup, and no line break within an address that somebody wants to copy."""
    console.print(Text(words), soft_wrap=True)


def _port(wanted: int, console: Console) -> int:
    """The port wanted or, when somebody listens there, a free one."""
    try:
        with socket.create_server(("127.0.0.1", wanted)) as found:
            return int(found.getsockname()[1])
    except OSError:
        with socket.create_server(("127.0.0.1", 0)) as found:
            free = int(found.getsockname()[1])
        _say(console, f"Port {wanted} is taken; the API is at port {free}.")
        return free


@contextmanager
def _directory(options: Options, console: Console) -> Iterator[Path]:
    """The directory named, or a new one that is gone at the end unless it shall be kept."""
    if options.data_dir is not None:
        yield options.data_dir
        return
    directory = Path(tempfile.mkdtemp(prefix="segue-demo-"))
    try:
        yield directory
    finally:
        if options.keep:
            _say(console, f"The data are kept in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
