"""What the tests of this folder have in common: `asking`, `chains`, `tiny`, and models and engines to be damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.engines import own_engines

if TYPE_CHECKING:
    from tests.lm.chains import Chains, Elsewhere


@pytest.fixture(scope="session")
def tiny(model_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny(kind, template=…, says=…)`: the folder of a tiny model, written once for each choice."""
    from tests.lm.tiny import write_tiny

    folder = tmp_path_factory.mktemp("tiny")
    written: dict[str, Path] = {}

    def write(kind: Any = "llama", **options: Any) -> Path:
        key = repr((kind, sorted(options.items())))
        if key not in written:
            source = model_home / "models" / "smollm2-135m"
            written[key] = write_tiny(folder / f"{kind}-{len(written)}", kind, tokenizer=source, **options)
        return written[key]

    return write


@pytest.fixture(scope="session")
def architecture(model_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`architecture(family, …)`: the folder of a tiny model of that architecture, written once for each choice."""
    from tests.lm.architectures import write_architecture

    folder = tmp_path_factory.mktemp("architectures")
    written: dict[str, Path] = {}

    def write(family: str, **options: Any) -> Path:
        key = repr((family, sorted(options.items())))
        if key not in written:
            source = model_home / "models" / "smollm2-135m"
            written[key] = write_architecture(folder / f"{family}-{len(written)}", family, tokenizer=source, **options)
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
def engines_of_its_own() -> Iterator[None]:
    """For tests that close all engines that they see: not the session's."""
    with own_engines():
        yield


@pytest.fixture
def chain(engines_of_its_own: None) -> Chains:
    """Makes and serves chains of fake engines."""
    from tests.lm.chains import Chains

    return Chains()


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    """A provider, `elsewhere/…`, that LiteLLM knows."""
    from dspy_toolkit.lm.litellm.provider import import_litellm
    from tests.lm.chains import Elsewhere, registered

    import_litellm()
    provider = Elsewhere()
    with registered("elsewhere", provider.handler()):
        yield provider
