"""Rows about the processors themselves: killed, paused, slow, started and stopped."""

from __future__ import annotations

from tests.chaos.harness import Run, row


@row("F1", "a processor killed (SIGKILL)")
def killed(run: Run) -> None:
    run.start()
    run.calmly(3)
    for _ in run.times(100, 10):
        run.sleep(run.rng.uniform(0.6, 1.1))
        name = run.rng.choice(run.fleet.running)
        run.fleet.kill(name)
        run.up(name)
        run.count("kills")
    run.healed()
