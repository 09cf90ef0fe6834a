"""Control tokens in a prompt: those that the chat template writes count, those that a user's text spells do not.

A tokenizer takes `<|im_end|>` for the end of a turn wherever it stands, also in the middle of a row of data. Here, text
of users is quoted before the template sees it, and a quoted token is encoded as the plain characters that it is made
of. Prompts without one, nearly all, are encoded as the model's own tokenizer does.

Covered: the tokens that are special, and those that the chat template itself writes (`<think>`, `<tool_call>`), in
contents, tool calls and descriptions of tools. Not covered: marks that a model writes as ordinary text.
"""

from __future__ import annotations

import copy
import json
import re
import secrets
from functools import cached_property
from typing import Any

from dspy_toolkit.errors import RequestRefused


class ControlTokens:
    """The control tokens of one tokenizer. Safe from any thread."""

    def __init__(self, wrapper: Any) -> None:
        """Args: wrapper: mlx_lm's, around a tokenizer of transformers with its chat template."""
        self._tokenizer = tokenizer = wrapper._tokenizer
        marks = (wrapper.think_start, wrapper.think_end, wrapper.tool_call_start, wrapper.tool_call_end)
        # Without a text to look into, the template is a function of mlx_lm's, which may write any of them.
        written = str(tokenizer.chat_template or "")
        tokens = [
            token
            for token in tokenizer.added_tokens_decoder.values()
            # Runs of white space are tokens of some models, and control nothing.
            if token.content.strip()
            and (token.special or not written or token.content in written or token.content in marks)
        ]
        # Nobody can write these names, and no template or normalizer changes them: 64 random bits of this process.
        self._quoted, self._renamed = ({token.content: secrets.token_hex(8) for token in tokens} for _ in range(2))
        self._spelled = _any_of(self._quoted)
        self._quotes = {quote: content for content, quote in self._quoted.items()}
        self._quotation = _any_of(self._quotes)
        self._ids = frozenset(tokenizer.convert_tokens_to_ids(list(self._quoted)))

    def quote(self, value: Any) -> Any:
        """A JSON value whose texts can go into the template: no control token is left in them."""
        if isinstance(value, str):
            return self._spelled.sub(lambda found: self._quoted[found[0]], value)
        if isinstance(value, dict):
            return {self.quote(key): self.quote(inner) for key, inner in value.items()}
        return [self.quote(inner) for inner in value] if isinstance(value, list | tuple) else value

    def encode(self, text: str) -> list[int]:
        """The tokens of what the template made of quoted values.

        Raises:
            RequestRefused: a token was quoted, and this tokenizer cannot read it as plain text.
        """
        if not self._quotation.search(text):
            tokens = list(self._tokenizer.encode(text, add_special_tokens=False))
            # One more than are spelled: a normalizer made it of what only looks like one, say in fullwidth letters.
            if sum(token in self._ids for token in tokens) == len(self._spelled.findall(text)):
                return tokens
        named = self._spelled.sub(lambda found: self._renamed[found[0]], text)
        plain = self._quotation.sub(lambda found: self._quotes[found[0]], named)
        return list(self._reader.encode(plain, add_special_tokens=False))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """(token, the place in `text` where it ends) of text that is not the template's: nothing in it is a control token.

        Raises:
            RequestRefused: this tokenizer cannot read a control token as plain text, or does not say where tokens lie.
        """
        for reader in (lambda: self._tokenizer, lambda: self._reader):
            try:
                read = reader()(text, add_special_tokens=False, return_offsets_mapping=True)
            except NotImplementedError as error:
                raise RequestRefused(
                    "This model's tokenizer does not say where a token ends in the text, so labels cannot be scored."
                ) from error
            if self._ids.isdisjoint(read["input_ids"]):
                break
        return [
            (int(token), int(end)) for token, (_, end) in zip(read["input_ids"], read["offset_mapping"], strict=True)
        ]

    @cached_property
    def _reader(self) -> Any:
        """The same tokenizer, but that its control tokens have the secret names: every other text is plain to it."""
        from tokenizers import Tokenizer

        try:
            backend = self._tokenizer.backend_tokenizer
            reader = copy.copy(self._tokenizer)
            reader._tokenizer = made = Tokenizer.from_str(json.dumps(self._rename(json.loads(backend.to_str()))))
        except Exception as error:  # isolation boundary: tokenizers raises a bare Exception
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RequestRefused(f"{_CANNOT}: {reason}.") from error
        for content, name in self._renamed.items():
            if made.token_to_id(name) != backend.token_to_id(content):
                raise RequestRefused(f"{_CANNOT}: {content} cannot be told from its spelling.")
        return reader

    def _rename(self, data: dict[str, Any]) -> dict[str, Any]:
        """A tokenizer.json under the secret names."""
        names, model = self._renamed, data["model"]
        for token in data["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(piece, piece): index for piece, index in model["vocab"].items()}
        else:  # Unigram: pairs of a piece and its score
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        if "unk_token" in model:
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges", ()))
        if "merges" in model:
            model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & names.keys()]
        # It would look for the old names, and adds nothing where no special tokens are asked for.
        data["post_processor"] = None
        return data


_CANNOT = "The text spells a control token of this model, and its tokenizer cannot read one as plain text"


def _any_of(texts: Any) -> re.Pattern[str]:
    """Finds the longest of `texts` at each place; nothing where there are none."""
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or r"(?!)")
