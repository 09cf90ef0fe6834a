"""What is wrong with this machine, its home and its configuration, and mending it: `dspy-toolkit doctor` as functions.

    doctor          examine
    doctor --fix    mend; repairs looks for what it would mend, and changes nothing
    doctor --tune   tune

examining       every finding, in the order of the report
findings        what is checked, one function for each subject
model_findings  the same, of the models
mending         what can be mended without harm
tuning          by how much the engine had best do at once on this machine

None prints, and none asks: who agrees to a repair is the caller's to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspy_toolkit.doctor.examining import examine
    from dspy_toolkit.doctor.findings import Finding
    from dspy_toolkit.doctor.mending import Repair, mend, repairs
    from dspy_toolkit.doctor.tuning import tune

__all__ = ["Finding", "Repair", "examine", "mend", "repairs", "tune"]

_WHERE = {
    "Finding": "findings",
    "Repair": "mending",
    "examine": "examining",
    "mend": "mending",
    "repairs": "mending",
    "tune": "tuning",
}


def __getattr__(name: str) -> Any:
    # A finding is made with pydantic; the command imports this package for its help, which does not wait for that.
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
