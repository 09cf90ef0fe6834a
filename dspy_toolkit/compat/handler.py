"""A module with a deadline, a breaker and somebody who answers in its place.

Two modules in a program of one's own; a registry's champion with all that it falls back on is `dspy_toolkit.serving.Service`.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import dspy

from dspy_toolkit.errors import SettingsError, ToolkitError

if TYPE_CHECKING:
    from dspy_toolkit.serving.fallback import Move


class ProductionDSPyHandler:
    """Asks a module, and where that fails another one. For one event loop."""

    def __init__(
        self,
        module: dspy.Module,
        fallback_module: dspy.Module | None = None,
        *,
        max_errors: int = 5,
        pause: float = 30.0,
        seconds: float = 60.0,
    ) -> None:
        """Args:
        module: asked first. Models and adapter are those in force (`connection.context()`), or the module's own.
        fallback_module: asked where it fails.
        max_errors: failures in a row after which a module is not asked, for `pause` seconds.
        seconds: for an answer, both modules together.

        Raises:
            SettingsError: the extra `serve` is not installed.
        """
        try:
            from dspy_toolkit.serving.fallback import FallBack
        except ImportError as error:
            raise SettingsError(
                f"Breakers need pybreaker. Run `pip install 'dspy-toolkit[serve]'` ({error})."
            ) from error
        self._modules = {"primary": module, **({} if fallback_module is None else {"fallback": fallback_module})}
        self._chain, self._seconds = FallBack(max_errors, pause), seconds
        self.moves: list[Move] = []
        """Who did not answer the last request, and why."""

    async def execute_with_fallback(self, **inputs: Any) -> dspy.Prediction:
        """The module's prediction, else the other one's.

        Raises:
            ToolkitError: nobody answered; its cause is what failed last.
        """
        from dspy_toolkit.serving.fallback import Option
        from dspy_toolkit.serving.problems import in_words

        # Each has a breaker of its own for its model too: whether two modules share one is not known here.
        options = [
            Option(name, f"of the {name}", partial(_ask, module, inputs)) for name, module in self._modules.items()
        ]
        self.moves = []
        try:
            answer, _ = await self._chain.run(options, time.monotonic() + self._seconds, self.moves)
        except Exception as error:  # isolation boundary: one request, of modules that may raise anything
            asked = " and ".join(self._modules)
            raise ToolkitError(f"No answer from {asked}: {in_words(error)}. Its cause says why.") from error
        return answer


async def _ask(module: Any, inputs: dict[str, Any]) -> dspy.Prediction:
    if hasattr(module, "aforward"):
        return await module.acall(**inputs)
    in_a_thread: Any = dspy.asyncify(module)  # typed as if it took its arguments in a tuple
    return await in_a_thread(**inputs)
