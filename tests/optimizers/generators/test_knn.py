"""Neighbours as candidates: what is stored, what is tried, and that a whole run shows no row that it may not show."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspy_toolkit.lm.levers import levers_of
from dspy_toolkit.lm.neighbors import NeighborRows, read_neighbors
from dspy_toolkit.lm.protocol import GenerationRequest
from dspy_toolkit.optimizers.generators.knn import TOKENS, TRIED, candidates
from dspy_toolkit.optimizers.generators.workshop import Workshop, with_parts
from dspy_toolkit.optimizers.pool.entry import WAIT
from dspy_toolkit.optimizers.settings import PoolSettings
from dspy_toolkit.optimizers.states import fill
from dspy_toolkit.registry import load_version
from dspy_toolkit.settings import Settings
from tests.optimizers.benches import Bench
from tests.optimizers.toys import Toy, choice, demos_in, engine_of, profile, program, question, rows


def shop_of(toy: Toy) -> Workshop:
    settings = PoolSettings(optimizer="knn", generators=("knn",), rungs=(8, 16))
    return Workshop(toy.problem(), profile(), settings, 300)


def by_a_like_one(request: GenerationRequest) -> bool:
    """A model that copies: it is right where a demonstration is about the same thing."""
    return any(question(request).split()[1] in text for text, _ in demos_in(request))


def test_the_candidates_differ_in_number_and_measure_and_share_one_object(toy: Toy) -> None:
    made = list(zip(range(len(TRIED)), candidates(shop_of(toy)), strict=False))
    found = [read_neighbors(levers_of(each.program)["neighbors"]) for _, each in made if each is not WAIT]
    assert [(each.count, each.unit) for each in found] == list(TRIED)
    assert {each.tokens for each in found} == {TOKENS}
    (ref,) = {each.ref for each in found}
    kept = NeighborRows.model_validate(toy.store.read_json(ref)).rows
    assert [each.values for each in kept if each.values["text"] == "the tomato number 0"] == [
        {"text": "the tomato number 0", "label": "red"}
    ]
    assert {each.values["text"] for each in kept} == set(toy.train["text"])
    assert {each.group for each in kept} == set(toy.train["_group"])
    assert all(0 < each.tokens < 60 for each in kept)


def test_a_connection_of_another_home_has_the_rows_too(toy: Toy, tmp_path: Path) -> None:
    from dspy_toolkit.testing import fake_connection

    toy.knows = by_a_like_one
    connection = fake_connection(toy.reply, tmp_path / "elsewhere")
    compiled = toy.compile(choice("knn", 120), connection)
    assert compiled.winner == "knn"
    better = fill(program(), toy.state(compiled))
    with connection.context():
        assert better(text="the frog number 999").label == "green"


def test_a_small_context_leaves_room_for_the_input(toy: Toy) -> None:
    shop = Workshop(toy.problem(toy.connect(context_size=500)), profile(), shop_of(toy).settings, 300)
    first = next(candidates(shop))
    assert first is not None and levers_of(first.program)["neighbors"]["tokens"] == 250


def test_a_model_that_copies_is_helped_and_no_prompt_has_its_own_row(toy: Toy) -> None:
    toy.knows = by_a_like_one
    compiled = toy.compile(choice("knn", 120), connection := toy.connect())
    assert compiled.changed and compiled.winner == "knn" and compiled.val_mean == 1.0
    trained = set(toy.train["text"])
    for request in engine_of(connection).requests:
        shown = {text for text, _ in demos_in(request)}
        assert question(request) not in shown and shown <= trained
    better = fill(program(), toy.state(compiled))
    with connection.context():
        assert better(text="the whale number 999").label == "blue"
        assert better(text=toy.train["text"].iloc[0]).label == "red"
    assert toy.train["text"].iloc[0] not in {text for text, _ in demos_in(engine_of(connection).requests[-1])}


def test_demonstrations_take_their_place(toy: Toy) -> None:
    first = next(candidates(shop_of(toy)))
    assert first is not None
    assert levers_of(with_parts(first.program, None, [[]])) == {}
    assert levers_of(with_parts(first.program, ["Say it."], None)) == levers_of(first.program)


@pytest.mark.parametrize(("changes", "reason"), [({"train": 3}, "3 training rows"), ({"predictors": 2}, "in between")])
def test_what_they_need(changes: dict[str, int], reason: str) -> None:
    from dspy_toolkit.errors import OptimizerError

    with pytest.raises(OptimizerError, match=reason):
        choice("knn", 300, **changes)


def test_a_whole_run_is_saved_with_its_rows_and_shows_no_row_of_another_split(home: Settings, tmp_path: Path) -> None:
    bench = Bench(home, tmp_path / "project")
    bench.toy.knows = by_a_like_one
    run, _ = bench.whole(optimizer="knn", budget="120")
    assert run.decision.outcome == "promoted", run.decision.reason
    frames = {name: bench.toy.store.read_frame(getattr(run.dataset, name)) for name in ("train", "val", "sealed")}
    asked = set(frames["sealed"]["text"])
    sealed = [each for each in engine_of(bench.connection).requests if question(each) in asked]
    chosen = [each for each in sealed if demos_in(each)]
    assert len(chosen) >= len(asked)
    for request in chosen:
        assert {text for text, _ in demos_in(request)} <= set(frames["train"]["text"])
    state, _ = load_version(bench.toy.settings, "colours@champion")
    assert state["neighbors"]["of"] == len(rows(len(frames["train"])))
