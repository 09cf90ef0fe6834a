"""Demonstrations that are chosen for each input: the training rows most like it, by the cosine of TF-IDF vectors of their inputs.

A predictor's attribute `neighbors` says of which rows, how many, and how alikeness is measured. The rows themselves are an object of
the store, so that a state stays small; the adapter puts the nearest ones of a call behind the predictor's own demonstrations, the
most alike last, next to the input.

**What is never shown.** A row with the very inputs that are asked about, and any row of that one's group: near-duplicates, whose
answer would be the right one by copying. So a program that is run on its own training rows, to bootstrap or to fit label weights,
sees there what it will see on rows that are new.

**The budget.** Each row's tokens were counted once, when the rows were stored. Rows are taken from the most alike on as long as they
fit; one that does not is passed over.

Not covered: meaning. Two texts with no piece of spelling in common are not alike at all.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from dspy_toolkit.errors import ObjectMissing, ProgramError
from dspy_toolkit.store import Frozen, Ref, Store

if TYPE_CHECKING:
    import dspy

Unit = Literal["characters", "words"]
"""What a vector counts: runs of 2 to 5 characters, or words and pairs of words."""
MOST = 64
"""Demonstrations of one prompt."""
OPEN = 8
"""Sets of rows whose vectors a process keeps."""
_BORDERS = "\x02{}\x03"
"""Around each text: what it begins and ends with counts, and no text is without a piece."""

_lock = threading.Lock()


class Neighbors(Frozen):
    """How a predictor's demonstrations are chosen."""

    rows: str = Field(pattern="^[0-9a-f]{64}$")
    """The object of the store that holds the rows (`NeighborRows` as JSON)."""
    of: int = Field(ge=1)
    """How many rows these are."""
    count: int = Field(ge=1, le=MOST)
    """How many are shown, at most."""
    tokens: int = Field(ge=1)
    """Of all that are shown, at most."""
    unit: Unit = "characters"
    fields: dict[str, str] = {}
    """The name of a field in the rows → its name in the signature, where it was renamed since."""

    @property
    def ref(self) -> Ref:
        """The rows' name in the store."""
        return Ref(sha256=self.rows, kind="json")


class NeighborRow(Frozen):
    """A row that may become a demonstration."""

    values: dict[str, Any]
    """Field → value, as a saved demonstration has it."""
    group: str = ""
    """Rows of one group are near-duplicates; each row is its own where this is empty."""
    tokens: int = Field(ge=0)
    """That showing it takes, about."""


class NeighborRows(Frozen):
    """The rows of one program."""

    rows: tuple[NeighborRow, ...] = Field(min_length=1)


def neighbors_of(predictor: Any) -> Neighbors | None:
    """What a predictor says by its attribute `neighbors`; None where its demonstrations are the same for every input.

    Raises:
        ProgramError: what stands there is something else.
    """
    given = getattr(predictor, "neighbors", None)
    return None if given is None or callable(given) else read_neighbors(given)


def read_neighbors(given: Any) -> Neighbors:
    """What stands in a state as `neighbors`. Raises ProgramError where it is something else."""
    try:
        return Neighbors.model_validate(given)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ProgramError(
            f"A predictor's `neighbors` makes no sense: {where}: {problem['msg']}. Correct it."
        ) from None


def nearest(
    asked: Neighbors, objects: str, signature: type[dspy.Signature], inputs: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The demonstrations for a call, the most alike last. Safe from any thread.

    Args:
        objects: the root of the store that has the rows.
        inputs: of the call, by field.

    Raises:
        ProgramError: the store lacks the rows, or they have other fields than the signature.
    """
    index = _index(objects, asked, tuple(signature.input_fields))
    found = index.nearest(inputs, asked.count, asked.tokens)
    known = {*signature.input_fields, *signature.output_fields}
    demos = [{name: value for name, value in row.items() if name in known} for row in reversed(found)]
    if demos and not demos[0].keys() & signature.output_fields.keys():
        raise ProgramError(_misfit(asked, index.rows[0], signature.output_fields))
    return demos


class NeighborIndex:
    """Rows and their vectors. Not changed after it was made."""

    def __init__(self, rows: Sequence[NeighborRow], inputs: Sequence[str], unit: Unit) -> None:
        """Args:
        rows: at least one.
        inputs: the fields by which rows are compared.
        unit: what a vector counts.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._inputs = tuple(inputs)
        self.rows = [row.values for row in rows]
        self._groups = [row.group for row in rows]
        self._tokens = [row.tokens for row in rows]
        self._texts = [self._text(row.values) for row in rows]
        if unit == "characters":
            self._vectors = TfidfVectorizer(analyzer="char", ngram_range=(2, 5), sublinear_tf=True)
        else:
            words = r"\w+|[^\w\s]"
            self._vectors = TfidfVectorizer(ngram_range=(1, 2), token_pattern=words, sublinear_tf=True)
        self._matrix = self._vectors.fit_transform([_BORDERS.format(text) for text in self._texts])

    def nearest(self, inputs: Mapping[str, Any], count: int, tokens: int) -> list[dict[str, Any]]:
        """Up to `count` rows that fit into `tokens`, the most alike first; of equally near ones the earlier."""
        import numpy as np

        text = self._text(inputs)
        hidden = {index for index, own in enumerate(self._texts) if own == text}
        groups = {self._groups[index] for index in hidden} - {""}
        similar = (self._vectors.transform([_BORDERS.format(text)]) @ self._matrix.T).toarray()[0]
        found: list[dict[str, Any]] = []
        for index in np.argsort(-similar, kind="stable"):
            if len(found) == count:
                break
            if index in hidden or self._groups[index] in groups or self._tokens[index] > tokens:
                continue
            tokens -= self._tokens[index]
            found.append(self.rows[index])
        return found

    def _text(self, values: Mapping[str, Any]) -> str:
        """The text under which inputs are compared: case and runs of white space do not count."""
        said = (_said(values.get(name, "")) for name in self._inputs)
        return "\n".join(" ".join(value.casefold().split()) for value in said)


def _said(value: Any) -> str:
    """A value as text: the same for one of the signature's type and for what was saved of it."""
    from dspy.adapters.utils import serialize_for_json

    plain = serialize_for_json(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False, sort_keys=True, default=str)


def _index(objects: str, asked: Neighbors, inputs: tuple[str, ...]) -> NeighborIndex:
    # Under the lock: else all threads of a first evaluation would make the same vectors at once.
    with _lock:
        return _made(objects, asked.rows, tuple(sorted(asked.fields.items())), inputs, asked.unit)


@lru_cache(maxsize=OPEN)
def _made(
    objects: str, sha256: str, fields: tuple[tuple[str, str], ...], inputs: tuple[str, ...], unit: Unit
) -> NeighborIndex:
    asked = Neighbors(rows=sha256, of=1, count=1, tokens=1, unit=unit, fields=dict(fields))
    if not objects:
        raise ProgramError(
            f"The program's demonstrations are chosen among rows of a store ({sha256[:8]}), and the adapter that runs it has no "
            "store. Run it under the adapter of `dspy_toolkit.lm.connect`."
        )
    try:
        kept = NeighborRows.model_validate(Store(objects).read_json(asked.ref)).rows
    except ObjectMissing:
        raise ProgramError(
            f"The rows that the program's demonstrations are chosen among ({sha256[:8]}) are not in the store {objects}. Load the "
            "program as a version or from its folder, which brings them, or optimize it again."
        ) from None
    except ValidationError as error:
        raise ProgramError(
            f"The object {sha256[:8]} of the store {objects} holds no rows for demonstrations: "
            f"{error.errors(include_url=False)[0]['msg']}. Optimize the program again."
        ) from None
    renamed = [
        row.model_copy(update={"values": {asked.fields.get(name, name): value for name, value in row.values.items()}})
        for row in kept
    ]
    if not set(inputs) & renamed[0].values.keys():
        raise ProgramError(_misfit(asked, renamed[0].values, inputs))
    return NeighborIndex(renamed, inputs, unit)


def _misfit(asked: Neighbors, row: Mapping[str, Any], fields: Sequence[str] | Mapping[str, Any]) -> str:
    return (
        f"The rows that the program's demonstrations are chosen among ({asked.rows[:8]}) have the fields {', '.join(row)}, and its "
        f"signature has {', '.join(fields)}. Optimize it again."
    )
