"""From settings to a language model that DSPy programs can use.

`connect` gives the LM and the adapter that goes with it; `with connection.context():` puts both in force in the current
thread. Engines are shared: connecting twice to one model uses one engine,
with the settings of the first. Retries are the orchestrator's affair, so DSPy's
and LiteLLM's own are off.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  (its exit hook must be registered before ours)
import os
import sqlite3
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dspy

from dspy_toolkit.errors import StoreError
from dspy_toolkit.lm.adapter import CountingChatAdapter, GrammarAdapter
from dspy_toolkit.lm.meter import MeteredLM
from dspy_toolkit.lm.provider import import_litellm, serve, withdraw
from dspy_toolkit.lm.weights import PREFIX, find_weights
from dspy_toolkit.settings import Settings

if TYPE_CHECKING:
    from dspy_toolkit.lm.exchange import TextEngine

OPEN_FILES = 4096

_engines: dict[str, TextEngine] = {}
_lock = threading.RLock()
_closes_at_exit = False


@dataclass(frozen=True)
class Connection:
    """The language models of one run."""

    lm: MeteredLM
    """Runs the program."""
    adapter: dspy.Adapter
    reflection_lm: MeteredLM
    """Writes instructions; `lm` itself unless settings name another."""
    reflection_adapter: dspy.Adapter

    @property
    def model(self) -> str:
        """The task model's name, with its weights' hash for an MLX model."""
        return self.lm.model

    def context(self, lm: MeteredLM | None = None) -> AbstractContextManager[Any]:
        """DSPy's settings for this thread; `lm` in place of the connection's, say a metered copy."""
        return dspy.context(lm=lm or self.lm, adapter=self.adapter)


def connect(settings: Settings) -> Connection:
    """Connect to the models that the settings name. An MLX model is loaded by its first call.

    Raises:
        ModelNotFound, ModelTooLarge, ModelError: with the next command.
    """
    use_cache(settings)
    lm, adapter = _connect_one(settings.lm.model, settings)
    if settings.lm.reflection_model in (None, settings.lm.model):
        return Connection(lm, adapter, lm, adapter)
    return Connection(lm, adapter, *_connect_one(settings.lm.reflection_model or "", settings))


def model_names(settings: Settings) -> tuple[str, str]:
    """(task model, reflection model) as `connect` would name them: with weights' hashes, loading nothing."""

    def name(model: str) -> str:
        if model in _engines:  # it answers already, under its full name
            return model
        return find_weights(model, settings.path()).name if model.startswith(PREFIX) else model

    return name(settings.lm.model), name(settings.lm.reflection_model or settings.lm.model)


def use_cache(settings: Settings) -> None:
    """Keep DSPy's response cache in `home/cache`, refusing pickles of anything but plain replies.

    Raises:
        StoreError: the folder cannot be written.
    """
    folder = str(settings.path("cache"))
    with _lock:
        if getattr(dspy.cache, "_dspy_toolkit_folder", None) == folder:
            return
        allow_files()
        try:
            os.makedirs(folder, exist_ok=True)
            if (before := getattr(dspy.cache, "disk_cache", None)) is not None and hasattr(before, "close"):
                before.close()
            dspy.configure_cache(disk_cache_dir=folder, restrict_pickle=True)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"The cache of replies cannot be kept in {folder}: {error}. "
                "Free some space or make it writable, or set DSPY_TOOLKIT_HOME to a folder that is."
            ) from error
        setattr(dspy.cache, "_dspy_toolkit_folder", folder)  # noqa: B010  (not an attribute that its class knows)


def allow_files() -> None:
    """Raise this process's soft limit of open files towards OPEN_FILES.

    DSPy's cache keeps 16 databases open in every thread: 16 threads hold some 350 files, and macOS allows 256 by default.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def serve_engine(engine: TextEngine) -> None:
    """Let `engine` answer for its model's name until `close_engines` or the end of the process."""
    global _closes_at_exit
    with _lock:
        if not _closes_at_exit:
            # Before threads are joined, not atexit: pool threads that wait for replies would keep the process alive until
            # all replies had come. And MLX's streams must be destroyed by their own thread, before the interpreter goes.
            threading._register_atexit(close_engines)  # pyright: ignore[reportAttributeAccessIssue]
            _closes_at_exit = True
        _engines[engine.model] = engine
        serve(engine)


def close_engines() -> None:
    """Stop every engine of this process and release the accelerator. What waits for a reply gets EngineFailed."""
    with _lock:
        engines = dict(_engines)
        _engines.clear()
    for name, engine in engines.items():
        withdraw(name)
        engine.close()


def mlx_lm(model: str, settings: Settings) -> tuple[MeteredLM, dspy.Adapter]:
    """The LM and adapter for an engine that answers for `model`."""
    return MeteredLM(model, **_options(settings)), GrammarAdapter()


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "engine": "litellm",
        "num_retries": 0,
        "temperature": settings.lm.temperature,
        "max_tokens": settings.lm.max_tokens,
    }


def _connect_one(model: str, settings: Settings) -> tuple[MeteredLM, dspy.Adapter]:
    import_litellm()
    if model.startswith(PREFIX):
        return mlx_lm(_serve(model, settings), settings)
    options = _options(settings)
    if settings.lm.api_key is not None:
        options["api_key"] = settings.lm.api_key.get_secret_value()
    if settings.lm.api_base is not None:
        options["api_base"] = settings.lm.api_base
    return MeteredLM(model, **options), CountingChatAdapter()


def _serve(model: str, settings: Settings) -> str:
    """Serve the engine of `model`, the one that there is or a new one; the name that it answers for."""
    from dspy_toolkit.lm.engine import Engine

    with _lock:
        served = _engines.get(model)
        if served is not None and not served.closed:
            return served.model
    weights = find_weights(model, settings.path())
    with _lock:
        engine = _engines.get(weights.name)
        if engine is None or engine.closed:
            engine = Engine(weights, settings.lm)
        serve_engine(engine)
    return engine.model
