"""Plays the incident log and the story, by the doors that every channel has.

Events go through the client to the HTTP API. Bad input goes there as it is, or straight into the log, as
an app with a Kafka client of its own would write it; the first is answered with the reason, the second
becomes a dead letter.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from segue.client import Client
from segue.demo.reading import ApiReader
from segue.demo.screen import Screen, clock
from segue.demo.story import BadInput, Person, Scene, Story
from segue.errors import SegueError
from segue.importer.run import Pacer
from segue.log.port import Log, Output
from segue.topics import event_topic

FLUSH_S = 10.0
READABLE_S = 30.0
LINGER_S = 3.0
"""How long after the last event the feed still waits for what comes of it."""
_WATCH_S = 1.5
_LOOK_S = 0.15
_COUNT_S = 0.5
_BEAT_S = 0.04
_BATCH_S = 0.05
_POLL_S = 0.01
INCIDENTS, STORY = "incident log", "story"


class Player:
    """Sends, and shows what comes of it. Every method returns early when `stop` is set.

    `check` raises when a part of the stack has ended.
    """

    def __init__(
        self,
        client: Client,
        source: Log,
        reader: ApiReader,
        screen: Screen,
        stop: threading.Event,
        check: Callable[[], None],
    ) -> None:
        self._client, self._log, self._reader, self._screen, self._stop = client, source, reader, screen, stop
        self._check = check
        self.refused: Counter[str] = Counter()
        """Bad input that the API answered, by reason."""
        self._watched: dict[str, tuple[Person, float]] = {}
        self._shown: set[str] = set()
        self._look_at = self._count_at = 0.0

    def first(self, event: dict[str, Any]) -> float:
        """Send one event and wait until its customer's context can be read. Returns when (monotonic seconds)."""
        self._client.send(event)
        self._client.flush(FLUSH_S)
        who = event["data"]["identifiers"][0]
        until = time.monotonic() + READABLE_S
        while not self._stop.is_set() and self._reader.customer(f"{who['type']}:{who['value']}") is None:
            self._check()
            if time.monotonic() > until:
                raise SegueError(f"the first event was acknowledged, but is not readable after {READABLE_S:g} s")
            time.sleep(_POLL_S)
        return time.monotonic()

    def incidents(self, events: list[dict[str, Any]], done: int, rate: float | None) -> None:
        """Send the rest of the excerpt's events at a steady rate; `done` were sent before."""
        pacer = Pacer(rate)
        total, flush_at = done + len(events), 0.0
        for number, event in enumerate(events, done + 1):
            if self._stop.is_set():
                return
            pacer.wait()
            self._client.send(event)
            if time.monotonic() > flush_at:
                self._client.flush(FLUSH_S)
                flush_at = time.monotonic() + _BATCH_S
            self._screen.progress(INCIDENTS, number, total)
            self._count()
        self._client.flush(FLUSH_S)

    def story(self, story: Story, seconds: float | None) -> None:
        """Play the story in so many seconds, or, with None, without a pause."""
        started, events = time.monotonic(), len(story.scenes)
        sent = 0
        for part in story.parts():
            if seconds is not None:
                self._wait(started + seconds * (part.offset / story.length))
            if self._stop.is_set():
                return
            if isinstance(part, Scene):
                self._scene(part)
                sent += 1
            else:
                self._bad(part)
            self._screen.progress(STORY, sent, events, f"{clock(part.offset)} of {clock(story.length)} h")
        if seconds is not None:
            self._wait(time.monotonic() + LINGER_S)

    # --- sending

    def _scene(self, scene: Scene) -> None:
        if scene.late:  # late is what is received after newer events, not in the same millisecond
            time.sleep(2 * _POLL_S)
        for _ in range(scene.times):
            self._client.send(scene.event)
        self._client.flush(FLUSH_S)  # at once: a customer's next event may name nothing that this one names
        if self._new(scene.person.role):
            self._screen.enters(scene.person.title, scene.person.about)
        self._screen.happened(scene.offset, scene.event["channel"], scene.person.title, *_words(scene))
        self._watched[scene.person.role] = (scene.person, time.monotonic() + _WATCH_S)

    def _bad(self, part: BadInput) -> None:
        if part.channel is None:
            why = self._reader.post(part.body)
            reason = "accepted" if why is None else why.reason
            self.refused[reason] += 1
            self._screen.refused(part.offset, "by the API", part.what, reason)
        else:
            self._log.append([Output(event_topic(part.channel), part.key, part.body)])
            self._screen.refused(part.offset, "dead letter", part.what, part.reason)

    # --- watching

    def _wait(self, until: float) -> None:
        """Wait, looking meanwhile."""
        while (left := until - time.monotonic()) > 0 and not self._stop.is_set():
            self._look()
            self._count()
            self._stop.wait(min(left, _BEAT_S))

    def _look(self) -> None:
        """Show the handoffs and signals that are new with the customers who lately did something."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_S
        for role, (person, until) in list(self._watched.items()):
            if now > until:
                del self._watched[role]
            found = self._reader.customer(person.identifiers[0])
            if found is not None:
                self._show(person, found)

    def _show(self, person: Person, found: dict[str, Any]) -> None:
        for handoff in found["context"].get("handoffs", ()):
            if self._new(handoff["handoff_id"]):
                self._screen.handoff(person.title, handoff["before"], handoff["after"])
        for signal in found["signals"]:
            if self._new(signal["signal_id"]):
                reason = signal["reason"]["en" if person.title.isascii() else "zh"]
                self._screen.signal(person.title, signal["rule"], signal["severity"], reason)

    def _new(self, name: str) -> bool:
        known = name in self._shown
        self._shown.add(name)
        return not known

    def _count(self) -> None:
        if time.monotonic() > self._count_at:
            self._count_at = time.monotonic() + _COUNT_S
            self._check()
            self._screen.counted(self._reader.counts())


def _words(scene: Scene) -> tuple[str | None, str]:
    """Who acted, if not the customer, and what was said or, failing that, what happened."""
    data: dict[str, Any] = scene.event["data"]
    actor = data.get("actor")
    who = None if actor is None else actor.get("group") or actor["kind"]
    if "survey" in data:
        answer = f"{data['survey']['metric'].upper()} {data['survey']['score']:g}"
        return who, f"{answer}: {scene.say}" if scene.say else answer
    said = scene.say or scene.event["type"].replace(".", " ").replace("_", " ")
    return who, f"{said} (handed in late)" if scene.late else said
