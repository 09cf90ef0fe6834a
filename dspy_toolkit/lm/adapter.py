"""How a DSPy program speaks to the model.

To an MLX model: `ChatAdapter`'s format with the grammar of the reply beside it, under vLLM's name `guided_grammar`, and
without the reminder of the format at the end of each prompt, which the grammar makes superfluous (and which, standing
after the input, no prefix could share). To any other model: an ordinary `ChatAdapter`.
"""

from __future__ import annotations

import copy
from typing import Any

import dspy
from dspy.adapters.chat_adapter import ChatAdapter
from dspy.adapters.json_adapter import JSONAdapter

from dspy_toolkit.lm.grammar import signature_grammar
from dspy_toolkit.lm.meter import Meter, MeteredLM
from dspy_toolkit.lm.weights import PREFIX


class CountingChatAdapter(ChatAdapter):
    """`ChatAdapter` that lets the LM's meter know when a reply could not be parsed and is asked for again as JSON."""

    _meter: Meter | None = None

    def __call__(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: Any) -> Any:
        return super(CountingChatAdapter, self._bound(lm)).__call__(lm, lm_kwargs, signature, demos, inputs)

    async def acall(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: Any) -> Any:
        return await super(CountingChatAdapter, self._bound(lm)).acall(lm, lm_kwargs, signature, demos, inputs)

    def _bound(self, lm: Any) -> CountingChatAdapter:
        # The adapter serves many threads and many LMs; the fallback is made without being told whose reply failed.
        bound = copy.copy(self)
        bound._meter = lm.meter if isinstance(lm, MeteredLM) else None
        return bound

    def _make_json_adapter_fallback(self) -> JSONAdapter:
        if self._meter is not None:
            self._meter.retried()
        return super()._make_json_adapter_fallback()


class GrammarAdapter(ChatAdapter):
    """`ChatAdapter` for models that the MLX engine runs; for any other LM that a program brings, a `CountingChatAdapter`."""

    def __init__(self) -> None:
        # A reply under the grammar fails to parse only when max_tokens cut it; asking again would be cut again.
        super().__init__(use_json_adapter_fallback=False)
        self._other = CountingChatAdapter()

    def __call__(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: Any) -> Any:
        if not lm.model.startswith(PREFIX):
            return self._other(lm, lm_kwargs, signature, demos, inputs)
        return super().__call__(lm, _with_grammar(lm_kwargs, signature), signature, demos, inputs)

    async def acall(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: Any) -> Any:
        if not lm.model.startswith(PREFIX):
            return await self._other.acall(lm, lm_kwargs, signature, demos, inputs)
        return await super().acall(lm, _with_grammar(lm_kwargs, signature), signature, demos, inputs)

    def user_message_output_requirements(self, signature: type[dspy.Signature]) -> str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """No reminder where the grammar sees to the format."""
        return None if signature_grammar(signature) else super().user_message_output_requirements(signature)


# DSPy's streaming knows an adapter's format by the name of its class.
CountingChatAdapter.__name__ = GrammarAdapter.__name__ = ChatAdapter.__name__


def _with_grammar(lm_kwargs: dict[str, Any], signature: type[dspy.Signature]) -> dict[str, Any]:
    grammar = signature_grammar(signature)
    return {**lm_kwargs, "guided_grammar": grammar} if grammar else lm_kwargs
