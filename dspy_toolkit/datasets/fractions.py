"""How rows are divided among learning, choosing and proving, where a dataset does not say.

A search reads some dozens of training and validation rows, and more of them hardly help it; each further sealed row makes the
proof sharper. So where rows are few, most are sealed. Where there are many the proof is sharp with a smaller share, and the rest
is for learning: fine-tuning learns from every training row. Validation rows beyond what a search has read join the proof.

    rows    learn  choose  prove    a true gain that is shown four times in five, on the first night
     200       39      31    130    12 points
     500      114      94    292     8
    1,000      271     222    507     6
   10,000    6,267     400  3,333     3 (of very many sealed rows a test takes 2,000)

The gains hold where 20 % of the rows differ between two programs, at the rate that a first opening may spend. The number of
rows counts by the nearest power of two, so that the shares, and with them the splits of rows that nothing remembers, stay as
they are while a dataset grows a little.
"""

from __future__ import annotations

import math

from dspy_toolkit.datasets.spec import Fractions

FEW = 300
"""Rows up to which MOST of them are sealed."""
MOST, LEAST = 0.65, 1 / 3
"""The largest and the smallest share that is sealed."""
DECLINE = 0.2
"""The power of the number of rows by which the share falls in between."""
CHOOSING = 0.45
"""Of what is not sealed, the share of validation rows."""
MOST_CHOOSING = 400
"""Validation rows: more than the largest of the three budgets reads."""


def default_fractions(rows: int) -> Fractions:
    """The shares for a dataset of so many rows.

    Args:
        rows: distinct ones, at least 1.
    """
    about = 2.0 ** round(math.log2(rows))
    sealed = max(LEAST, MOST * min(1.0, (FEW / about) ** DECLINE))
    val = min(CHOOSING * (1 - sealed), MOST_CHOOSING / about)
    return Fractions(train=1 - sealed - val, val=val, sealed=sealed)
