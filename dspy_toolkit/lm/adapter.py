"""DSPy's adapters for the models of a run: how signatures become prompts, and replies become fields.

`adapter_for` chooses. For an MLX model: `ChatAdapter`'s format, with the grammar of the reply sent beside the prompt,
under vLLM's name `guided_grammar`. The reminder of the format at the end of each prompt is left out: the grammar makes
it superfluous, and as it comes after the input, no prefix could share it. For a remote model that takes a JSON schema,
by LiteLLM's list: DSPy's `JSONAdapter`, which sends the schema of the reply as `response_format`. For any other: an
ordinary `ChatAdapter`.
"""

from __future__ import annotations

import copy
from typing import Any

import dspy
from dspy.adapters.chat_adapter import ChatAdapter
from dspy.adapters.json_adapter import JSONAdapter

from dspy_toolkit.lm.grammar import signature_grammar
from dspy_toolkit.lm.meter import Meter, MeteredLM
from dspy_toolkit.lm.models.weights import PREFIX


class CountingChatAdapter(ChatAdapter):
    """`ChatAdapter` that counts replies that could not be parsed, and are asked for again as JSON, on the LM's meter."""

    _meter: Meter | None = None

    def __call__(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: Any) -> Any:
        return super(CountingChatAdapter, self._bound(lm)).__call__(lm, lm_kwargs, signature, demos, inputs)

    async def acall(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: Any) -> Any:
        return await super(CountingChatAdapter, self._bound(lm)).acall(lm, lm_kwargs, signature, demos, inputs)

    def _bound(self, lm: Any) -> CountingChatAdapter:
        # One adapter serves many threads and LMs, and DSPy makes the fallback without saying whose reply failed.
        bound = copy.copy(self)
        bound._meter = lm.meter if isinstance(lm, MeteredLM) else None
        return bound

    def _make_json_adapter_fallback(self) -> JSONAdapter:
        if self._meter is not None:
            self._meter.retried()
        return super()._make_json_adapter_fallback()


def adapter_for(lm: Any) -> dspy.Adapter:
    """The adapter of a connection whose task runs on `lm`; the models of the other roles are asked through it too."""
    return GrammarAdapter() if lm.model.startswith(PREFIX) else _remote_adapter(lm)


def _remote_adapter(lm: Any, *, native: bool = False) -> ChatAdapter:
    takes_schema = lm.supports_response_schema and "response_format" in lm.supported_params
    return (JSONAdapter if takes_schema else CountingChatAdapter)(use_native_function_calling=native)


class GrammarAdapter(ChatAdapter):
    """`ChatAdapter` for models that the MLX engine runs; another LM that a program brings gets its own adapter.

    Tools: DSPy describes them in the prompt, and the model calls them as text. With `use_native_function_calling`, a
    model with a tool parser is offered them in its own notation instead, and its reply has no grammar: it may call or
    answer.
    """

    _free: bool = False
    """Whether this call offers tools, so that no grammar binds its reply."""

    def __init__(self, *, use_native_function_calling: bool = False) -> None:
        # A reply under the grammar fails to parse only when max_tokens cut it; asking again would be cut again.
        super().__init__(use_json_adapter_fallback=False, use_native_function_calling=use_native_function_calling)

    def __call__(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: Any) -> Any:
        if not lm.model.startswith(PREFIX):
            return self._remote(lm)(lm, lm_kwargs, signature, demos, inputs)
        # A copy for each call: what `_call_preprocess` sets belongs to this call alone.
        return super(GrammarAdapter, copy.copy(self)).__call__(lm, dict(lm_kwargs), signature, demos, inputs)

    async def acall(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: Any) -> Any:
        if not lm.model.startswith(PREFIX):
            return await self._remote(lm).acall(lm, lm_kwargs, signature, demos, inputs)
        return await super(GrammarAdapter, copy.copy(self)).acall(lm, dict(lm_kwargs), signature, demos, inputs)

    def _remote(self, lm: Any) -> ChatAdapter:
        return _remote_adapter(lm, native=self.use_native_function_calling)

    def _call_preprocess(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, inputs: Any) -> Any:
        # DSPy takes out the fields that the model fills in natively; the grammar is for those that are left.
        asked = super()._call_preprocess(lm, lm_kwargs, signature, inputs)
        self._free = bool(lm_kwargs.get("tools"))
        if self._free:
            lm_kwargs["_skip_mcp_handler"] = True  # LiteLLM imports its proxy for every call with tools otherwise
        elif grammar := signature_grammar(asked):
            lm_kwargs["guided_grammar"] = grammar
        return asked

    def user_message_output_requirements(self, signature: type[dspy.Signature]) -> str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """No reminder where the grammar ensures the format."""
        if not self._free and signature_grammar(signature):
            return None
        return super().user_message_output_requirements(signature)


# DSPy's streaming knows an adapter's format by the name of its class (see "Patches" in docs/choices.md).
CountingChatAdapter.__name__ = GrammarAdapter.__name__ = ChatAdapter.__name__
