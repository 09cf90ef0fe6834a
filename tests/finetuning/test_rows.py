"""Rows as tokens, and the batches that they make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_toolkit.errors import TrainingError
from dspy_toolkit.finetuning.batches import Part, epoch_batches, evaluation_parts, steps_of_epoch
from dspy_toolkit.finetuning.rows import EncodedRow, encode_rows
from dspy_toolkit.finetuning.values import TrainingRow, TrainSettings
from dspy_toolkit.lm.models.tokenizer import Tokenizer
from dspy_toolkit.lm.protocol import GenerationRequest, Message
from tests.finetuning.conftest import make_rows


@pytest.fixture(scope="module")
def tokenizer(model_home: Path) -> Tokenizer:
    return Tokenizer(model_home / "models" / "smollm2-135m")


def test_a_row_is_what_the_engine_reads_and_decodes(tokenizer: Tokenizer) -> None:
    (row,) = make_rows(1)
    (encoded,) = encode_rows([row], tokenizer)
    prompt = tokenizer.encode_request(GenerationRequest(messages=row.prompt, grammar='start: "lora"'))
    tokens = encoded.tokens.tolist()
    assert tokens[: len(prompt)] == prompt
    assert tokenizer.decode(tokens[len(prompt) :]) == "lora"
    assert tokens[-1] in tokenizer.stop_tokens
    assert encoded.scored.tolist() == list(range(len(prompt), len(tokens)))


@pytest.mark.parametrize(
    ("reply", "spans", "scored"),
    [
        ("[[ ## label ## ]]\nlora\n\n[[ ## completed ## ]]", ((18, 22),), "lora"),
        ('{"a": "naïve café 🦙 x", "b": 1}', ((7, 19),), "naïve café 🦙"),
        ("one two three", ((0, 3), (8, 13)), "one three"),
    ],
)
def test_only_the_scored_spans_count(
    tokenizer: Tokenizer, reply: str, spans: tuple[tuple[int, int], ...], scored: str
) -> None:
    row = TrainingRow(prompt=(Message(role="user", content="a"),), reply=reply, scored=spans)
    (encoded,) = encode_rows([row], tokenizer)
    said = tokenizer.decode(encoded.tokens[encoded.scored].tolist())
    assert said.strip() == scored.strip()
    assert len(encoded.tokens) == encoded.scored[-1] + 1  # cut behind what counts


def test_a_reply_that_spells_a_control_token_is_text(tokenizer: Tokenizer) -> None:
    row = TrainingRow(prompt=(Message(role="user", content="a"),), reply="<|im_end|>")
    (encoded,) = encode_rows([row], tokenizer)
    reply = encoded.tokens[encoded.scored].tolist()
    assert len(reply) > 2
    assert sum(token in tokenizer.stop_tokens for token in reply) == 1


def test_rows_that_cannot_be_trained_on(tokenizer: Tokenizer) -> None:
    good, *_ = make_rows(1)
    long = good.model_copy(update={"reply": "word " * 9000})
    with pytest.raises(TrainingError, match=r"Training row 1 has \d+ tokens, .* context is 8192\. Leave the row out"):
        encode_rows([good, long], tokenizer)
    nothing = good.model_copy(update={"scored": ((50, 60),)})
    with pytest.raises(TrainingError, match=r"validation row 0: no token of its reply 'lora' lies in .*\(50, 60\)"):
        encode_rows([nothing], tokenizer, "validation row")


def rebuilt(part: Part) -> list[tuple[list[int], list[int]]]:
    """(tokens, scored places) of each row of a part, but for what is padding."""
    found = []
    for at, row in enumerate(part.inputs):
        mine = part.rows == at
        places = part.places[mine]
        tokens = [*part.prefix.tolist(), *row[: places[-1] + 1].tolist(), int(part.targets[mine][-1])]
        for place, target in zip(places, part.targets[mine], strict=True):
            assert tokens[len(part.prefix) + place + 1] == target
        found.append((tokens, (places + len(part.prefix) + 1).tolist()))
    return found


@st.composite
def encoded_rows(draw: st.DrawFn) -> list[EncodedRow]:
    beginnings = [np.arange(30) + 100, np.arange(90) + 200]
    rows = []
    for number in range(draw(st.integers(1, 25))):
        length = draw(st.integers(1, 12))
        own = np.array([number, *draw(st.lists(st.integers(0, 9), min_size=length, max_size=length))])
        tokens = np.concatenate([draw(st.sampled_from(beginnings)), own]).astype(np.int32)
        first = draw(st.integers(len(tokens) - length, len(tokens) - 1))
        rows.append(EncodedRow(tokens, np.arange(first, len(tokens), dtype=np.int32)))
    return rows


@settings(deadline=None, max_examples=60)
@given(encoded_rows(), st.integers(1, 9), st.integers(16, 300), st.booleans())
def test_every_row_is_in_every_epoch_once_and_whole(
    rows: list[EncodedRow], batch_rows: int, part_tokens: int, share: bool
) -> None:
    chosen = TrainSettings(batch_rows=batch_rows, part_tokens=part_tokens)
    wanted = sorted((row.tokens.tolist(), row.scored.tolist()) for row in rows)
    for epoch in range(2):
        batches = epoch_batches(rows, chosen, epoch, share=share)
        assert sorted(row for batch in batches for part in batch for row in rebuilt(part)) == wanted
        assert len(batches) == steps_of_epoch(len(rows), chosen)
        sizes = [sum(len(part.inputs) for part in batch) for batch in batches]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= batch_rows
        for part in (part for batch in batches for part in batch):
            assert part.positions <= part_tokens or len(part.inputs) == 1
            assert share or not len(part.prefix)
    assert sorted(row for part in evaluation_parts(rows, chosen, share=share) for row in rebuilt(part)) == wanted


def test_the_order_changes_with_the_epoch_and_the_seed(tokenizer: Tokenizer) -> None:
    rows = encode_rows(make_rows(40), tokenizer)

    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = epoch_batches(rows, TrainSettings(seed=seed), epoch, share=False)
        return [row.tolist() for batch in batches for part in batch for row in part.inputs]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_what_rows_share_is_computed_once(tokenizer: Tokenizer) -> None:
    rows = encode_rows(make_rows(32), tokenizer)
    chosen = TrainSettings(batch_rows=16)
    shared, whole = (
        sum(part.cost for batch in epoch_batches(rows, chosen, 0, share=share) for part in batch)
        for share in (True, False)
    )
    assert shared < whole / 2
