"""The settings of each optimizer, as a plan chose them within a budget.

Each says which optimizer it is for, so that a `Choice` read from JSON holds settings of the right type.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dspy_toolkit.store import Frozen


class NoSearch(Frozen):
    """Nothing is compiled: there is nothing to gain."""

    optimizer: Literal["none"] = "none"
    val_rows: Literal[0] = 0


class LabelledSettings(Frozen):
    """Labelled demonstrations."""

    optimizer: Literal["labelled"] = "labelled"
    val_rows: int = Field(ge=1)
    """Validation rows that candidates are compared on."""
    candidates: int = Field(ge=1)


class BootstrapSettings(Frozen):
    """BootstrapFewShot, once."""

    optimizer: Literal["bootstrap"] = "bootstrap"
    val_rows: int = Field(ge=1)
    slice: int = Field(ge=1)
    """Training rows that the program is run on, at most."""
    max_bootstrapped_demos: int = Field(ge=1)


class RandomSettings(Frozen):
    """Random search over bootstrapped sets."""

    optimizer: Literal["random"] = "random"
    val_rows: int = Field(ge=1)
    candidates: int = Field(ge=1)
    max_bootstrapped_demos: int = Field(ge=1)


class MiproSettings(Frozen):
    """MIPROv2."""

    optimizer: Literal["mipro"] = "mipro"
    val_rows: int = Field(ge=1)
    trials: int = Field(ge=1)
    demo_sets: int = Field(ge=1)
    slice: int = Field(ge=1)
    """Training rows that demonstrations are bootstrapped from, and that the proposer looks at."""


class GepaSettings(Frozen):
    """GEPA."""

    optimizer: Literal["gepa"] = "gepa"
    val_rows: int = Field(ge=1)
    max_metric_calls: int = Field(ge=1)


class RaceSettings(Frozen):
    """A race of several optimizers within one budget."""

    optimizer: Literal["race"] = "race"
    val_rows: int
    """`rows`, and the holdout rows of the last round."""
    arms: tuple[str, ...]
    rows: int
    """Validation rows that arms choose by."""
    holdout_rows: int
    """Validation rows that no arm chooses by, in the first round."""
    most_holdout_rows: int
    """The same in the last round, at most."""
    start_calls: int
    """LM calls of each arm for scoring the program that it starts from."""


OptimizerSettings = Annotated[
    NoSearch | LabelledSettings | BootstrapSettings | RandomSettings | MiproSettings | GepaSettings | RaceSettings,
    Field(discriminator="optimizer"),
]
