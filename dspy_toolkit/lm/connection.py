"""From settings to the language models that DSPy programs can use.

`connect` gives an LM for each role (`dspy_toolkit.lm.roles`) and the adapter that serves them all;
`with connection.context():` puts the task's in force in the current thread. Engines are shared: connecting twice to one
model uses one engine, with the settings of the first.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  (its exit hook must be registered before ours)
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

import dspy

from dspy_toolkit.lm.adapter import adapter_for
from dspy_toolkit.lm.litellm.fallback import Backend, Chain, backend_order
from dspy_toolkit.lm.litellm.provider import EngineBackend, find_chain, import_litellm, serve, withdraw
from dspy_toolkit.lm.litellm.translation import reading_images
from dspy_toolkit.lm.litellm_backend import LiteLLMBackend
from dspy_toolkit.lm.meter import MeteredLM
from dspy_toolkit.lm.models.weights import PREFIX, Weights, find_weights
from dspy_toolkit.lm.remote import remote_lm
from dspy_toolkit.lm.reply_cache import engine_settings, use_cache
from dspy_toolkit.lm.roles import Role, RoleModel, role_model
from dspy_toolkit.lm.torch.weights import calm_threads
from dspy_toolkit.lm.vision.weights import reads_images, vision_version
from dspy_toolkit.settings import Settings, load_settings

if TYPE_CHECKING:
    from dspy_toolkit.lm.protocol import PendingReply, TextEngine

REPLY_SHARE = 1 / 4
"""Of a local model's context, for a reply whose length nobody set: 2,048 tokens of the embedded model's 8,192."""

_chains: dict[str, Chain] = {}
_lock = threading.RLock()
_closes_at_exit = False


@dataclass(frozen=True)
class Connection:
    """The language models of one run, one a role, each made when it is first asked for."""

    lm: MeteredLM
    """Runs the program."""
    adapter: dspy.Adapter
    """Turns signatures into prompts, for the model of any role."""
    others: Mapping[Role, Callable[[], MeteredLM]] = field(default_factory=dict)
    """Makes the LM of another role; a role that is missing is `lm`'s."""

    @cached_property
    def reflection(self) -> MeteredLM:
        """Writes instructions."""
        return self._other("reflection")

    @cached_property
    def teacher(self) -> MeteredLM:
        """Answers training rows, for demonstrations."""
        return self._other("teacher")

    @cached_property
    def judge(self) -> MeteredLM:
        """Grades answers."""
        return self._other("judge")

    @property
    def model(self) -> str:
        """The task model's name, with its weights' hash for an MLX model."""
        return self.lm.model

    def context(self, lm: MeteredLM | None = None) -> AbstractContextManager[Any]:
        """DSPy's settings for this thread; `lm` in place of the connection's, say a metered copy."""
        return dspy.context(lm=lm or self.lm, adapter=self.adapter)

    def _other(self, role: Role) -> MeteredLM:
        return self.others[role]() if role in self.others else self.lm


def connect(settings: Settings) -> Connection:
    """Connect to the models that the settings name. An MLX model is loaded by its first call.

    Raises:
        ModelNotFound, ModelTooLarge, ModelError: with the next command. Of a role other than the task, when it is first
            asked for.
        SettingsError: a role's options are none that its model takes.
    """
    use_cache(settings)
    judge = cache(partial(_role_lm, settings, "judge"))

    def lm_of(role: Role) -> MeteredLM:
        lm = _role_lm(settings, role)
        lm.judge = judge
        return lm

    lm, task, teaches = lm_of("lm"), role_model(settings, "lm"), role_model(settings, "teacher")
    others: dict[Role, Callable[[], MeteredLM]] = {"reflection": partial(lm_of, "reflection"), "judge": judge}
    if replace(teaches, role=task.role, stated=task.stated) != task:
        others["teacher"] = partial(lm_of, "teacher")
    return Connection(lm, adapter_for(lm, settings.objects), others)


def judge_of(lm: Any, model: str | None) -> MeteredLM:
    """The LM that grades what a program said on `lm`.

    Args:
        lm: the LM of the run: of `connect`, it knows its judge, and its meter is charged; for any other, the settings of
            `dspy-toolkit.toml` and the environment say who judges.
        model: what the metric names; None for the role's.

    Raises:
        SettingsError, ModelNotFound, ModelTooLarge, ModelError: with the next command.
    """
    if not isinstance(lm, MeteredLM) or lm.judge is None:
        return _role_lm(load_settings(), "judge", model)
    judge = lm.judge(model).copy()
    judge.meter = lm.meter.judge
    return judge


def full_name(model: str, settings: Settings) -> str:
    """A model's name as `connect` would give it: with its weights' hash, if it is an MLX model; nothing is loaded."""
    if model in _chains:  # it answers already, under its full name
        return model
    return find_weights(model, settings.path()).name if model.startswith(PREFIX) else model


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


def _role_lm(settings: Settings, role: Role, model: str | None = None) -> MeteredLM:
    found = role_model(settings, role, model)
    calm_threads()
    import_litellm()
    return _local_lm(found, settings) if found.model.startswith(PREFIX) else remote_lm(found)


def _local_lm(role: RoleModel, settings: Settings) -> MeteredLM:
    """The LM of a model that an engine of this process runs."""
    model = _serve(role.model, settings)
    options: dict[str, Any] = {"temperature": role.temperature, "max_tokens": role.max_tokens}
    backend = find_chain(model).current
    if role.role != "lm" and "max_tokens" not in role.stated and isinstance(backend, EngineBackend):
        options["max_tokens"] = min(role.max_tokens, int(backend.engine().context_size * REPLY_SHARE))
    if role.role == "reflection":
        # Without one the engine draws its own, and no search could be repeated.
        options["seed"] = settings.optimize.seed
    if role.timeout != settings.lm.timeout:
        options["timeout"] = role.timeout
    return MeteredLM(model, engine="litellm", num_retries=0, **options)


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
            own = {"mlx-vlm": vision_version()} if reads_images(weights) else {}
            chain = Chain(weights.name, _backends(weights, settings), engine_settings(settings.lm) | own)
            chain.open()
        _answer(chain)
    return chain.model


def _backends(weights: Weights, settings: Settings) -> list[Backend]:
    """Who answers for an MLX model, in order, none of them started."""

    def mlx() -> TextEngine:
        from dspy_toolkit.lm.engine.engine import Engine
        from dspy_toolkit.lm.engine.rules import rules_of
        from dspy_toolkit.lm.models.hardware import inspect_hardware

        hardware = inspect_hardware()
        return Engine(weights, settings.lm, hardware, rules_of(settings.path(), weights.name, hardware))

    def torch() -> TextEngine:
        from dspy_toolkit.lm.torch.engine import TorchEngine

        return TorchEngine(weights, settings.lm)

    def vision() -> TextEngine:
        from dspy_toolkit.lm.vision.engine import VisionEngine

        return VisionEngine(weights, settings.lm)

    vision_model = reads_images(weights)
    made: list[Backend] = []
    for name in backend_order(settings.lm, vision=vision_model):
        if name == "vision":
            made.append(_ImageEngine(weights.name, vision))
        elif name == "mlx":
            made.append(EngineBackend(weights.name, mlx))
        elif name == "torch":
            made.append(EngineBackend(f"torch/{weights.name.removeprefix(PREFIX)}", torch))
        else:
            made.append(_ImageLiteLLM(name) if vision_model else LiteLLMBackend(name))
    return made


class _ImageEngine(EngineBackend):
    """An engine that reads images."""

    def _submit(self, call: dict[str, Any], *, streaming: bool = False) -> list[PendingReply]:
        with reading_images():
            return super()._submit(call, streaming=streaming)


class _ImageLiteLLM(LiteLLMBackend):
    """A LiteLLM model that stands in for one that reads images, and is handed them."""

    def _arguments(self, call: dict[str, Any]) -> dict[str, Any]:
        with reading_images():
            return super()._arguments(call)
