"""Language models: the MLX engine, its LiteLLM provider, and the adapter between signatures and grammars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspy_toolkit.lm.connection import Connection, close_engines, connect
    from dspy_toolkit.lm.litellm.errors import root_error

__all__ = ["Connection", "close_engines", "connect", "root_error"]


def __getattr__(name: str) -> Any:
    # DSPy takes more than a second to import; hardware, blas and weights do not need it.
    if name == "root_error":
        from dspy_toolkit.lm.litellm.errors import root_error

        return root_error
    if name in __all__:
        from dspy_toolkit.lm import connection

        return getattr(connection, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
