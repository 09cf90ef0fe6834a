"""What the library replaces in other packages, or uses of their private parts: unchanged since it was last looked at.

The table under "Patches" in docs/choices.md says where and why. When a test fails here, read what has changed, look at
our code that the table names, and write the new digest here and the new version there.
"""

from __future__ import annotations

import ast
import hashlib
import re
from importlib.metadata import distribution, version
from pathlib import Path

import pytest

TABLE = (Path(__file__).parents[1] / "docs" / "choices.md").read_text().partition("## Patches")[2].partition("\n## ")[0]

LOOKED_AT = {
    ("dspy", "dspy/streaming/streaming_listener.py", "StreamListener.receive"): "e5f67b8463de",
    ("dspy", "dspy/adapters/chat_adapter.py", "ChatAdapter"): "2e5bc3ee87f6",
    ("dspy", "dspy/adapters/base.py", "Adapter._call_preprocess"): "09916ffb46e6",
    ("dspy", "dspy/clients/cache.py", "Cache"): "06de7f75c2dc",
    ("dspy", "dspy/teleprompt/bootstrap.py", "BootstrapFewShot._prepare_student_and_teacher"): "d34d234a662e",
    ("mlx-lm", "mlx_lm/models/base.py", "scaled_dot_product_attention"): "a13838be6e6c",
    ("mlx-lm", "mlx_lm/models/activations.py", "swiglu"): "043c2aa5eee9",
    ("mlx-lm", "mlx_lm/models/llama.py", "Attention.__call__"): "25e7bacacf1c",
    ("mlx-lm", "mlx_lm/models/llama.py", "MLP.__call__"): "6ea915ad0f8c",
    ("mlx-lm", "mlx_lm/models/gemma2.py", "Attention"): "69bd8895431a",
    ("mlx-lm", "mlx_lm/models/cache.py", "BatchRotatingKVCache"): "dd0bbc26490a",
    ("mlx-lm", "mlx_lm/models/cache.py", "BatchKVCache"): "89f61ac6e0ed",
    ("mlflow", "mlflow/store/model_registry/dbmodels/models.py", "SqlModelVersion"): "174ad88f3c0e",
    ("mlflow", "mlflow/store/model_registry/dbmodels/models.py", "SqlRegisteredModelAlias"): "4de4001ba98d",
    ("mlflow", "mlflow/store/model_registry/dbmodels/models.py", "SqlModelVersionTag"): "9ffbe7497216",
    ("tqdm", "tqdm/std.py", "tqdm.status_printer"): "e972f6d2a485",
    ("tqdm", "tqdm/utils.py", "DisableOnWriteError"): "201fff23ce21",
    ("tqdm", "tqdm/_monitor.py", "TMonitor"): "cbc95f850129",
}
"""(package, file, definition) → the beginning of the sha256 of its source."""


def source_of(package: str, file: str, name: str) -> str:
    """The source of a class or function in an installed package, which is not imported for it."""
    text = Path(str(distribution(package).locate_file(file))).read_text()
    found: list[ast.stmt] = ast.parse(text).body
    node: ast.AST | None = None
    for part in name.split("."):
        node = next(each for each in found if getattr(each, "name", None) == part)
        found = getattr(node, "body", [])
    assert node is not None
    return ast.get_source_segment(text, node) or ""


@pytest.mark.parametrize(("package", "file", "name"), LOOKED_AT)
def test_what_is_patched_is_what_it_was(package: str, file: str, name: str) -> None:
    seen = hashlib.sha256(source_of(package, file, name).encode()).hexdigest()[:12]
    assert seen == LOOKED_AT[package, file, name], f"{name} of {package} {version(package)} has changed: {__doc__}"


def test_the_table_names_the_versions_that_are_installed() -> None:
    checked = set(re.findall(r"\| ([a-z-]+) ([0-9][0-9.]*) \|\n", TABLE))
    assert checked == {(package, version(package)) for package, _, _ in LOOKED_AT}
