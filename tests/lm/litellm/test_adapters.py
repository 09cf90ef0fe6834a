"""The keyword `adapter` of an LM's call: it reaches the request, and makes another reply of the same prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspy_toolkit.errors import RequestRefused
from dspy_toolkit.lm.litellm.translation import translate
from dspy_toolkit.lm.litellm_backend import LiteLLMBackend
from dspy_toolkit.testing import fake_connection, fake_engine
from tests.lm.asking import HELLO

ONE, OTHER = "a" * 64, "b" * 64


@pytest.mark.usefixtures("engines_of_its_own")
def test_each_adapter_has_its_own_reply(tmp_path: Path) -> None:
    connection = fake_connection(lambda request: f"said by {(request.adapter or 'base')[:4]}", tmp_path)
    lm = connection.lm
    said = [lm("Hello", adapter=name) if name else lm("Hello") for name in (None, ONE, OTHER, ONE, None)]
    assert said == [[f"said by {name}"] for name in ("base", "aaaa", "bbbb", "aaaa", "base")]
    assert [request.adapter for request in fake_engine(connection).requests] == [None, ONE, OTHER], (
        "the rest was cached"
    )
    assert lm.copy(adapter=ONE)("Hello") == ["said by aaaa"]


def test_what_is_no_hash_is_refused() -> None:
    assert translate(HELLO, {"adapter": ONE}, None)[0].adapter == ONE
    assert translate(HELLO, {"extra_body": {"adapter": ONE[:8]}}, None)[0].adapter == ONE[:8]
    for name in ("../adapters", "AAAAAAAA", 7):
        with pytest.raises(RequestRefused, match="adapter"):
            translate(HELLO, {"adapter": name}, None)


def test_a_remote_model_in_its_place_has_no_adapters() -> None:
    backend = LiteLLMBackend("openai/gpt-4o")
    with pytest.raises(RequestRefused, match="openai/gpt-4o stands in for a model .* has no adapter aaaaaaaa"):
        backend.completion({"messages": HELLO, "optional_params": {"adapter": ONE}})
