"""DSPy's adapters for the models of a run: how signatures become prompts, and replies become fields.

`adapter_for` chooses. For an MLX model: the predictor's own format (`dspy_toolkit.lm.formats`), or `chat`, with the grammar of the
reply sent beside the prompt, under vLLM's name `guided_grammar`. For a remote model: the predictor's own format as DSPy ships
it; where it has none, DSPy's `JSONAdapter` for a model that takes a JSON schema by LiteLLM's list, which sends the schema of the
reply as `response_format`, and an ordinary `ChatAdapter` for any other.

Where a predictor has its demonstrations chosen for each input (`dspy_toolkit.lm.neighbors`), they are put behind its own ones here. A predictor
that is an ensemble (`dspy_toolkit.lm.ensembles`) is asked here once for each member.
"""

from __future__ import annotations

import asyncio
import copy
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import dspy
from dspy.adapters.chat_adapter import ChatAdapter
from dspy.adapters.json_adapter import JSONAdapter
from dspy.adapters.xml_adapter import XMLAdapter

from dspy_toolkit.errors import ModelError
from dspy_toolkit.lm.ensembles import ensemble_of, joined
from dspy_toolkit.lm.formats.base import Format
from dspy_toolkit.lm.formats.chat import ChatFormat
from dspy_toolkit.lm.formats.json_object import JSONFormat
from dspy_toolkit.lm.formats.names import CHAT, FormatName, format_of
from dspy_toolkit.lm.formats.plain import PlainFormat
from dspy_toolkit.lm.formats.reading import ShownAsChat
from dspy_toolkit.lm.formats.xml import XMLFormat
from dspy_toolkit.lm.label_rules import label_rules_of
from dspy_toolkit.lm.levers import adapter_of
from dspy_toolkit.lm.meter import Meter, MeteredLM
from dspy_toolkit.lm.models.weights import PREFIX
from dspy_toolkit.lm.neighbors import nearest, neighbors_of

FORMATS: dict[FormatName, type[Format]] = {made.name: made for made in (ChatFormat, PlainFormat, JSONFormat, XMLFormat)}


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


if TYPE_CHECKING:
    Base = ChatAdapter
else:
    Base = object  # as in `formats.base`: it would hide the formatting of the adapter that stands behind it


class _ByFormat(Base):
    """Beside an adapter: lets a predictor with a format of its own have it, and its demonstrations chosen for the input."""

    objects = ""
    """The root of the store that has the rows of such demonstrations."""

    def __call__(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: Any) -> Any:
        caller = _caller()
        if (ensemble := ensemble_of(caller)) is None:
            return self._ask(caller, lm, lm_kwargs, signature, demos, inputs)
        with dspy.context(send_stream=None):
            answers = [
                self._ask(each, lm, lm_kwargs, signature.with_instructions(each.instructions), each.demos, inputs)
                for each in ensemble.members
            ]
        return [joined(ensemble.rule, signature, given) for given in zip(*answers, strict=False)]

    async def acall(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: Any) -> Any:
        caller = _caller()
        if (ensemble := ensemble_of(caller)) is None:
            return await self._aask(caller, lm, lm_kwargs, signature, demos, inputs)
        with dspy.context(send_stream=None):
            asked = (
                self._aask(each, lm, lm_kwargs, signature.with_instructions(each.instructions), each.demos, inputs)
                for each in ensemble.members
            )
            answers = await asyncio.gather(*asked)
        return [joined(ensemble.rule, signature, given) for given in zip(*answers, strict=False)]

    def _ask(self, prompt: Any, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: Any) -> Any:
        """Ask the model once. Args: prompt: what has the levers, a predictor or a member of an ensemble; None: nobody."""
        chosen, shown = self._chosen(prompt, lm, signature)
        asked = _with_adapter(prompt, lm, lm_kwargs)
        demos = self._shown(prompt, signature, demos, inputs)
        if chosen is None:
            return super().__call__(lm, asked, signature, demos, inputs)
        with shown:
            return chosen(lm, asked, signature, demos, inputs)

    async def _aask(
        self, prompt: Any, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: Any
    ) -> Any:
        """The same on an event loop."""
        chosen, shown = self._chosen(prompt, lm, signature)
        asked = _with_adapter(prompt, lm, lm_kwargs)
        if neighbors_of(prompt) is not None:  # the first call makes the vectors, which must not stop an event loop
            demos = await asyncio.to_thread(self._shown, prompt, signature, demos, inputs)
        if chosen is None:
            return await super().acall(lm, asked, signature, list(demos), inputs)
        with shown:
            return await chosen.acall(lm, asked, signature, list(demos), inputs)

    def _shown(self, prompt: Any, signature: Any, demos: Any, inputs: Any) -> list[Any]:
        """The demonstrations of this call."""
        asked = neighbors_of(prompt)
        return [*demos, *(() if asked is None else nearest(asked, self.objects, signature, inputs))]

    def _chosen(self, prompt: Any, lm: Any, signature: Any) -> tuple[ChatAdapter | None, AbstractContextManager[Any]]:
        """The adapter for this call, None for this one; and in what it runs, so that stream listeners understand it."""
        asked = format_of(prompt)
        local = lm.model.startswith(PREFIX)
        if asked is None and not local and not isinstance(self, GrammarAdapter):
            return None, nullcontext()
        native = self.use_native_function_calling
        if local:
            rules = label_rules_of(prompt)
            chosen: ChatAdapter = FORMATS[asked or CHAT](use_native_function_calling=native, rules=rules)
        else:
            chosen = _remote_adapter(lm, asked, native=native)
        stream = dspy.settings.send_stream
        if stream is None or isinstance(self, JSONAdapter) or not isinstance(chosen, Format):
            return chosen, nullcontext()
        reader = chosen.reader(signature)
        return chosen, nullcontext() if reader is None else dspy.context(send_stream=ShownAsChat(stream, reader))


class RemoteChatAdapter(_ByFormat, CountingChatAdapter):
    """For remote models that take no schema."""


class RemoteJSONAdapter(_ByFormat, JSONAdapter):
    """For remote models that take one."""


class GrammarAdapter(_ByFormat, ChatFormat):
    """For models that the MLX engine runs; another LM that a program brings gets its own adapter.

    What it formats outside a call is in `chat`; `format_adapter` gives the adapter of one predictor.
    """


def adapter_for(lm: Any, objects: str = "") -> dspy.Adapter:
    """The adapter of a connection whose task runs on `lm`; the models of the other roles are asked through it too.

    Args:
        objects: the root of the store, for programs whose demonstrations are chosen among rows of it.
    """
    if lm.model.startswith(PREFIX):
        made = GrammarAdapter()
    else:
        made = (RemoteJSONAdapter if _takes_schema(lm) else RemoteChatAdapter)(use_native_function_calling=False)
    made.objects = objects
    return made


def format_adapter(predictor: dspy.Predict) -> Format:
    """What writes the messages of one predictor for an MLX model, and reads the replies."""
    return FORMATS[format_of(predictor) or CHAT]()


def _takes_schema(lm: Any) -> bool:
    return lm.supports_response_schema and "response_format" in lm.supported_params


def _remote_adapter(lm: Any, asked: FormatName | None, *, native: bool) -> ChatAdapter:
    if asked == "plain":
        return PlainFormat(use_native_function_calling=native, guided=False)
    if asked == "xml":
        return XMLAdapter(use_native_function_calling=native)
    takes_json = asked == "json" or (asked is None and _takes_schema(lm))
    return (JSONAdapter if takes_json else CountingChatAdapter)(use_native_function_calling=native)


def _with_adapter(prompt: Any, lm: Any, lm_kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's own copy of its options, with the adapter that the predictor, or the member of an ensemble, asks for."""
    adapter = adapter_of(prompt)
    if adapter is None:
        return dict(lm_kwargs)
    if not lm.model.startswith(PREFIX):
        raise ModelError(
            f"The program has the adapter {adapter[:8]}, which runs on the MLX model that it was trained on, and {lm.model} is "
            "asked. Set lm.model to that MLX model, or optimize the program for this one."
        )
    return {**lm_kwargs, "adapter": adapter}


def _caller() -> dspy.Predict | None:
    """The predictor that is being run; None where an adapter is called by itself."""
    modules = dspy.settings.caller_modules
    return modules[-1] if modules and isinstance(modules[-1], dspy.Predict) else None


# DSPy's streaming knows an adapter's format by the name of its class (see "Patches" in docs/choices.md).
for made in (CountingChatAdapter, RemoteChatAdapter, GrammarAdapter):
    made.__name__ = ChatAdapter.__name__
RemoteJSONAdapter.__name__ = JSONAdapter.__name__
