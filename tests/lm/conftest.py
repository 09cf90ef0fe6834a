"""What the tests of this folder have in common: `asking`, `tiny`, and the fixture that writes tiny models."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny(model_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny(kind, template=…, says=…)`: the folder of a tiny model, written once for each choice."""
    from tiny import write_tiny

    folder = tmp_path_factory.mktemp("tiny")
    written: dict[str, Path] = {}

    def write(kind: Any = "llama", **options: Any) -> Path:
        key = repr((kind, sorted(options.items())))
        if key not in written:
            source = model_home / "models" / "smollm2-135m"
            written[key] = write_tiny(folder / f"{kind}-{len(written)}", kind, tokenizer=source, **options)
        return written[key]

    return write
