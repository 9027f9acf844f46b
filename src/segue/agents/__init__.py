"""Signal agents of your own, in Faust: typed steps in, signals with derived ids out (docs/agents.md).

Needs the extra `segue[faust]`. Everything an agent needs is named here; `burst` counts by event time.
"""

from __future__ import annotations

from segue.agents.burst import Burst, BurstState, Policy
from segue.agents.records import journey_steps, signals, tell
from segue.agents.worker import app, run
from segue.core.interaction import StepView
from segue.core.rules import Signal

__all__ = [
    "Burst",
    "BurstState",
    "Policy",
    "Signal",
    "StepView",
    "app",
    "journey_steps",
    "run",
    "signals",
    "tell",
]
