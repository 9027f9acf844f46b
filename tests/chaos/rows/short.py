"""What `make test` can afford of the matrix: several faults in a run, one after another."""

from __future__ import annotations

from tests.chaos.harness import Run, row
from tests.chaos.load import Load
from tests.chaos.rows.processors import changes, kill_one
from tests.chaos.rows.redis import LOAD, NO_PERSISTENCE, own_redis, watched


@row(
    "T1",
    "processors killed, come and go",
    load=Load(retries=0.3, most_retries=5, disorder=0.5, late=0.01, bad=0.01),
    of_the_matrix=False,
)
def processors(run: Run) -> None:
    """While retries, disorder, late and bad records are sent."""
    run.start()
    for _ in range(8):
        kill_one(run)
    run.healed()
    changes(run, 6)
    run.healed()
    run.counts["bad records"] = len(run.ledger.bad)
    run.expect(run.counts["bad records"] > 0, "no bad record was sent")


@row("T2", "broker and Redis killed, Redis emptied", load=LOAD, of_the_matrix=False)
def services(run: Run) -> None:
    valkey = own_redis(run, NO_PERSISTENCE)
    watched(run)
    for end in (run.broker.kill, run.broker.stop):
        end()
        run.count("broker away")
        run.sleep(run.rng.uniform(1, 3))
        run.broker.start()
        run.healed()
    valkey.kill()
    run.count("Redis emptied")
    run.sleep(1)
    valkey.start()
    run.healed()
