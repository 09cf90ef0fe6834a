"""What the tests of this folder have in common: `asking`, `chains`, `tiny`, and models and engines to be damaged."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from chains import Chains, Elsewhere

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


@pytest.fixture
def broken_model(model_home: Path, tmp_path: Path) -> Path:
    """A model folder whose weights cannot be read."""
    folder = tmp_path / "broken model"
    shutil.copytree(model_home / "models" / "smollm2-135m", folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1_000_000)
    return folder


@pytest.fixture
def closing() -> Iterator[Callable[[Any], Any]]:
    """`closing(engine)` gives the engine, which is closed at the end of the test."""
    with ExitStack() as stack:

        def close_later(engine: Any) -> Any:
            stack.callback(engine.close)
            return engine

        yield close_later


@pytest.fixture
def engines_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that close all engines that they see: not the session's."""
    from dspy_toolkit.lm import connection, provider

    monkeypatch.setattr(connection, "_chains", {})
    monkeypatch.setattr(provider, "_chains", {})


@pytest.fixture
def chain(engines_of_its_own: None) -> Iterator[Chains]:
    """Makes and serves chains of fake engines."""
    from chains import Chains

    from dspy_toolkit.lm import close_engines

    yield Chains()
    close_engines()


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    """A provider, `elsewhere/…`, that LiteLLM knows."""
    from chains import Elsewhere, registered

    from dspy_toolkit.lm.provider import import_litellm

    import_litellm()
    provider = Elsewhere()
    with registered("elsewhere", provider.handler()):
        yield provider
