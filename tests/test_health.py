"""`segue health`: liveness by progress of each partition."""

from __future__ import annotations

import time

import msgspec
import pytest
import redis
from typer.testing import CliRunner

from segue.cli import app
from segue.metrics import Snapshot
from segue.store.keys import METRICS


def snapshot(instance: str = "one", age_ms: int = 0, **more: int) -> Snapshot:
    return Snapshot("context", instance, time.time_ns() // 1_000_000 - age_ms, {}, [], 0.0, **more)


def tell(client: redis.Redis, *told: Snapshot) -> None:
    for each in told:
        client.hset(METRICS, f"{each.processor}:{each.instance}", msgspec.json.encode(each))


def health(monkeypatch: pytest.MonkeyPatch, url: str, instance: str | None = None) -> tuple[int, str]:
    monkeypatch.setenv("SEGUE_REDIS", url)
    if instance is not None:
        monkeypatch.setenv("SEGUE_INSTANCE", instance)
    done = CliRunner().invoke(app, ["health", "context"])
    return done.exit_code, done.output


def test_a_processor_that_reports_and_moves_on_is_healthy(
    redis_client: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(redis_client, snapshot(stalled_ms=200_000))
    assert health(monkeypatch, redis_url)[0] == 0


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ([], "nothing reported yet"),
        ([{"age_ms": 40_000}], "nothing reported for 4"),
        ([{"stalled_ms": 400_000}], "a partition has not moved on for 400 s"),
    ],
)
def test_a_processor_that_hangs_is_not(
    redis_client: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch, told: list[dict[str, int]], words: str
) -> None:
    tell(redis_client, *(snapshot(**each) for each in told))
    code, said = health(monkeypatch, redis_url)
    assert code == 1
    assert words in said


def test_a_named_process_is_judged_by_itself(
    redis_client: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(redis_client, snapshot("one"), snapshot("two", stalled_ms=400_000))
    assert health(monkeypatch, redis_url, "one")[0] == 0
    assert health(monkeypatch, redis_url, "two")[0] == 1


def test_a_store_that_is_away_is_no_reason_to_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = health(monkeypatch, "redis://127.0.0.1:1/0")
    assert code == 0
    assert "cannot be reached" in said
