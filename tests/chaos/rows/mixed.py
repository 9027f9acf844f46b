"""Everything at once, by chance, from a seed."""

from __future__ import annotations

import signal
import time

from tests.chaos.harness import Run, row
from tests.chaos.load import Load
from tests.chaos.rows.kafka import through_a_proxy
from tests.chaos.rows.records import wrong_clocks


@row("F27", "all of it, by chance", load=Load(skew=wrong_clocks, age_ms=0, retries=0.1, late=0.005, bad=0.002))
def mixture(run: Run) -> None:
    proxy = through_a_proxy(run)
    run.turns_as_shipped()  # one takes some ten ways to the broker and back, here 4 s at times
    run.start()
    until = time.monotonic() + (30 if run.quick else 180)
    while time.monotonic() < until:
        run.sleep(run.rng.uniform(0.5, 3))
        fault = run.rng.choices(
            ("kill", "pause", "redis", "broker", "cut", "slow", "member"), (40, 10, 10, 5, 15, 10, 10)
        )[0]
        run.count(fault)
        name = run.rng.choice(run.fleet.running)
        if fault == "kill":
            run.fleet.kill(name)
            run.up(name)
        elif fault == "pause":
            run.fleet.pause(name)
            run.sleep(run.rng.uniform(1, 13))
            run.fleet.resume(name)
        elif fault == "redis":
            run.valkey.kill()
            run.sleep(run.rng.uniform(0.1, 3))
            run.valkey.start()
        elif fault == "broker":
            run.broker.kill()
            run.sleep(run.rng.uniform(1, 5))
            run.broker.start()
        elif fault == "cut":
            proxy.cut_all()
        elif fault == "slow":
            proxy.delay_s = run.rng.choice((0.0, 0.05, 0.2))
        else:
            code = run.fleet.stop(name)
            run.expect(code in (0, -signal.SIGTERM), f"{name} ended with {code}")  # the latter: still starting
            run.sleep(run.rng.uniform(0, 3))
            run.up(name)
    proxy.delay_s = 0.0
    run.healed()
