"""The alert rules that ship: valid PromQL, over metrics that exist, firing on what they are named for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import redis
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from segue.api.edge import ApiMetrics
from segue.metrics import BOUNDS_MS, Collector, Snapshot, StoreCollector
from segue.store.reader import Reader

ROOT = Path(__file__).parents[1]
RULES: list[dict[str, Any]] = yaml.safe_load((ROOT / "docs/prometheus/segue.rules.yml").read_text())["groups"][0][
    "rules"
]
OUTCOMES = ("applied", "replayed", "rejected", "fence_surprises", "take_overs", "outages")


def a_snapshot(**more: int) -> Snapshot:
    latency = [1] * (len(BOUNDS_MS) + 1)
    return Snapshot("context", "one", 1, dict.fromkeys(OUTCOMES, 1), latency, 5.0, **more)


def page(client: redis.Redis) -> str:
    registry = CollectorRegistry()
    registry.register(Collector([a_snapshot(owned=1)]))
    registry.register(StoreCollector(Reader(client).info()))
    return (generate_latest(registry) + generate_latest(ApiMetrics().registry)).decode()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_is_valid_and_its_metrics_exist(rule: dict[str, Any], redis_client: redis.Redis) -> None:
    promql_parser.parse(rule["expr"])
    names = set(re.findall(r"segue_[a-z_]+", rule["expr"]))
    told = page(redis_client)
    missing = {name for name in names if not re.search(rf"^{name}[{{ ]", told, re.M)}
    assert names
    assert not missing
    outcomes = set(re.findall(r'outcome=~?"([a-z_]+)"', rule["expr"]))
    assert outcomes <= set(OUTCOMES)
    assert rule["annotations"].keys() == {"summary", "action"}
    assert rule["labels"]["severity"] in ("page", "warn")


def test_the_alerts_ask_what_the_guarantee_needs() -> None:
    asked = {rule["alert"] for rule in RULES}
    assert len(asked) == len(RULES)
    assert asked >= {
        "SegueContextsStale", "SegueSlow", "SegueRejections", "SegueRedisWentBack", "SegueOwnersChange",
        "SegueStoreSlow",
        "SegueRedisMemory", "SegueRedisEvicts", "SegueRedisDisk", "SeguePartitionStalled", "SeguePartitionStopped",
    }  # fmt: skip
