"""The drills: real faults on the real thing, and what was seen.

Each is a test with the mark `drill(NUMBER, FAULT)`, which tells the fixture `saw` what was seen, and in how many seconds the
work was whole again. `python -m tests.drills` runs all of them and writes the table in docs/reliability.md.
"""
