"""What a search is to do, as a plan chose it within a budget."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dspy_toolkit.settings import GepaSettings, OptimizerName
from dspy_toolkit.store import Frozen


class NoSearch(Frozen):
    """Nothing is compiled: there is nothing to gain."""

    optimizer: Literal["none"] = "none"
    val_rows: Literal[0] = 0


class PoolSettings(Frozen):
    """Candidates of one or several generators, in one pool."""

    optimizer: OptimizerName
    """What was asked for: `auto` and `race` let several generators in, any other name one."""
    generators: tuple[str, ...] = Field(min_length=1)
    """Their names."""
    rungs: tuple[int, ...] = Field(min_length=1)
    """Numbers of validation rows on which candidates are compared, ascending."""
    priors: dict[str, float] = {}
    """Generator → gain over the baseline that its candidates are expected to have beyond those of others, from earlier runs."""
    gepa: GepaSettings = GepaSettings()

    @property
    def val_rows(self) -> int:
        """The validation rows that the search reads at most: the first of the sample."""
        return self.rungs[-1]


SearchSettings = Annotated[NoSearch | PoolSettings, Field(discriminator="optimizer")]
