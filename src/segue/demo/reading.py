"""What the demo asks of the API, as anybody would ask it: counts, latency, a customer's context."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import quote

import httpx
from prometheus_client.parser import text_string_to_metric_families

from segue.core.event import Rejected
from segue.demo.counts import Counts, from_stats
from segue.errors import SegueError

TIMEOUT_S = 10.0
SURE_S = 0.6
"""An answer that is complete up to so long after the last event holds all of it: each processor reports
five times a second, and says nothing of what the one before it is still passing on."""
PATIENCE_S = 30.0
_EVERY_S = 0.1


class ApiReader:
    """Reads from one API. A context manager."""

    def __init__(self, api_url: str) -> None:
        self.url = api_url
        # Not by a proxy that the environment names: this is the machine itself, or a neighbour.
        self._http = httpx.Client(base_url=api_url, timeout=TIMEOUT_S, trust_env=False)

    def __enter__(self) -> ApiReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def stats(self) -> dict[str, Any]:
        """All counters, with `as_of`."""
        found: dict[str, Any] = self._get("/v1/stats").json()
        return found

    def counts(self) -> Counts:
        return from_stats(self.stats())

    def customer(self, identifier: str) -> dict[str, Any] | None:
        """The answer with the context of a customer (`type:value`); None when there is none yet."""
        answer = self._http.get(f"/v1/customers/{quote(identifier)}/context")
        if answer.status_code == 404:
            return None
        found: dict[str, Any] = _good(answer).json()
        return found

    def post(self, body: bytes) -> Rejected | None:
        """Send bytes as one event, right or wrong. Returns why they were refused."""
        headers = {"content-type": "application/cloudevents+json"}
        answer = self._http.post("/v1/events", content=body, headers=headers)
        if not 400 <= answer.status_code < 500:
            _good(answer)
            return None
        problem = answer.json()
        return Rejected(problem["reason"], problem.get("field", "$"), problem["detail"])

    def latency(self) -> list[int]:
        """Event-to-readable times so far, as counts per bucket of `metrics.BOUNDS_MS` and one beyond."""
        cumulative: Counter[float] = Counter()
        for family in text_string_to_metric_families(self._get("/metrics").text):
            if family.name != "segue_event_to_readable_seconds":
                continue
            for sample in family.samples:
                if sample.name.endswith("_bucket") and sample.labels["processor"] == "context":
                    cumulative[float(sample.labels["le"])] += int(sample.value)
        buckets, before = [], 0
        for bound in sorted(cumulative):
            buckets.append(cumulative[bound] - before)
            before = cumulative[bound]
        return buckets

    def settle(self, done: Callable[[Counts], bool]) -> Counts:
        """The counts when everything sent until now is in them: `done` says so, or time does."""
        sent = time.time()
        while True:
            stats = self.stats()
            counts = from_stats(stats)
            complete = _seconds(stats["as_of"]) - sent
            if (complete > SURE_S and done(counts)) or complete > 5 * SURE_S or time.time() - sent > PATIENCE_S:
                return counts
            time.sleep(_EVERY_S)

    def _get(self, path: str) -> httpx.Response:
        return _good(self._http.get(path))


def _good(answer: httpx.Response) -> httpx.Response:
    if answer.status_code >= 400:
        raise SegueError(f"{answer.request.url.path} answers {answer.status_code}: {answer.text[:200]}")
    return answer


def _seconds(moment: str | None) -> float:
    return 0.0 if moment is None else datetime.fromisoformat(moment).timestamp()
