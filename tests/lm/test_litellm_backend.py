"""A model that LiteLLM reaches, as the last of a chain: what it is asked, and what becomes of its errors."""

from __future__ import annotations

from typing import Any

import litellm
import pytest

from dspy_toolkit.errors import (
    DeadlineExceeded,
    EngineBusy,
    EngineFailed,
    ModelError,
    RequestRefused,
    ToolkitError,
)
from dspy_toolkit.lm import root_error
from dspy_toolkit.lm.litellm_backend import LiteLLMBackend
from tests.lm.asking import HELLO
from tests.lm.chains import Chains, Elsewhere

pytestmark = pytest.mark.usefixtures("engines_of_its_own")


def test_what_a_listed_model_is_asked(chain: Chains, elsewhere: Elsewhere) -> None:
    asked = chain(ModelError("gone"), listed=("elsewhere/big",))
    call: dict[str, Any] = {"model": asked.model, "messages": HELLO, "max_tokens": 9, "temperature": 0.5, "seed": 3}
    litellm.completion(**call, extra_body={"guided_grammar": "start: /.*/"})
    given = elsewhere.calls[0]
    assert given["messages"] == HELLO
    assert "guided_grammar" not in str(given["optional_params"])
    assert given["optional_params"]["max_tokens"] == 9
    with pytest.raises(Exception, match="does not understand magic") as caught:
        litellm.completion(**call, magic=1)
    assert isinstance(root_error(caught.value), RequestRefused)


def test_a_listed_model_scores_no_labels(chain: Chains, elsewhere: Elsewhere) -> None:
    asked = chain(ModelError("gone"), listed=("elsewhere/big",))
    with pytest.raises(Exception, match="scores of labels, which elsewhere/big .* cannot give") as caught:
        litellm.completion(model=asked.model, messages=HELLO, label_scores={"labels": ["a", "b"]})
    assert isinstance(root_error(caught.value), RequestRefused)
    assert elsewhere.calls == []


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (litellm.AuthenticationError("no key", "elsewhere", "big"), ModelError),
        (litellm.NotFoundError("no model", "big", "elsewhere"), ModelError),
        (litellm.BadRequestError("bad", "big", "elsewhere"), RequestRefused),
        (litellm.RateLimitError("slow down", "elsewhere", "big"), EngineBusy),
        (litellm.Timeout("late", "big", "elsewhere"), DeadlineExceeded),
        (litellm.ServiceUnavailableError("away", "elsewhere", "big"), EngineBusy),
        (litellm.InternalServerError("broken", "elsewhere", "big"), EngineFailed),
    ],
)
def test_errors_of_a_listed_model(elsewhere: Elsewhere, raised: Exception, told: type[ToolkitError]) -> None:
    elsewhere.error = raised
    backend = LiteLLMBackend("elsewhere/big")
    call: dict[str, Any] = {"messages": HELLO}
    with pytest.raises(told, match="elsewhere/big"):
        backend.completion(call)
    with pytest.raises(told, match="elsewhere/big"):
        list(backend.streaming(call))
