"""A model that LiteLLM reaches, as the LM of a role: its options, its address and its key.

A default that the model does not allow gives way to what it allows; what somebody wrote down does not, and is refused.

With each request goes the W3C context of the span that the call belongs to, where there is one (`spans.sending`). It is no part of
what the cache of replies knows a request by.
"""

from __future__ import annotations

from typing import Any

import dspy

from dspy_toolkit.errors import ModelNotFound, SettingsError
from dspy_toolkit.lm.litellm.provider import import_litellm
from dspy_toolkit.lm.meter import MeteredLM
from dspy_toolkit.lm.roles import RoleModel
from dspy_toolkit.lm.spans import traceparent
from dspy_toolkit.printable import hide, hide_environment

ADDRESSED = ("azure", "azure_ai", "databricks", "hosted_vllm", "litellm_proxy", "watsonx")
"""Providers without an address of their own: the key in their environment variable is that of the address too."""
NO_KEY = "none"
REASONING_TOKENS = 16_000
"""The least that DSPy lets a reasoning model of OpenAI's have; the reasoning counts."""


class _InContext(dspy.LM):
    """Puts W3C's header into a call's request."""

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        return super().__call__(prompt, messages=messages, **self._headed(kwargs))

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        return await super().acall(prompt, messages=messages, **self._headed(kwargs))

    def _headed(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if (context := traceparent()) is None:
            return kwargs
        headers = kwargs.get("headers") or self.kwargs.get("headers") or {}
        return {**kwargs, "headers": {**headers, "traceparent": context}}


class RemoteLM(MeteredLM, _InContext):
    """A `MeteredLM` of a model elsewhere.

    The order of its bases is what it is for: a call's span is begun by the callbacks of `MeteredLM`, and `_InContext`, which comes
    after it, is called under that span.
    """


def remote_lm(role: RoleModel) -> RemoteLM:
    """The LM of a role whose model is LiteLLM's.

    Raises:
        ModelNotFound: LiteLLM knows no provider of that name.
        SettingsError: the temperature or the length that was set is none that the model takes.
    """
    from dspy.utils.exceptions import LMConfigurationError

    check_provider(role.model, role.role)
    hide_environment()
    limit = None if role.api_base else _most_tokens(role.model)
    tokens = role.max_tokens if limit is None or "max_tokens" in role.stated else min(role.max_tokens, limit)
    common = {"engine": "litellm", "num_retries": 0, "timeout": role.timeout, **_access(role)}
    try:
        lm = RemoteLM(role.model, temperature=role.temperature, max_tokens=tokens, **common)
    except LMConfigurationError as error:  # a reasoning model of OpenAI's
        if stated := sorted(role.stated & {"temperature", "max_tokens"}):
            raise SettingsError(
                f"[{role.role}] {' and '.join(stated)}: {role.model} reasons, and takes a temperature of 1 and max_tokens "
                f"of 16,000 or more only. Correct [{role.role}], or leave them out."
            ) from error
        lm = RemoteLM(role.model, temperature=None, max_tokens=REASONING_TOKENS, **common)
    lm.where = f"[{role.role}]"
    return lm


def check_provider(model: str, section: str) -> None:
    """Raise ModelNotFound when LiteLLM knows no provider of the name that `model` begins with."""
    from litellm import exceptions

    try:
        import_litellm().get_llm_provider(model)
    except exceptions.BadRequestError:
        raise ModelNotFound(
            f"[{section}] names {model!r}, which LiteLLM does not know. Write provider/model, such as openai/gpt-4o."
        ) from None


def _most_tokens(model: str) -> int | None:
    """The longest reply that a provider's own model can give, where LiteLLM's list has it."""
    known = import_litellm().model_cost
    about: dict[str, Any] = known.get(model) or known.get(model.partition("/")[2]) or {}
    most = about.get("max_output_tokens")
    return most if isinstance(most, int) else None


def _access(role: RoleModel) -> dict[str, Any]:
    access: dict[str, Any] = {}
    if role.api_base is not None:
        access["api_base"] = role.api_base
    if role.api_key is not None:
        access["api_key"] = role.api_key.get_secret_value()
        hide(access["api_key"])
    elif role.api_base is not None and role.model.partition("/")[0] not in ADDRESSED:
        # Else LiteLLM would send the key in the provider's variable to this other address.
        access["api_key"] = NO_KEY
    return access
