"""A model's tokenizer, chat template and compiled grammars. Safe from any thread.

It turns text into tokens and back, and needs nothing of the model itself: the engine uses it on its callers' threads,
so that a bad request is refused where it was made.

A request with a grammar, or with labels to score, is answered without reasoning. A grammar could not bound the length
of the reasoning, so max_tokens would cut the answer behind it, and a cut answer does not parse. Where the template opens
the reasoning by itself, it is closed again, empty. With a budget for it, the prompt ends inside the reasoning, and the
engine sees to it that it ends (`sequence`).
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from dspy_toolkit.errors import ModelError, RequestRefused
from dspy_toolkit.lm import harmony
from dspy_toolkit.lm.models.control_tokens import ControlTokens
from dspy_toolkit.lm.models.turns import Turns
from dspy_toolkit.lm.parsing import PLAIN, Budget, ReplyFormat, check_abilities
from dspy_toolkit.lm.protocol import GenerationRequest, Message

REMEMBERED_GRAMMARS = 256
"""Compiled grammars kept; a matcher is a copy of one."""
REMEMBERED_BEGINNINGS = 512
"""Lengths in tokens of prompts' beginnings kept, for `boundaries`."""
ENDLESS = 2**20
"""Context of a model whose config names no limit."""
LIMITS = ("max_position_embeddings", "max_sequence_length", "max_seq_len", "seq_length", "n_positions")
"""What configs call the longest context. A sliding window is not one: it bounds what a layer sees, not the prompt."""


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

                # No code of the folder's: transformers, where it is not told, would ask at the terminal.
                self._tokenizer = load(folder, {"trust_remote_code": False}, eos_token_ids=_end_tokens(folder, config))
            self.context_size = _context_size(config)
            """Tokens of prompt and reply together."""
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(
                f"The tokenizer in {folder} cannot be read: {reason}. Fetch or convert the model again."
            ) from error
        vocabulary = self._tokenizer.get_vocab()
        self._harmony = all(mark in vocabulary for mark in harmony.MARKS)
        ends = {vocabulary[mark] for mark in harmony.ENDS} if self._harmony else set()
        self.stop_tokens = frozenset({*self._tokenizer.eos_token_ids, *ends})
        self.has_thinking = bool(self._tokenizer.has_thinking or self._harmony)
        """Whether the model can reason before it answers."""
        self.has_tool_parser = bool(self._harmony or (self._tokenizer.has_tool_calling and self._tokenizer.tool_parser))
        """Whether tool calls can be parsed from its text."""
        self._hidden = self._special_tokens()
        self._control = ControlTokens(self._tokenizer)
        template = str(self._tokenizer.chat_template or "")
        self._knows_effort = "reasoning_effort" in template
        self._turns = Turns(template, lambda turns: self._render(turns, reply=False))
        self._lock = threading.Lock()
        self._grammar_tokenizer: Any = None
        self._compiled = lru_cache(maxsize=REMEMBERED_GRAMMARS)(self._compile)
        self._beginning = lru_cache(maxsize=REMEMBERED_BEGINNINGS)(self._control.encode)

    def _special_tokens(self) -> frozenset[int] | None:
        """Special tokens to leave out of a reply, where the model's marks are special too; None: leave out all."""
        marks = (
            self._tokenizer.think_start_tokens,
            self._tokenizer.think_end_tokens,
            self._tokenizer.tool_call_start_tokens,
            self._tokenizer.tool_call_end_tokens,
        )
        kept = {token for mark in marks for token in mark or ()}
        if self._harmony:
            kept |= set(self._tokenizer.convert_tokens_to_ids(list(harmony.MARKS)))
        special = {token for token, added in self._tokenizer.added_tokens_decoder.items() if added.special}
        return frozenset(special - kept) if special & kept else None

    def encode_request(self, request: GenerationRequest) -> list[int]:
        """The prompt's tokens, template included.

        Raises:
            RequestRefused: the template refuses the messages, or the model lacks what the request needs (tools,
                thinking).
        """
        if beyond := [token for token, _ in request.logit_bias if token >= len(self._tokenizer)]:
            raise RequestRefused(f"logit_bias names the token {beyond[0]}, and this model has {len(self._tokenizer)}.")
        options = self._template_options(request)
        if request.thinking_budget is None:
            return self.encode_chat(request.messages, **options)
        text = self._template(request.messages, **options, reply=True)
        if not self._is_open(self._control.encode(text)):
            text += harmony.ANALYSIS if self._harmony else f"{self._tokenizer.think_start}\n"
        return self._control.encode(text)

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] = (),
        thinking: bool | None = None,
        effort: str | None = None,
    ) -> list[int]:
        """The tokens of a prompt that ends where the reply begins. Raises RequestRefused as `encode_request` does."""
        text = self._template(messages, tools, thinking, effort, reply=True)
        if thinking is False and self._harmony:
            return self._control.encode(text + harmony.FINAL)
        tokens = self._control.encode(text)
        if thinking is False and self._is_open(tokens):
            # This template opens the reasoning whatever it is told.
            tokens = self._control.encode(text.rstrip() + f"\n\n{self._tokenizer.think_end}\n\n")
        return tokens

    def encode_reply(self, text: str) -> list[int]:
        """The tokens that a reply of this text has, without what ends the turn: those that the model is trained to choose."""
        return self._control.encode(self._control.quote(text))

    def encode_text(self, text: str) -> list[int]:
        """The tokens of a text outside of any conversation, with the token that this model begins a text with."""
        return [*self._beginning_of_text, *self._control.encode(self._control.quote(text))] if text else []

    @cached_property
    def _beginning_of_text(self) -> list[int]:
        first = self._tokenizer.bos_token_id
        return [first] if first is not None and self._tokenizer.encode("a")[:1] == [first] else []

    @cached_property
    def end_of_turn(self) -> int:
        """The token that ends a reply: the stop token that the template puts behind one, else the tokenizer's own."""
        said = [Message(role="user", content="a"), Message(role="assistant", content="b")]
        with suppress(RequestRefused):
            written = self._control.encode(self._template(said, (), None, reply=False))
            if ends := [token for token in written if token in self.stop_tokens]:
                return ends[-1]
        return int(self._tokenizer.eos_token_id)

    def boundaries(self, request: GenerationRequest) -> list[int]:
        """Places in the prompt, in tokens, at which a message ends; ascending, all below the prompt's length.

        A place counts only if the messages up to it, templated alone, give exactly the prompt's first tokens; templates
        that rewrite earlier messages have fewer of them, or none.
        """
        options = self._template_options(request)
        text = self._template(request.messages, **options, reply=True)
        prompt, places = self._control.encode(text), []
        for count in range(1, len(request.messages)):
            try:
                beginning = self._template(request.messages[:count], **options, reply=False)
            except RequestRefused:  # the template takes no conversation that ends there
                continue
            if not beginning or not text.startswith(beginning):
                continue
            tokens = self._beginning(beginning)
            if len(tokens) < len(prompt) and prompt[: len(tokens)] == tokens:
                places.append(len(tokens))
        return sorted(set(places))

    def reply_format(self, request: GenerationRequest, prompt: Sequence[int]) -> ReplyFormat:
        """The marks in the reply to `request`, whose prompt is `prompt`."""
        if request.label_scores is not None:
            return PLAIN
        wrapper, marks = self._tokenizer, dict[str, Any]()
        if request.grammar is not None and request.tools:
            from dspy_toolkit.lm.grammar import is_tool_call_grammar  # imports DSPy

            if is_tool_call_grammar(request.grammar, request.tools):
                marks = {"calls_only": True, "tools": request.tools}
        if request.thinking_budget is not None:
            marks["budget"] = self._budget(request.thinking_budget)
        elif request.grammar is not None:
            return ReplyFormat(**marks) if marks else PLAIN
        if self._harmony:
            answers = self._template_options(request)["thinking"] is False
            opening = harmony.ANALYSIS if "budget" in marks else harmony.FINAL if answers else ""
            return ReplyFormat(**marks | {"channel": opening, "tools": request.tools})
        if self.has_thinking:
            marks |= {
                "think_start": wrapper.think_start,
                "think_end": wrapper.think_end,
                "opened": self._is_open(prompt),
            }
        if request.tools and request.grammar is None:
            marks |= {"call_start": wrapper.tool_call_start, "call_end": wrapper.tool_call_end}
            marks |= {"parse_call": wrapper.tool_parser, "tools": request.tools}
        return ReplyFormat(**marks) if marks else PLAIN

    def _budget(self, tokens: int) -> Budget:
        if self._harmony:
            end, after = harmony.END, harmony.ASSISTANT + harmony.FINAL
        else:
            end, after = str(self._tokenizer.think_end), "\n\n"
        return Budget(tokens, tuple(self._control.encode(end)), tuple(self._control.encode(after)))

    def _template_options(self, request: GenerationRequest) -> dict[str, Any]:
        check_abilities(request, thinking=self.has_thinking, tools=self.has_tool_parser)
        if request.thinking_budget is not None:
            thinking: bool | None = True
        else:
            at_once = request.grammar is not None or request.label_scores is not None
            thinking = False if at_once else request.thinking
        return {"tools": request.tools, "thinking": thinking, "effort": request.reasoning_effort}

    def _template(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        thinking: bool | None,
        effort: str | None = None,
        *,
        reply: bool,
    ) -> str:
        options: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
        if effort is not None and self._knows_effort:
            options["reasoning_effort"] = effort
        if tools:
            options["tools"] = self._control.quote(tools)
        return self._render(self._turns.of(messages), reply=reply, **options)

    def _render(self, turns: list[dict[str, Any]], *, reply: bool, **options: Any) -> str:
        from jinja2 import TemplateError

        try:
            return self._tokenizer.apply_chat_template(
                self._control.quote(turns), add_generation_prompt=reply, tokenize=False, **options
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise RequestRefused(f"The model's chat template refuses these messages: {error}.") from error

    def _is_open(self, prompt: Sequence[int]) -> bool:
        """Whether `prompt` ends inside the reasoning."""
        if not self._tokenizer.has_thinking:
            return False
        tokens = list(prompt)
        return self._tokenizer.rfind_think_start(tokens) > self._tokenizer.rfind_think_end(tokens)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """(token, the place in `text` where it ends) of plain text. Raises RequestRefused as `ControlTokens.spans` does."""
        return self._control.spans(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens` without special ones; the marks of reasoning and tool calls stay, for `split_reply`."""
        if self._hidden is None:
            return self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return self._tokenizer.decode([t for t in tokens if t not in self._hidden], skip_special_tokens=False)

    def token_text(self, token: int) -> str:
        """The text of one token, special or not; half a character is U+FFFD."""
        return self._tokenizer.decode([token], skip_special_tokens=False)

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


def _context_size(config: dict[str, Any]) -> int:
    """The longest context that a model's config names; those of models with several modalities nest it."""
    for part in (config, config.get("text_config") or {}):
        for name in LIMITS:
            if part.get(name):
                return int(part[name])
    return ENDLESS


def _end_tokens(folder: Path, config: dict[str, Any]) -> Any:
    """Ids that end a reply. As in mlx_lm, generation_config.json comes first: it knows the token that ends a turn."""
    path = folder / "generation_config.json"
    try:
        found = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
    except ValueError:  # mlx_lm ignores a damaged one too
        found = None
    return found or config.get("eos_token_id") or (config.get("text_config") or {}).get("eos_token_id")


@lru_cache(maxsize=8)
def load_tokenizer(folder: Path, sha256: str) -> Tokenizer:
    """The tokenizer of `folder`, whose content has this hash; read once."""
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
