"""Demonstrations chosen for each input: what holds of every choice, and that every path to the model has them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import BaseModel

from dspy_toolkit.errors import ProgramError
from dspy_toolkit.lm.levers import clear, levers_of, pull
from dspy_toolkit.lm.neighbors import NeighborIndex, NeighborRow, NeighborRows, Neighbors, nearest
from dspy_toolkit.optimizers.states import fill, prompt_of, state_of
from dspy_toolkit.settings import Settings
from dspy_toolkit.store import Store
from dspy_toolkit.testing import fake_connection, fake_engine

THINGS = ("red tomato", "red cherry", "green lime", "green frog", "blue whale", "blue sky")


class Colour(dspy.Signature):
    """Name the colour."""

    text: str = dspy.InputField()
    label: Literal["red", "green", "blue"] = dspy.OutputField()


def row(text: str, group: str = "", tokens: int = 10, label: str | None = None) -> NeighborRow:
    return NeighborRow(values={"text": text, "label": label or text.split()[0]}, group=group, tokens=tokens)


def kept(home: Path, rows: Sequence[NeighborRow], **fields: Any) -> Neighbors:
    """These rows in the store of a home, and how they are used."""
    ref = Store(Settings(home=home).objects).save_json(NeighborRows(rows=tuple(rows)))
    return Neighbors(**{"rows": ref.sha256, "of": len(rows), "count": 2, "tokens": 1000, **fields})


def program_with(neighbors: Neighbors, **levers: Any) -> dspy.Predict:
    program = dspy.Predict(Colour)
    pull(program, neighbors=neighbors.model_dump(mode="json"), **levers)
    return program


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)


@hypothesis_settings(deadline=None)  # the first example imports scikit-learn
@given(
    rows=st.lists(st.tuples(TEXTS, st.sampled_from(["", "a", "b"]), st.integers(0, 40)), min_size=1, max_size=12),
    asked=st.one_of(TEXTS, st.integers(0, 11)),
    count=st.integers(1, 8),
    tokens=st.integers(1, 90),
    unit=st.sampled_from(["characters", "words"]),
)
def test_neither_the_row_itself_nor_one_of_its_group_and_never_more_than_fits(
    rows: list[tuple[str, str, int]], asked: str | int, count: int, tokens: int, unit: Any
) -> None:
    made = [NeighborRow(values={"text": text, "label": str(at)}, group=group, tokens=size)
            for at, (text, group, size) in enumerate(rows)]  # fmt: skip
    text = asked if isinstance(asked, str) else rows[asked % len(rows)][0].upper()
    found = NeighborIndex(made, ["text"], unit).nearest({"text": text}, count, tokens)

    def folded(value: str) -> str:
        return " ".join(value.casefold().split())

    same = {made[at].group for at, each in enumerate(rows) if folded(each[0]) == folded(text)} - {""}
    shown = [made[int(each["label"])] for each in found]
    assert len(shown) <= count and sum(each.tokens for each in shown) <= tokens
    assert all(folded(each.values["text"]) != folded(text) and each.group not in same for each in shown)
    able = [each for each in made if folded(each.values["text"]) != folded(text) and each.group not in same]
    if len(shown) < count:  # whatever was passed over did not fit any more
        left = tokens - sum(each.tokens for each in shown)
        assert all(each.tokens > left for each in able if each not in shown)


@pytest.mark.parametrize("unit", ["characters", "words"])
def test_the_most_alike_comes_first(unit: Any) -> None:
    index = NeighborIndex([row(text) for text in THINGS], ["text"], unit)
    assert index.nearest({"text": "a lime that is green"}, 2, 100)[0]["text"] == "green lime"
    assert {each["label"] for each in index.nearest({"text": "blue whales"}, 2, 100)} == {"blue"}


def test_inputs_of_any_type_are_compared_as_they_were_saved() -> None:
    class Point(BaseModel):
        x: int
        y: int

    saved = {"where": {"x": 1, "y": 2}, "label": "a"}
    other = {"where": {"x": 7, "y": 9}, "label": "b"}
    index = NeighborIndex([NeighborRow(values=each, tokens=1) for each in (saved, other)], ["where"], "characters")
    assert index.nearest({"where": Point(x=1, y=2)}, 2, 10) == [other]


def test_a_prompt_has_the_neighbours_behind_its_own_demonstrations_the_most_alike_last(tmp_path: Path) -> None:
    connection = fake_connection(lambda request: "red", tmp_path)
    program = program_with(kept(tmp_path, [row(text) for text in THINGS]), format="plain")
    program.demos = [{"text": "own", "label": "blue"}]
    with connection.context():
        program(text="green limes")
    (request,) = fake_engine(connection).requests
    assert [turn.content for turn in request.messages[1:]] == [
        "own", "blue", "green frog", "green", "green lime", "green", "green limes",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["chat", "plain", "json", "xml"])
def test_every_format_shows_them(tmp_path: Path, name: str) -> None:
    replies = {"chat": "[[ ## label ## ]]\nred\n\n[[ ## completed ## ]]", "plain": "red", "json": '{"label":"red"}'}
    connection = fake_connection(lambda request: replies.get(name, "<label>\nred\n</label>"), tmp_path)
    program = program_with(kept(tmp_path, [row(text) for text in THINGS]), format=name)
    with connection.context():
        assert program(text="blue whales").label == "red"
    (request,) = fake_engine(connection).requests
    assert "blue whale" in request.messages[3].content and len(request.messages) == 6


def test_threads_and_an_event_loop_ask_the_same(tmp_path: Path) -> None:
    connection = fake_connection(lambda request: "red", tmp_path)
    program = program_with(kept(tmp_path, [row(text) for text in THINGS * 20]), format="plain")
    asked = [f"{thing} number {number}" for number in range(4) for thing in THINGS]

    def threads() -> None:
        def one(text: str) -> None:
            with connection.context():
                program(text=text)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, asked))

    async def loop() -> None:
        with connection.context(connection.lm.copy(rollout_id=1, temperature=0.5)):
            await asyncio.gather(*(program.acall(text=text) for text in asked))

    def prompts() -> set[str]:
        found = {str([turn.content for turn in each.messages]) for each in fake_engine(connection).requests}
        fake_engine(connection).requests.clear()
        return found

    threads()
    first = prompts()
    asyncio.run(loop())
    assert prompts() == first and len(first) == len(asked)


def test_a_state_says_which_rows_and_loading_takes_it_whole(tmp_path: Path) -> None:
    neighbors = kept(tmp_path, [row(text) for text in THINGS])
    program = program_with(neighbors)
    loaded = fill(dspy.Predict(Colour), state_of(program))
    assert levers_of(loaded) == {"neighbors": neighbors.model_dump(mode="json")}
    assert prompt_of(loaded) == prompt_of(program) != prompt_of(dspy.Predict(Colour))
    assert "tomato" not in str(state_of(program))
    clear(loaded)
    assert prompt_of(loaded) == prompt_of(dspy.Predict(Colour))


def test_a_field_that_was_renamed_is_found(tmp_path: Path) -> None:
    old = [NeighborRow(values={"request": text, "label": text.split()[0]}, tokens=1) for text in THINGS]
    objects = Settings(home=tmp_path).objects
    neighbors = kept(tmp_path, old)
    with pytest.raises(ProgramError, match=r"fields label, request, and its signature has text. Optimize"):
        nearest(neighbors, objects, Colour, {"text": "blue whales"})
    renamed = neighbors.model_copy(update={"fields": {"request": "text"}})
    assert nearest(renamed, objects, Colour, {"text": "blue whales"})[-1] == {"text": "blue whale", "label": "blue"}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("five", "valid dictionary"),
        ({"rows": "../x", "of": 1, "count": 1, "tokens": 1}, "rows"),
        ({"rows": "0" * 64, "of": 1, "count": 0, "tokens": 1}, "count"),
    ],
)
def test_what_makes_no_sense_is_said(given: Any, problem: str) -> None:
    program = dspy.Predict(Colour)
    program.neighbors = given  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ProgramError, match=problem):
        levers_of(program)


def test_rows_that_are_not_there_are_named_with_what_helps(tmp_path: Path) -> None:
    neighbors = Neighbors(rows="a" * 64, of=1, count=1, tokens=1)
    with pytest.raises(ProgramError, match=r"aaaaaaaa.*not in the store.*optimize it again"):
        nearest(neighbors, str(tmp_path), Colour, {"text": "x"})
    with pytest.raises(ProgramError, match=r"has no store.*lm.connect"):
        nearest(neighbors, "", Colour, {"text": "x"})
