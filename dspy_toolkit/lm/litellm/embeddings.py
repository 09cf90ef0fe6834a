"""LiteLLM's call for vectors of texts, and its response: `litellm.embedding("mlx/…", input=[…])`, `dspy.Embedder("mlx/…")`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import RequestRefused
from dspy_toolkit.lm.litellm.translation import DEFAULT_TIMEOUT, IGNORED, PROVIDER
from dspy_toolkit.lm.protocol import Embeddings

if TYPE_CHECKING:
    from litellm.types.utils import EmbeddingResponse


def take_texts(given: Any, optional: dict[str, Any], timeout: Any) -> tuple[list[str], float | None]:
    """(texts, seconds they may take or None) of a call.

    Raises:
        RequestRefused: tokens in place of texts, or a field that is not understood.
    """
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise RequestRefused(f"input is {str(given)[:200]}; give a text, or a list of texts.")
    optional = {name: value for name, value in optional.items() if value is not None and name not in IGNORED}
    if optional.get("encoding_format") == "float":
        del optional["encoding_format"]
    if optional:
        raise RequestRefused(f"The mlx provider embeds without {', '.join(sorted(optional))}. Leave it out.")
    seconds = timeout if isinstance(timeout, int | float) and timeout > 0 and timeout != DEFAULT_TIMEOUT else None
    return list(texts), seconds


def fill_embeddings(response: EmbeddingResponse, model: str, made: Embeddings) -> EmbeddingResponse:
    """Write vectors and usage into LiteLLM's `response`."""
    from litellm.types.utils import Usage

    response.model = f"{PROVIDER}/{model.removeprefix(PROVIDER + '/')}"
    response.data = [
        {"object": "embedding", "index": index, "embedding": list(vector)} for index, vector in enumerate(made.vectors)
    ]
    response.usage = Usage(prompt_tokens=made.prompt_tokens, completion_tokens=0, total_tokens=made.prompt_tokens)
    return response
