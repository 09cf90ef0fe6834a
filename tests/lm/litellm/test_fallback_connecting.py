"""Connecting to a chain: its order, what is refused at once, and engines that cannot be had."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.errors import EngineFailed, ModelError, ModelNotFound, SettingsError
from dspy_toolkit.lm import close_engines, connect, root_error
from dspy_toolkit.lm.litellm.fallback import backend_order
from dspy_toolkit.lm.litellm.provider import EngineBackend, serve
from dspy_toolkit.lm.protocol import TextEngine
from dspy_toolkit.settings import LMSettings, load_settings
from dspy_toolkit.testing import FakeEngine
from tests.lm.chains import Elsewhere, complete

pytestmark = pytest.mark.usefixtures("engines_of_its_own")


def test_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed in (True, False):
        monkeypatch.setattr("dspy_toolkit.lm.litellm.fallback.torch_installed", lambda installed=installed: installed)
        torch = ["torch"] * installed
        fallbacks = ("openai/a", "openai/b")
        assert backend_order(LMSettings(fallbacks=fallbacks)) == ("mlx", *torch, *fallbacks)
        assert backend_order(LMSettings(backend="torch", fallbacks=fallbacks)) == ("torch", *fallbacks)
        assert backend_order(LMSettings(backend="mlx", fallbacks=fallbacks)) == ("mlx",)
        assert backend_order(LMSettings()) == ("mlx", *torch)
        assert backend_order(LMSettings(fallbacks=fallbacks), vision=True) == ("vision", *fallbacks)
        assert backend_order(LMSettings(backend="torch", fallbacks=fallbacks), vision=True) == ("torch", *fallbacks)
        assert backend_order(LMSettings(backend="mlx", fallbacks=fallbacks), vision=True) == ("vision",)


@pytest.mark.parametrize("name", ["gpt-4o", "mlx/smollm2-135m", "torch/x"])
def test_a_fallback_that_is_no_litellm_model_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"lm.fallbacks.*{name}"):
        load_settings(lm={"fallbacks": [name]})


def test_a_provider_that_litellm_does_not_know_is_refused_at_once(model_home: Path) -> None:
    with pytest.raises(ModelNotFound, match="nobody/big"):
        connect(load_settings(home=model_home, lm={"fallbacks": ["nobody/big"], "model": "mlx/smollm2-135m"}))


def test_weights_that_mlx_cannot_load(
    broken_model: Path, model_home: Path, elsewhere: Elsewhere, caplog: pytest.LogCaptureFixture
) -> None:
    def say(**lm: Any) -> Any:
        settings = load_settings(home=model_home, lm={"model": f"mlx/{broken_model}", "lease": "share", **lm})
        try:
            return connect(settings).lm("hello", cache=False)
        finally:
            close_engines()

    assert say(fallbacks=["elsewhere/big"]) == ["from elsewhere"]
    assert "elsewhere/big takes over" in caplog.text
    for lm in ({}, {"backend": "mlx", "fallbacks": ["elsewhere/big"]}):
        with pytest.raises(Exception, match="cannot load") as caught:
            say(**lm)
        assert isinstance(root_error(caught.value), ModelError)
    assert len(elsewhere.calls) == 1


def test_a_model_too_large_for_mlx_moves_when_connecting(
    model_home: Path, elsewhere: Elsewhere, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dspy_toolkit.lm.litellm.fallback.torch_installed", lambda: False)
    close_engines()
    limits = {"memory_limit_gb": 0.1, "lease": "share"}
    with caplog.at_level(logging.WARNING):
        connection = connect(load_settings(home=model_home, lm={"fallbacks": ["elsewhere/big"], **limits}))
    assert "needs about" in caplog.text
    assert connection.lm("hello", cache=False) == ["from elsewhere"]
    assert connection.lm.history[0]["usage"]["prompt_tokens"] == 3
    close_engines()
    with pytest.raises(ModelError, match="needs about"):
        connect(load_settings(home=model_home, lm=limits))


def test_an_engine_whose_package_cannot_be_imported_is_a_model_error() -> None:
    def make() -> TextEngine:
        raise ImportError("libmlx.so: cannot open shared object file")

    backend = EngineBackend("mlx/x", make)
    with pytest.raises(ModelError, match="libmlx"):
        backend.engine()


def test_serving_an_engine_alone() -> None:
    engine = FakeEngine(lambda request: EngineFailed("broken"))
    serve(engine)
    with pytest.raises(Exception, match="broken") as caught:
        complete(engine.model)
    assert str(root_error(caught.value)) == "broken"
    engine.close()
