"""Do inputs and answers differ from those that the program was chosen on?

For each input the length (Kolmogorov and Smirnov's test), the share of words that the old rows do not have (a permutation
test), and where it has few values, their shares (a chi-square test); for each answer of few values, their shares. Drift is
reported where it is both beyond chance (Holm's correction over all of them) and large enough to matter (`LARGE`): on many rows
anything is beyond chance.

It is no fall: a program may do as well on new inputs. It says where to look, and which rows to label.

Not covered: meaning (two texts of the same words and lengths), and rows without text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from dspy_toolkit.store import Frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEVEL = 0.01
"""Of all tests of one look together."""
LARGE = {"length": 0.2, "new words": 0.1, "values": 0.15}
"""The least that matters: the greatest difference of two distribution functions, of two shares, and the share of rows that
would have to change (total variation)."""
FEWEST = 30
"""Rows on each side; with fewer, nothing is said."""
MOST_VALUES = 20
"""A column of more different values is text."""
PERMUTATIONS = 2_000
_WORD = re.compile(r"\w+")

Kind = Literal["length", "new words", "values"]


class Drift(Frozen):
    """One thing that differs, or may."""

    field: str
    kind: Kind
    size: float
    """See `LARGE`."""
    p: float
    """Corrected for the number of things that were looked at."""
    before: str
    """In words."""
    now: str

    @property
    def drifted(self) -> bool:
        """Beyond chance, and large enough to matter."""
        return self.p < LEVEL and self.size >= LARGE[self.kind]

    @property
    def sentence(self) -> str:
        """For people."""
        return f"{self.field}, {self.kind}: {self.before} before, {self.now} now (p {self.p:.2g})"


def find_drift(
    before: Mapping[str, Sequence[Any]], now: Mapping[str, Sequence[Any]], *, seed: int = 0
) -> tuple[Drift, ...]:
    """Compare the columns that both have.

    Args:
        before: column → values on which the program was chosen.
        now: the same of what it is asked, or answers, today.
        seed: of the permutations.
    """
    found: list[Drift] = []
    for field in before:
        old, new = (
            [value for value in before[field] if value is not None],
            [v for v in now.get(field, ()) if v is not None],
        )
        if min(len(old), len(new)) < FEWEST:
            continue
        texts = [str(value) for value in old], [str(value) for value in new]
        if len(set(texts[0])) <= MOST_VALUES:
            found.append(_values(field, *texts))
        else:
            found += [_lengths(field, *texts), _new_words(field, *texts, seed)]
    order = sorted(range(len(found)), key=lambda index: found[index].p)
    corrected, running = {}, 0.0
    for place, index in enumerate(order):  # Holm
        running = max(running, min(1.0, found[index].p * (len(found) - place)))
        corrected[index] = running
    return tuple(each.model_copy(update={"p": corrected[index]}) for index, each in enumerate(found))


def _lengths(field: str, old: Sequence[str], new: Sequence[str]) -> Drift:
    from statistics import median

    from scipy.stats import ks_2samp

    lengths = [len(text) for text in old], [len(text) for text in new]
    tested: Any = ks_2samp(*lengths, method="asymp")
    said = [f"{median(side):.0f} characters in the middle" for side in lengths]
    return Drift(
        field=field, kind="length", size=float(tested.statistic), p=float(tested.pvalue), before=said[0], now=said[1]
    )


def _new_words(field: str, old: Sequence[str], new: Sequence[str], seed: int) -> Drift:
    """The share of words that the *other* old rows do not have, against that of the new rows."""
    import numpy as np

    words = [set(_WORD.findall(text.lower())) for text in old]
    known = Counter(word for text in words for word in text)
    # An old row knows its own words: it is left out of what it is held against.
    before = np.array([_share(sum(known[word] == 1 for word in text), len(text)) for text in words])
    there = [set(_WORD.findall(text.lower())) for text in new]
    now = np.array([_share(sum(word not in known for word in text), len(text)) for text in there])
    size = float(now.mean() - before.mean())
    return Drift(
        field=field,
        kind="new words",
        size=max(size, 0.0),
        p=_permuted(before, now, size, seed),
        before=f"{100 * before.mean():.0f} %",
        now=f"{100 * now.mean():.0f} %",
    )


def _permuted(before: NDArray[np.float64], now: NDArray[np.float64], size: float, seed: int) -> float:
    """How often rows that are dealt out anew differ by as much."""
    import numpy as np

    drawn, values, n = np.random.default_rng(seed), np.concatenate([before, now]), len(now)
    total, count = values.sum(), 0
    for _ in range(PERMUTATIONS):
        some = drawn.choice(values, n, replace=False).sum()
        count += some / n - (total - some) / (len(values) - n) >= size - 1e-12
    return (count + 1) / (PERMUTATIONS + 1)


def _values(field: str, old: Sequence[str], new: Sequence[str]) -> Drift:
    import numpy as np
    from scipy.stats import chi2_contingency

    counts = Counter(old), Counter(new)
    names = sorted(set(old) | set(new))
    table = np.array([[side[name] for name in names] for side in counts])
    shares = table / table.sum(axis=1, keepdims=True)
    tested: Any = chi2_contingency(table) if len(names) > 1 else None
    p = float(tested.pvalue) if tested is not None else 1.0
    moved = int(np.argmax(np.abs(shares[1] - shares[0])))
    return Drift(
        field=field,
        kind="values",
        size=float(np.abs(shares[1] - shares[0]).sum() / 2),
        p=p,
        before=f"{names[moved]} in {100 * shares[0][moved]:.0f} %",
        now=f"{names[moved]} in {100 * shares[1][moved]:.0f} %",
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
