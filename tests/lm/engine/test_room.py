"""What rows take in memory as they are stored, and that the plan's part for them is never exceeded."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.lm.engine.footprint import STEP, Footprint, length_of
from tests.lm.engine.batches import Bench, Run, answer, finish, insert
from tests.lm.tiny import WINDOW, Kind

KINDS = ("llama", "sliding", "hybrid")


@pytest.fixture(scope="module")
def benches(tiny: Callable[[Kind], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Bench]:
    made: dict[str, Bench] = {}
    home = tmp_path_factory.mktemp("home")

    def get(kind: Kind) -> Bench:
        if kind not in made:
            made[kind] = Bench(tiny(kind), home)
        return made[kind]

    return get


@pytest.mark.parametrize(("kind", "gpu"), [("llama", False), ("llama", True), ("sliding", True), ("hybrid", False)])
def test_random_mixes_stay_within_the_plan_and_say_what_they_say_alone(
    run: Run, benches: Callable[[Kind], Bench], kind: Kind, gpu: bool
) -> None:
    """Replies that grow beyond what is expected, prompts of all lengths, others that begin alike, some given up."""
    bench = benches(kind)
    chance = random.Random(f"{kind} {gpu}")
    beginning = [chance.randrange(1000, 40000) for _ in range(60)]
    asked = [
        (beginning if chance.random() < 0.4 else []) + [chance.randrange(1000, 40000) for _ in range(length)]
        for length in [4, 300, *(chance.choice((4, 20, 50, 300)) for _ in range(6))]
    ]
    lengths = [90, 3, 12, *(chance.choice((3, 12, 70)) for _ in asked[3:])]

    def work() -> None:
        with bench.batch(gpu=gpu) as batch:
            footprint = batch._footprint
            alone = [answer(batch, [bench.sequence(p, max_tokens=n)])[0] for p, n in zip(asked, lengths, strict=True)]
        # Room for one of the longest with a pass over it, and for some short ones.
        budget = int(footprint.stored(1, 460, 460) + footprint.stored(2, 60))
        with bench.batch(gpu=gpu, plan={"kv_budget_bytes": budget}) as batch:
            rows = [bench.sequence(prompt, max_tokens=n) for prompt, n in zip(asked, lengths, strict=True)]
            given_up, most = [rows[3], rows[6]], []

            def look() -> None:
                held = batch.counts["cache_bytes"]
                assert held <= budget
                most.append(held)
                if len(most) == 12:
                    batch.remove(set(given_up))

            # All at once, whether there is room or not: what does not fit has to wait, or to pause.
            insert(batch, rows)
            finish(batch, look)
            assert max(most) > budget / 3
            for row, expected in zip(rows, alone, strict=True):
                if row in given_up:
                    assert expected[: len(row.reply)] == row.reply
                else:
                    assert row.reply == expected
            assert batch.counts["cache_bytes"] == 0 and not batch.sequences

    run(work)


@pytest.mark.parametrize("gpu", [False, True])
def test_sequences_that_outgrow_the_plan_pause_and_go_on(run: Run, benches: Callable[[Kind], Bench], gpu: bool) -> None:
    """Also drawn ones, penalized ones and ones under a grammar: what they say next hangs on nothing that was given up."""
    bench = benches("llama")
    fields: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0, "seed": 5},
        {"repetition_penalty": 1.5},
        {"grammar": "start: /[a-f ]{200,300}/"},
    ]

    def rows() -> list[Any]:
        return [bench.sequence([500 + n] * 30, max_tokens=150, **each) for n, each in enumerate(fields)]

    def work() -> None:
        with bench.batch(gpu=gpu) as batch:
            alone = [answer(batch, [row])[0] for row in rows()]
            budget = int(batch._footprint.stored(2, 200))
        with bench.batch(gpu=gpu, plan={"kv_budget_bytes": budget}) as batch:
            waiting = rows()
            insert(batch, waiting)
            finish(batch, lambda: None)
            assert batch.pauses > 0
            assert [row.reply for row in waiting] == alone

    run(work)


def test_an_outlier_is_stored_and_stepped_apart(run: Run, benches: Callable[[Kind], Bench]) -> None:
    bench = benches("llama")

    def work() -> None:
        with bench.batch(gpu=False, plan={"model_bytes": 200_000}) as batch:
            token = batch._footprint.growing
            rows = [bench.sequence([700 + n] * 20, max_tokens=12) for n in range(6)]
            outlier = bench.sequence(list(range(1000, 1900)), max_tokens=12)
            insert(batch, [*rows, outlier])
            while batch._prefills:
                batch.step()
            groups = batch._decoding._groups
            assert sorted(len(group.sequences) for group in groups) == [1, 6]
            assert batch.counts["cache_bytes"] <= token * (6 * (40 + STEP) + 920 + STEP) < token * 7 * 900
            finish(batch)
            assert all(len(row.reply) == 12 for row in [*rows, outlier])

    run(work)


def test_groups_that_are_alike_again_are_put_together(run: Run, benches: Callable[[Kind], Bench]) -> None:
    bench = benches("llama")

    def work() -> None:
        with bench.batch(gpu=True, plan={"model_bytes": 50_000}) as batch:
            short = [bench.sequence([700 + n] * 20, max_tokens=30) for n in range(2)]
            long = [bench.sequence([800 + n] * 400, max_tokens=30) for n in range(1)]
            insert(batch, [*short, *long])
            while batch._prefills:
                batch.step()
            assert len(batch._decoding._groups) == 2
            batch._decoding._weights_bytes = 1e9  # as if reading them had become dear
            batch.step()
            assert len(batch._decoding._groups) == 1
            finish(batch)
            assert all(len(row.reply) == 30 for row in [*short, *long])

    run(work)


@pytest.mark.parametrize("kind", KINDS)
def test_a_footprint_knows_the_kinds_of_layers(run: Run, benches: Callable[[Kind], Bench], kind: Kind) -> None:
    """Four layers of 2 heads of 16 numbers in float32, keys and values."""
    bench, layer = benches(kind), 2 * 2 * 16 * 4

    def work() -> Footprint:
        with bench.batch(gpu=True) as batch:
            return batch._footprint

    found = run(work)
    if kind == "llama":
        assert (found.growing, found.windows, found.fixed) == (4 * layer, (), 0)
    elif kind == "sliding":
        assert (found.growing, found.windows, found.fixed) == (2 * layer, ((layer, WINDOW),) * 2, 0)
        assert found.stored(3, 1000) == 3 * (2 * layer * (1000 + STEP) + 2 * layer * (WINDOW + 1 + STEP))
    else:
        assert (found.growing, found.windows) == (2 * layer, ())
        assert found.fixed == 2 * 2 * 64 * 4  # two layers, two past inputs of 64 numbers


def test_lengths_are_read_without_the_device() -> None:
    from dspy_toolkit.lm.engine.caches import SharedKVCache

    assert length_of([SharedKVCache([None, None])]) == 0
    assert length_of([]) == 0
