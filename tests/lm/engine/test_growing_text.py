"""A growing reply's text is that of all its tokens, whatever the tokenizer does between two of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models

from dspy_toolkit.lm.engine.growing_text import HALF_A_CHARACTER, WINDOW, GrowingText

Decode = Callable[[Sequence[int]], str]


@pytest.fixture(scope="module")
def embedded(model_home: Path) -> Decode:
    from dspy_toolkit.lm.models.tokenizer import load_tokenizer

    return load_tokenizer(model_home / "models" / "smollm2-135m", "growing").decode


def with_spaces(*more: decoders.Decoder) -> Decode:
    """As Llama's first tokenizers: a word begins with a mark, unknown characters are bytes, and `more`."""
    words = ["▁a", "▁word", "s", "▁", "."]
    vocabulary = {token: at for at, token in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    decoder = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *more]
    tokenizer.decoder = decoders.Sequence(decoder)
    return lambda tokens: tokenizer.decode(list(tokens))


DECODERS = {
    "a space is left out where a text begins": with_spaces(decoders.Strip(" ", 1, 0)),
    "nothing is left out": with_spaces(),
}


def assert_grows(decode: Decode, tokens: list[int]) -> None:
    growing = GrowingText(decode)
    for size in range(len(tokens) + 1):
        assert growing.of(tokens[:size]) == decode(tokens[:size])


@pytest.mark.parametrize("seed", range(5))
def test_of_the_embedded_model(embedded: Decode, seed: int) -> None:
    draw = random.Random(seed)
    assert_grows(embedded, [draw.randrange(49152) for _ in range(6 * WINDOW)])
    # Of the first tokens most are single bytes: halves of characters, and bytes that are none.
    assert_grows(embedded, [draw.randrange(300) for _ in range(6 * WINDOW)])


@pytest.mark.parametrize("decode", DECODERS.values(), ids=list(DECODERS))
@pytest.mark.parametrize("seed", range(5))
def test_of_words_and_bytes(decode: Decode, seed: int) -> None:
    draw = random.Random(seed)
    letters = [[5 + byte for byte in letter.encode()] for letter in "é你🙂"]
    pieces = [draw.choice([[draw.randrange(5)], *letters]) for _ in range(4 * WINDOW)]
    growing, tokens = GrowingText(decode), list[int]()
    for piece in pieces:
        for token in piece:
            tokens.append(token)
            # In the middle of a letter these decoders take back the letters of bytes right before it.
            assert growing.of(tokens).startswith(decode(tokens).rstrip(HALF_A_CHARACTER))
        assert growing.of(tokens) == decode(tokens)


def test_a_long_reply_is_not_decoded_anew_for_every_token(embedded: Decode) -> None:
    decoded = 0

    def count(tokens: Sequence[int]) -> str:
        nonlocal decoded
        decoded += len(tokens)
        return embedded(tokens)

    draw, growing, tokens = random.Random(0), GrowingText(count), list[int]()
    for _ in range(1000):
        tokens.append(draw.randrange(1000, 49152))
        growing.of(tokens)
    assert decoded < 2 * WINDOW * len(tokens)
    assert growing.of(tokens) == embedded(tokens)
