"""Watching a live program: does it still do what it did when it was promoted, and who is told when it does not.

sequential   has the mean of the scores fallen? a test that may be looked at after every row
drift        do the inputs and the answers differ from those the program was chosen on?
calibration  is the program as often right as it says?
engine       what the engine's counters say of the rows that a look runs
watching     all of these for one project; imported by itself, since it needs language models
alerts       messages to people: repeated ones folded, all kept

Not covered: when it runs (`flows/monitor_program.py`), and serving.
"""

from dspy_toolkit.monitoring.alerts import Alert, receive
from dspy_toolkit.monitoring.calibration import Calibration, calibration
from dspy_toolkit.monitoring.drift import Drift, find_drift
from dspy_toolkit.monitoring.sequential import Fall, fall_of

__all__ = ["Alert", "Calibration", "Drift", "Fall", "calibration", "fall_of", "find_drift", "receive"]
