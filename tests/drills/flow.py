"""The command `python -m flows.optimize_program` with a fault in it: `python -m tests.drills.flow FAULT ARGUMENTS`.

FAULT is JSON, as `optimization.faulty` takes it. `fake` serves a fake model; `hurried` shortens the pauses before retries.
"""

from __future__ import annotations

import json
import sys

import flows.terminal
from dspy_toolkit.lm.connection import serve_engine
from dspy_toolkit.testing import FakeEngine
from tests.drills.forks import MODEL
from tests.drills.optimization import before_asking, faulty
from tests.flows.conftest import answer

fault = json.loads(sys.argv.pop(1))
if fault.get("hurried"):
    from dspy_toolkit.lm.litellm import patience
    from tasks import policy

    policy.RETRY_DELAYS[:] = [1, 1, 1]
    patience.BUSY_SECONDS = 2.0
if fault.get("fake"):
    serve_engine(FakeEngine(before_asking(answer, fault), model=MODEL))
with faulty(fault):
    from flows.optimize_program import optimize_program

    flows.terminal.run_at_terminal(optimize_program)
