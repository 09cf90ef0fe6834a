"""OpenAI's embeddings, by OpenAI's own client."""

from __future__ import annotations

import math

import httpx
import numpy as np
import openai
import pytest

from dspy_toolkit.settings import Settings
from tests.serving.conftest import fake, running
from tests.serving.test_chat import client


def test_the_official_client_gets_vectors(promoted: Settings) -> None:
    settings, engine = fake(promoted, [])
    texts = ["the cat sleeps", "the cat sleeps well", "bills are due"]
    with running(settings) as server, client(server) as api:
        made = api.embeddings.create(model=engine.model, input=texts)  # the client asks for base64
        numbers = api.embeddings.create(model=engine.model, input=texts[0], encoding_format="float")
        with pytest.raises(openai.NotFoundError):
            api.embeddings.create(model="text-embedding-3-small", input="a")
        with pytest.raises(openai.UnprocessableEntityError):
            api.embeddings.create(model=engine.model, input=["a", ""])
        with pytest.raises(openai.UnprocessableEntityError, match="dimensions"):
            api.embeddings.create(model=engine.model, input="a", dimensions=8)
        many = httpx.post(f"{server.address}/v1/embeddings", json={"model": engine.model, "input": ["a"] * 257})
    assert many.status_code == 422
    one, two, three = (each.embedding for each in made.data)
    assert made.usage.prompt_tokens == 10
    assert made.model == engine.model
    assert math.isclose(math.hypot(*one), 1, rel_tol=1e-6)
    assert np.dot(one, two) > np.dot(one, three) + 0.3
    assert numbers.data[0].embedding == pytest.approx(one, abs=1e-6)
