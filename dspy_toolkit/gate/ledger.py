"""The ledger of sealed tests: every opening, and how much of the false-promotion rate it spent (alpha spending).

Why there is one: each comparison on the same sealed rows is another chance to promote a candidate that is not better.
Many nights at 5 % each would promote one sooner or later. So a test set has one rate (5 %) for its life, and the k-th
opening is granted `rate / 4 / k ** POWER_LAW`, a series that sums to the rate: the first one gets a quarter, and the
hundredth still something to work with. By the union bound the probability of any false promotion is at most the rate.

What a test set is: its rows, each under all the names that it is known by (its text, its contents, those of its
near-duplicates). **Test sets that share a name, directly or through others between them, have one rate together**, also
when rows are added slowly, mended, relabelled or taken away. Only a test set that shares no row with any opened one has a
rate of its own.

Why an append-only JSONL file: what was seen cannot be unseen, so no line is ever changed or removed. A run that is
repeated, a database that is restored or a cache that is cleared must not give the rate back.

Why the grant is on disk before the caller gets it: an evaluation that dies may have shown its scores already, so it has
spent its grant all the same. The same question (test set, candidate, champion) asked again without an answer gets the
same grant back, so a crash costs nothing twice; and where it was answered, it is not charged again if it gives the very scores
that it gave before (`answered`).

One ledger serves all projects of a home: rows seen under another project's name were seen.

Not covered: the comparison that the alpha is spent on (see `evidence`), and deletion: when somebody removes the file, the
openings are forgotten and the next interval claims more than it may.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from dspy_toolkit.durable import write_file
from dspy_toolkit.errors import LedgerError
from dspy_toolkit.locks import held
from dspy_toolkit.store import Frozen, Ref, digest

SHARE = 0.25
"""The part of the rate that the first opening spends, and the most of what is left that any later one does."""
POWER_LAW = 1.294
"""How fast the grants fall: `zeta(POWER_LAW)` is 1 / SHARE, so that all of them together are the rate."""


class SealedRows(Frozen):
    """The rows of a test set, written once."""

    line: Literal["test_set"] = "test_set"
    test_set: str
    """sha256 of the sorted names."""
    rows: tuple[str, ...]
    """The names of the rows; in ledgers of version 0.1.0 the hash of each row's contents alone."""


class Grant(Frozen):
    """Permission to open a test set once, for one comparison."""

    line: Literal["grant"] = "grant"
    id: str
    time: str
    """UTC, ISO 8601."""
    project: str
    test_set: str
    candidate: str
    """sha256 of the candidate's prompt."""
    champion: str
    """sha256 of the prompt that it is compared with."""
    alpha: float
    """One-sided false-promotion probability of this comparison."""
    rate: float
    """The rate that the test set, and all that are connected with it, may spend over their life."""
    looks: int
    """Openings so far of test sets that are connected with this one, this one included."""
    left: float
    """The share of the rate that is left after this opening, in [0, 1]."""


class OpeningResult(Frozen):
    """The outcome of an opening."""

    line: Literal["result"] = "result"
    id: str
    """The id of the grant."""
    time: str
    outcome: str
    rows: Ref | None = None
    """The candidate's per-row results."""
    scores: str = ""
    """sha256 of everybody's scores, from which the outcome follows; empty in ledgers of earlier versions."""


class Opening(Frozen):
    """A grant and its outcome; None while the evaluation runs, and when it died."""

    grant: Grant
    outcome: str | None = None
    rows: Ref | None = None
    scores: str = ""


LINE: TypeAdapter[SealedRows | Grant | OpeningResult] = TypeAdapter(
    Annotated[SealedRows | Grant | OpeningResult, Field(discriminator="line")]
)


class Ledger:
    """The openings written in one file."""

    def __init__(self, path: Path) -> None:
        """Args: path: a `.jsonl` file; it and its folder are made by the first grant."""
        self.path = Path(path)

    def grant(
        self,
        rows: Iterable[str],
        *,
        project: str,
        candidate: str,
        champion: str,
        rate: float = 0.05,
        same_scores: bool = False,
    ) -> Grant:
        """Write down an opening of the test set `rows` and return what it may spend.

        Args:
            rows: the names of the sealed rows, all that each is known by, in any order. Names that do not change when a
                row is edited (a hash of its normalised text, an id) keep an edit from looking like a fresh row.
            project: its name, for the record.
            candidate: sha256 of the prompt to be tested, or of its scores.
            champion: the same of what it will be compared with.
            rate: false-promotion rate over the life of the test set and all that are connected with it, in (0, 0.5).
            same_scores: `candidate` and `champion` stand for scores: the same question again shows nothing new, and gets
                its grant back also after it was answered.

        Raises:
            LedgerError: nothing is left to spend, there are no rows, or the ledger cannot be read or written.
        """
        asked = frozenset(rows)
        if not asked:
            raise LedgerError(
                f"The sealed test of {project} has no rows, so it cannot be opened. Add rows to the dataset."
            )
        if not 0 < rate < 0.5:
            raise LedgerError(f"A false-promotion rate lies between 0 and 0.5, not at {rate}. Correct the settings.")
        test_set = digest(sorted(asked))
        # Reading, deciding and writing are one step: two processes must not both be granted the same part of the rate.
        with self._locked():
            known, openings = self._read()
            for opening in openings:
                question = (opening.grant.test_set, opening.grant.candidate, opening.grant.champion, opening.grant.rate)
                if (opening.outcome is None or same_scores) and question == (test_set, candidate, champion, rate):
                    return opening.grant
            connected = _connected(asked, known)
            spent = [opening.grant.alpha for opening in openings if opening.grant.test_set in connected]
            looks, left = 1 + len(spent), rate - sum(spent)
            if left <= 0:
                raise LedgerError(
                    f"The sealed test of {project} was opened {len(spent)} times and its false-promotion rate of "
                    f"{rate:.0%} is spent. Test on fresh labelled rows, none of which was opened before."
                )
            # The second is the smaller one where earlier openings were granted more, at another rate or by version 0.1.0.
            alpha = min(alpha_of(rate, looks), left * SHARE)
            granted = Grant(
                id=uuid.uuid4().hex,
                time=_now(),
                project=project,
                test_set=test_set,
                candidate=candidate,
                champion=champion,
                alpha=alpha,
                rate=rate,
                looks=looks,
                left=left / rate - alpha / rate,
            )
            # The rows first: a grant whose rows are not on record could not be charged to a later test set.
            new = [] if test_set in known else [SealedRows(test_set=test_set, rows=tuple(sorted(asked)))]
            self._append(*new, granted)
        return granted

    def answered(self, rows: Iterable[str], *, candidate: str, champion: str, rate: float) -> Opening | None:
        """The last opening for the same question that was answered; None where it was not.

        A run that was killed after the answer asks again. If the same scores come out, they show nothing that was not seen, and its
        grant holds for them; other scores need another grant.

        Args: as of `grant`.
        """
        question = (digest(sorted(frozenset(rows))), candidate, champion, rate)
        with self._locked():
            _, openings = self._read()
        found = [
            opening
            for opening in openings
            if opening.outcome is not None
            and question
            == (opening.grant.test_set, opening.grant.candidate, opening.grant.champion, opening.grant.rate)
        ]
        return found[-1] if found else None

    def record(self, grant: Grant, outcome: str, rows: Ref | None = None, scores: str = "") -> None:
        """Write down the outcome of `grant`. A second record of the same grant replaces the first.

        Raises:
            LedgerError: the ledger does not hold this grant, or cannot be read or written.
        """
        with self._locked():
            _, openings = self._read()
            if all(opening.grant.id != grant.id for opening in openings):
                raise LedgerError(f"{self.path} holds no grant {grant.id}. Run again to open the sealed test anew.")
            self._append(OpeningResult(id=grant.id, time=_now(), outcome=outcome, rows=rows, scores=scores))

    def openings(self) -> list[Opening]:
        """Every opening, oldest first. Raises LedgerError when a line cannot be understood."""
        return self._read()[1]

    def opened_rows(self) -> frozenset[str]:
        """The names of all rows that any opening has shown. Raises LedgerError when a line cannot be understood."""
        known, openings = self._read()
        return frozenset().union(*(known[opening.grant.test_set] for opening in openings))

    def _read(self) -> tuple[dict[str, frozenset[str]], list[Opening]]:
        known: dict[str, frozenset[str]] = {}
        grants: dict[str, Grant] = {}
        results: dict[str, OpeningResult] = {}
        for number, text in enumerate(self._whole().splitlines(), start=1):
            try:
                line = LINE.validate_json(text)
                if isinstance(line, Grant):
                    grants[line.id] = line
                    known[line.test_set]  # a KeyError where its rows were not written before it
                elif isinstance(line, OpeningResult):
                    results[line.id] = line
                else:
                    known[line.test_set] = frozenset(line.rows)
            except (ValidationError, KeyError):
                raise LedgerError(
                    f"{self.path}, line {number} is not a line of the ledger: {text[:80]!r}. Restore the file from a "
                    "backup; without it nobody knows how often the sealed rows were opened."
                ) from None
        return known, [
            Opening(grant=grant, outcome=results[key].outcome, rows=results[key].rows, scores=results[key].scores)
            if key in results
            else Opening(grant=grant)
            for key, grant in grants.items()
        ]

    def _whole(self) -> bytes:
        """The whole lines of the file. A last line that was cut short is left out: nobody was given its grant."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise LedgerError(f"Cannot read the ledger {self.path}: {error}. Make it readable.") from error
        end = data.rfind(b"\n") + 1
        try:
            LINE.validate_json(data[end:])
        except ValidationError:
            return data[:end]
        return data + b"\n"  # an editor removed the line end: the line counts

    def _append(self, *lines: Frozen) -> None:
        """Add whole lines, on disk when this returns; a write that fails leaves the file as it was."""
        data = b"".join(line.model_dump_json().encode() + b"\n" for line in lines)
        write_file(self.path, self._whole() + data, LedgerError)

    def _locked(self) -> AbstractContextManager[None]:
        """Hold the ledger against other threads and processes."""
        return held(Path(f"{self.path}.lock"), refusal=LedgerError)


def alpha_of(rate: float, looks: int) -> float:
    """What the opening with that number, from 1, may spend of `rate`."""
    return rate * SHARE * looks**-POWER_LAW


def first_alpha(rate: float) -> tuple[float, int, float]:
    """What a first opening gets: alpha, openings so far, and the share of the rate that is left."""
    return alpha_of(rate, 1), 1, 1 - SHARE


def _connected(rows: frozenset[str], known: dict[str, frozenset[str]]) -> set[str]:
    """The test sets that share a row with `rows`, or with one that does, and so on."""
    found: set[str] = set()
    reached, waiting = set(rows), dict(known)
    while near := [test_set for test_set, names in waiting.items() if not reached.isdisjoint(names)]:
        for test_set in near:
            reached |= waiting.pop(test_set)
        found.update(near)
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
