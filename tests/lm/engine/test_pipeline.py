"""The decode loop of GPUs, here on the CPU: the tokens of mlx_lm and of the CPU's own loop, and one wait a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.lm.random_model import SIZES, write_model
from dspy_toolkit.lm.engine.pipeline import PipelinedDecoding
from dspy_toolkit.lm.engine.sequence import Sequence as Running
from tests.lm.engine.batches import Bench, Run, answer, finish, insert
from tests.lm.tiny import Kind

REPLY = 8
NEAR = {"float32": 1e-3, "bf16": 0.15, "4bit": 0.15}
"""Logits nearer together than this many of their standard deviations may change places."""


@pytest.fixture(scope="module")
def random_models(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bench]:
    """A small model of random weights in a precision."""
    made: dict[str, Bench] = {}

    def get(kind: str) -> Bench:
        if kind not in made:
            folder = tmp_path_factory.mktemp("models")
            run(lambda: write_model(folder / kind, SIZES["tiny"], kind))
            made[kind] = Bench(folder / kind, folder)
        return made[kind]

    return get


def prompts(lengths: tuple[int, ...] = (5, 40, 17, 18, 3, 64), shared: int = 0) -> list[list[int]]:
    draw = np.random.default_rng(sum(lengths))
    beginning = draw.integers(0, 256, shared).tolist()
    return [beginning + draw.integers(0, 256, length).tolist() for length in lengths]


class Exact:
    """A model whose logits are in float32: log-probabilities in bf16 have ties that the logits have not."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, *inputs: Any, **more: Any) -> Any:
        import mlx.core as mx

        return self.model(*inputs, **more).astype(mx.float32)

    @property
    def layers(self) -> Any:
        return self.model.layers


def gap_where_they_part(model: Any, prompt: list[int], ours: list[int], theirs: list[int]) -> float:
    """How near to each other the two tokens are where replies part, in standard deviations of all logits there."""
    import mlx.core as mx

    at = next(place for place, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    logits = np.array(model(mx.array([prompt + ours[:at]]))[0, -1].astype(mx.float32))
    return float(abs(logits[ours[at]] - logits[theirs[at]]) / logits.std())


@pytest.mark.parametrize(("kind", "shared"), [("float32", 0), ("float32", 60), ("bf16", 60), ("4bit", 0)])
def test_tokens_are_those_of_mlx_lm(run: Run, random_models: Any, kind: str, shared: int) -> None:
    bench = random_models(kind)

    def work() -> None:
        import mlx.core as mx
        from mlx_lm.generate import generate_step

        from dspy_toolkit.lm.models import cpu
        from dspy_toolkit.lm.models.weights import load_model

        asked = prompts(shared=shared)
        with bench.batch(gpu=True) as batch:
            ours = answer(batch, [bench.sequence(prompt, max_tokens=REPLY) for prompt in asked])
        with cpu.leave_to_mlx():
            model, _ = load_model(bench.weights, "cuda")
            for prompt, reply in zip(asked, ours, strict=True):
                steps = generate_step(mx.array(prompt), Exact(model), max_tokens=REPLY)
                alone = [int(token) for token, _ in steps]
                assert len(reply) == len(alone)
                if reply != alone:
                    assert gap_where_they_part(model, prompt, reply, alone) < NEAR[kind]

    run(work)


MIX: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.7, "top_p": 0.8, "top_k": 40, "seed": 4},
    {"temperature": 1.3, "min_p": 0.1, "seed": 3, "logprobs": 2},
    {"repetition_penalty": 1.3},
    {"logprobs": 4},
]


@pytest.mark.parametrize("kind", ["llama", "sliding", "hybrid"])
def test_all_that_can_be_asked_for_is_answered_as_on_a_cpu(
    run: Run, tiny: Callable[[Kind], Path], tmp_path: Path, kind: Kind
) -> None:
    """Sampling, filters, penalties, log-probabilities, beside each other and beside grammars, which end first; float32."""
    grammar = "start: /[a-f]{3,30}/"
    bench = Bench(tiny(kind), tmp_path)

    def replies(gpu: bool) -> list[Running]:
        rows = [
            bench.sequence(prompt, max_tokens=REPLY, **fields) for prompt, fields in zip(prompts(), MIX, strict=True)
        ]
        rows += [bench.sequence(prompt, max_tokens=4, grammar=grammar) for prompt in prompts((9, 30))]
        rows.append(bench.sequence([7] * 20, max_tokens=4, grammar=grammar, temperature=1.0, seed=1))
        with bench.batch(gpu=gpu) as batch:
            assert isinstance(batch._new_decoding(), PipelinedDecoding) is gpu
            answer(batch, rows)
        return rows

    ours, theirs = run(lambda: replies(True)), run(lambda: replies(False))
    for one, other in zip(ours, theirs, strict=True):
        assert one.reply == other.reply
        assert len(one.logprobs) == (len(one.reply) if one.request.logprobs is not None else 0)
        for a, b in zip(one.logprobs, other.logprobs, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=2e-3)
            assert [token for token, _ in a.top] == [token for token, _ in b.top]


def test_sequences_join_leave_and_are_given_up_while_steps_run_ahead(run: Run, random_models: Any) -> None:
    bench = random_models("float32")
    asked = prompts((5, 6, 30, 31, 12, 50, 7, 8))

    def work() -> None:
        with bench.batch(gpu=True) as batch:
            alone = []
            for number, prompt in enumerate(asked):
                fields: dict[str, Any] = {"temperature": 1.0, "seed": number} if number % 2 else {}
                alone += answer(batch, [bench.sequence(prompt, max_tokens=4 + 5 * (number % 4), **fields)])
            rows = [
                bench.sequence(
                    prompt,
                    max_tokens=4 + 5 * (number % 4),
                    **({"temperature": 1.0, "seed": number} if number % 2 else {}),
                )
                for number, prompt in enumerate(asked)
            ]
            given_up = [bench.sequence(prompt, max_tokens=40) for prompt in prompts((9, 10))]
            insert(batch, [*rows[:3], *given_up])
            for row in rows[3:]:
                batch.step()
                batch.step()
                insert(batch, [row])
            batch.remove(set(given_up))
            finish(batch)
            assert [row.reply for row in rows] == alone
            assert all(0 < len(row.reply) < 40 for row in given_up)
            assert batch.counts["cache_bytes"] == 0

    run(work)


class Waits:
    """How often the host waited for the device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import mlx.core as mx

        self.count = 0
        for owner, name in (
            (mx, "eval"),
            (mx, "synchronize"),
            (mx.array, "item"),
            (mx.array, "tolist"),
            (np, "array"),
            (np, "asarray"),
        ):
            monkeypatch.setattr(owner, name, self._counting(getattr(owner, name)))

    def _counting(self, real: Any) -> Any:
        import mlx.core as mx

        def call(*args: Any, **more: Any) -> Any:
            self.count += real.__name__ in ("eval", "synchronize") or any(
                isinstance(each, mx.array) for each in args[:1]
            )
            return real(*args, **more)

        return call


@pytest.mark.parametrize("kind", ["llama", "sliding", "hybrid"])
def test_a_step_waits_once(
    run: Run, tiny: Callable[[Kind], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """Also where rows leave, are given up and are masked: `sequence.reply` shows how many tokens were read."""
    bench = Bench(tiny(kind), tmp_path)

    def work(grammar: bool) -> list[int]:
        rows = [
            bench.sequence(prompt, max_tokens=3 + 2 * number, **fields)
            for number, (prompt, fields) in enumerate(zip(prompts(), MIX, strict=True))
        ]
        if grammar:
            rows += [
                bench.sequence(prompt, max_tokens=5, grammar="start: /[a-f]{3,30}/") for prompt in prompts((9, 30))
            ]
        with bench.batch(gpu=True) as batch:
            batch._decoding._weights_bytes = 1e9  # all rows in one group, as beside the weights of a real model
            insert(batch, rows)
            while batch._prefills:
                batch.step()
            waits, counted = Waits(monkeypatch), []
            while batch.sequences:
                before = waits.count
                with batch.on_stream():
                    batch._decoding.step(float("inf"))
                counted.append(waits.count - before)
            monkeypatch.undo()
        assert all(len(row.reply) == row.request.max_tokens for row in rows[: len(MIX)])
        return counted

    free = run(lambda: work(False))
    assert max(free) == 1 and free.count(1) >= 13
    bound = run(lambda: work(True))
    assert max(bound) == 1


def test_nothing_is_waited_for_but_what_was_launched_a_step_before(
    run: Run, random_models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = random_models("float32")

    def work() -> None:
        from dspy_toolkit.lm.engine.choosing import Chosen

        launched: list[Chosen] = []
        start, read = Chosen.start, Chosen.read

        def noting(chosen: Chosen) -> None:
            launched.append(chosen)
            start(chosen)

        def checking(chosen: Chosen, text: Any) -> Any:
            newest = launched[-1]
            # The last token of all has nothing after it.
            assert newest is not chosen or all(each.room == 1 for each in chosen.sequences)
            return read(chosen, text)

        monkeypatch.setattr(Chosen, "start", noting)
        monkeypatch.setattr(Chosen, "read", checking)
        with bench.batch(gpu=True) as batch:
            replies = answer(batch, [bench.sequence(prompt, max_tokens=12) for prompt in prompts((20, 20, 20))])
        assert [len(reply) for reply in replies] == [12, 12, 12]
        assert len(launched) == 12, "a row that its length ends is fed no more"

    run(work)
