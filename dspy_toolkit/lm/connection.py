"""From settings to a language model that DSPy programs can use.

`connect` gives the LM and the adapter that goes with it; `with connection.context():` puts both in force in the current
thread. Engines are shared: connecting twice to one model uses one engine,
with the settings of the first. Retries are the orchestrator's affair, so DSPy's
and LiteLLM's own are off.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  (its exit hook must be registered before ours)
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dspy

from dspy_toolkit.lm.adapter import CountingChatAdapter, GrammarAdapter
from dspy_toolkit.lm.litellm.fallback import Backend, Chain, backend_order
from dspy_toolkit.lm.litellm.litellm_backend import LiteLLMBackend
from dspy_toolkit.lm.litellm.provider import EngineBackend, import_litellm, serve, withdraw
from dspy_toolkit.lm.meter import MeteredLM
from dspy_toolkit.lm.models.weights import PREFIX, Weights, find_weights
from dspy_toolkit.lm.reply_cache import use_cache
from dspy_toolkit.lm.torch.weights import calm_threads
from dspy_toolkit.settings import Settings, load_settings

if TYPE_CHECKING:
    from dspy_toolkit.lm.protocol import TextEngine

_chains: dict[str, Chain] = {}
_beside: dict[str, tuple[MeteredLM, dspy.Adapter]] = {}
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


def connect_beside(model: str, lm: Any) -> tuple[MeteredLM, dspy.Adapter]:
    """Connect to one more model in the midst of a run, such as a judge's: its LM, and the adapter that goes with it.

    The settings are those of `dspy-toolkit.toml` and the environment, read when a model is asked for the first time. A key
    or an address that they hold goes to a model of the same provider as theirs alone. The cache of replies stays where the
    run keeps it.

    Args:
        model: `mlx/…` or a LiteLLM model.
        lm: the LM of the run; when it has a meter, the new one is charged to it.

    Raises:
        SettingsError, ModelNotFound, ModelTooLarge, ModelError: with the next command.
    """
    with _lock:
        found = _beside.get(model)
        if found is None or not _answers(found[0].model):
            found = _beside[model] = _connect_one(model, _settings_for(model))
    if not isinstance(lm, MeteredLM):
        return found
    charged = found[0].copy()
    charged.meter = lm.meter
    return charged, found[1]


def _answers(model: str) -> bool:
    return not model.startswith(PREFIX) or (model in _chains and not _chains[model].current.closed)


def _settings_for(model: str) -> Settings:
    settings = load_settings()
    changes: dict[str, Any] = {"model": model}
    if model.partition("/")[0] != settings.lm.model.partition("/")[0]:
        changes |= {"api_key": None, "api_base": None}
    return settings.model_copy(update={"lm": settings.lm.model_copy(update=changes)})


def full_name(model: str, settings: Settings) -> str:
    """A model's name as `connect` would give it: with its weights' hash, if it is an MLX model; nothing is loaded."""
    if model in _chains:  # it answers already, under its full name
        return model
    return find_weights(model, settings.path()).name if model.startswith(PREFIX) else model


def model_names(settings: Settings) -> tuple[str, str]:
    """(task model, reflection model), each by its `full_name`."""
    models = (settings.lm.model, settings.lm.reflection_model or settings.lm.model)
    return full_name(models[0], settings), full_name(models[1], settings)


def serve_engine(engine: TextEngine) -> None:
    """Let `engine`, which falls back on nothing, answer for its model's name until `close_engines` or the process ends."""
    _answer(Chain(engine.model, [EngineBackend(engine.model, lambda: engine)]))


def _answer(chain: Chain) -> None:
    global _closes_at_exit
    with _lock:
        if not _closes_at_exit:
            # Before threads are joined, not atexit: pool threads that wait for replies would keep the process alive until
            # all replies had come. And MLX's streams must be destroyed by their own thread, before the interpreter goes.
            threading._register_atexit(close_engines)  # pyright: ignore[reportAttributeAccessIssue]
            _closes_at_exit = True
        _chains[chain.model] = chain
        serve(chain)


def close_engines() -> None:
    """Stop every engine of this process and release the accelerator. What waits for a reply gets EngineFailed."""
    with _lock:
        chains = dict(_chains)
        _chains.clear()
    for name, chain in chains.items():
        withdraw(name)
        chain.close()


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
    calm_threads()
    import_litellm()
    if model.startswith(PREFIX):
        return mlx_lm(_serve(model, settings), settings)
    return MeteredLM(model, **_options(settings), **_access(settings)), CountingChatAdapter()


def _access(settings: Settings) -> dict[str, Any]:
    """The key and the address of a LiteLLM model."""
    access: dict[str, Any] = {}
    if settings.lm.api_key is not None:
        access["api_key"] = settings.lm.api_key.get_secret_value()
    if settings.lm.api_base is not None:
        access["api_base"] = settings.lm.api_base
    return access


def _serve(model: str, settings: Settings) -> str:
    """Let the chain of `model` answer, the one that there is or a new one; the name that it answers for."""
    with _lock:
        served = _chains.get(model)
        if served is not None and not served.current.closed:
            return served.model
    weights = find_weights(model, settings.path())
    with _lock:
        chain = _chains.get(weights.name)
        if chain is None or chain.current.closed:
            chain = Chain(weights.name, _backends(weights, settings), settings.lm.kv_bits)
            chain.open()
        _answer(chain)
    return chain.model


def _backends(weights: Weights, settings: Settings) -> list[Backend]:
    """Who answers for an MLX model, in order, none of them started."""

    def mlx() -> TextEngine:
        from dspy_toolkit.lm.engine.engine import Engine

        return Engine(weights, settings.lm)

    def torch() -> TextEngine:
        from dspy_toolkit.lm.torch.engine import TorchEngine

        return TorchEngine(weights, settings.lm)

    # A key is for one provider: with several, each takes its own from its own variable.
    access = _access(settings) if len(settings.lm.fallbacks) == 1 else {}
    made: list[Backend] = []
    for name in backend_order(settings.lm):
        if name == "mlx":
            made.append(EngineBackend(weights.name, mlx))
        elif name == "torch":
            made.append(EngineBackend(f"torch/{weights.name.removeprefix(PREFIX)}", torch))
        else:
            made.append(LiteLLMBackend(name, access))
    return made
