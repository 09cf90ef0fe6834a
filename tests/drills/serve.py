"""`dspy-toolkit serve` over a fake model, by the settings of the environment: `python -m tests.drills.serve`."""

from __future__ import annotations

from dspy_toolkit.cli.serve import run_server
from dspy_toolkit.lm.connection import serve_engine
from dspy_toolkit.settings import load_settings
from dspy_toolkit.testing import FakeEngine
from tests.drills.forks import MODEL

serve_engine(FakeEngine(lambda _: {"label": "person"}, model=MODEL, seconds_per_token=0.002))
run_server(load_settings())
