"""A model's tokenizer, chat template and compiled grammars. Safe from any thread.

Text to tokens and back, nothing of the model itself: the engine uses it on its callers' threads, so that a bad request is
refused where it was made.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from dspy_toolkit.errors import ModelError, RequestRefused
from dspy_toolkit.lm.exchange import Message

REMEMBERED_GRAMMARS = 256
"""Compiled grammars kept; a matcher is a copy of one."""


class Tokenizer:
    """The tokenizer of one model folder in mlx_lm's format."""

    def __init__(self, folder: Path) -> None:
        """Args: folder: holds config.json and the tokenizer's files.

        Raises:
            ModelError: they cannot be read; the message carries the reason.
        """
        try:
            config = json.loads((folder / "config.json").read_text())
            with _without_advice():
                from mlx_lm.tokenizer_utils import load

                self._tokenizer = load(folder, eos_token_ids=config.get("eos_token_id"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(
                f"The tokenizer in {folder} cannot be read: {reason}. Fetch or convert the model again."
            ) from error
        self.context_size = int(config.get("max_position_embeddings") or 2**20)
        """Tokens of prompt and reply together."""
        self.stop_tokens = frozenset(self._tokenizer.eos_token_ids)
        self._lock = threading.Lock()
        self._grammar_tokenizer: Any = None
        self._compiled = lru_cache(maxsize=REMEMBERED_GRAMMARS)(self._compile)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's tokens, template included. Raises RequestRefused when the template refuses the messages."""
        from jinja2 import TemplateError

        turns = [message.model_dump(include={"role", "content"}) for message in messages]
        try:
            return self._tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except TemplateError as error:
            raise RequestRefused(f"The model's chat template refuses these messages: {error}.") from error

    def boundaries(self, messages):
        return []

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, without special ones."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    def vocabulary(self) -> int:
        """Tokens that grammars know; a model's logits may be wider."""
        return self._for_grammars().vocab_size

    def matcher(self, grammar: str) -> Any:
        """A fresh llguidance matcher. Raises RequestRefused when the grammar cannot be compiled."""
        matcher = self._compiled(grammar)
        if matcher.is_error():
            raise RequestRefused(f"The grammar cannot be compiled: {matcher.get_error().splitlines()[0]}.")
        return matcher.deep_copy()

    def _compile(self, grammar: str) -> Any:
        import llguidance

        return llguidance.LLMatcher(self._for_grammars(), grammar, log_level=0)

    def _for_grammars(self) -> Any:
        import llguidance.hf

        with self._lock:  # takes most of a second, once
            if self._grammar_tokenizer is None:
                self._grammar_tokenizer = llguidance.hf.from_tokenizer(self._tokenizer._tokenizer)
        return self._grammar_tokenizer


@lru_cache(maxsize=8)
def load_tokenizer(folder: Path, sha256: str) -> Tokenizer:
    """The tokenizer of `folder`, read once for each content that it has had."""
    return Tokenizer(folder)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Leave out transformers' advice to install PyTorch, which nothing here needs; its warnings still appear."""

    def keep(record: logging.LogRecord) -> bool:
        return "PyTorch was not found" not in record.getMessage()

    logger = logging.getLogger("transformers")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
