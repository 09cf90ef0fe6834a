"""Run all drills, or those whose names hold a word (`python -m tests.drills -k kill`), and write the table as they end.

A drill that fails has a row that says so, and the exit code is 1.
"""

from __future__ import annotations

import sys

import pytest

from tests.drills import table

collected = table.Collected()
code = pytest.main(["tests/drills", "--durations=0", *sys.argv[1:]], plugins=[collected])
print(f"{len(collected.seen)} rows of {table.PAGE.name} are of this run.")
sys.exit(code)
