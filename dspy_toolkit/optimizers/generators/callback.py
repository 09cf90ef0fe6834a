"""A DSPy callback that ends an optimizer when the model fails, the budget is spent or the metric is broken.

DSPy's optimizers catch every exception: each of these becomes a score of 0, and the search goes on. `SearchCallback`
sees the error where it is raised, and ends the optimizer with `SearchStopped`, a BaseException, which `except
Exception` does not catch. It also sees every evaluation on the validation rows, so that what was found before the end
is not lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import ContextWindowExceededError

from dspy_toolkit.errors import BudgetExhausted, MetricError, RequestRefused, ToolkitError, causes
from dspy_toolkit.evaluation import METRIC_ERRORS
from dspy_toolkit.lm.meter import Meter
from dspy_toolkit.lm.usage import Usage

E = TypeVar("E", bound=BaseException)

PATIENCE_SECONDS = 600
"""How long to wait, at the end, for calls that are still running."""


class SearchStopped(BaseException):
    """Ends an optimizer of DSPy. `Search.attempt` raises it through the optimizer and catches it again."""


class SearchCallback(BaseCallback):
    """Watches one run of an optimizer."""

    def __init__(
        self,
        val: list[dspy.Example],
        metric: CheckedMetric,
        meter: Meter,
        seen: Callable[[dspy.Module, list[float], float], None],
    ) -> None:
        """Args:
        val: the validation rows that it scores candidates on.
        metric: the one that the optimizer scores with.
        meter: counts the calls of the search.
        seen: told each program that was evaluated on `val`, its scores, and the prompt tokens of one run, on average.
        """
        self.fault: Exception | None = None
        """The error that ended the optimizer; None while there is none."""
        self.over = False
        """Whether the optimizer has ended. Threads that it left running end at their next call."""
        self._val, self._metric, self._meter, self._seen = [id(case) for case in val], metric, meter, seen
        self._programs: dict[str, tuple[dspy.Module, Usage]] = {}
        self._calls = 0
        self._idle = threading.Condition()

    def wait(self) -> None:
        """Return when no call is running any more."""
        with self._idle:
            self._idle.wait_for(lambda: not self._calls, PATIENCE_SECONDS)

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        with self._idle:
            self._calls += 1

    def on_lm_end(self, call_id: str, outputs: Any | None, exception: BaseException | None = None) -> None:
        with self._idle:
            self._calls -= 1
            self._idle.notify_all()
        if self.over:
            raise SearchStopped from exception
        # A prompt that is too long is an error of the candidate alone, which scores 0.
        if isinstance(exception, Exception) and not (
            cause_of_type(exception, RequestRefused) or cause_of_type(exception, ContextWindowExceededError)
        ):
            self._stop(cause_of_type(exception, ToolkitError) or exception)

    def on_module_end(self, call_id: str, outputs: Any | None, exception: BaseException | None = None) -> None:
        if self.over or cause_of_type(exception, BudgetExhausted):
            raise SearchStopped from exception

    def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        cases = inputs.get("devset") or instance.devset
        if [id(case) for case in cases] == self._val:
            self._programs[call_id] = inputs["program"], self._meter.usage

    def on_evaluate_end(self, call_id: str, outputs: Any | None, exception: BaseException | None = None) -> None:
        program, since = self._programs.pop(call_id, (None, None))
        if (broken := self._metric.broken()) is not None:
            self._stop(broken)
        if program is not None and since is not None and outputs is not None:
            values = [float(score) for _, _, score in outputs.results]
            tokens = (self._meter.usage - since).prompt_tokens / len(values)
            self._seen(program.deepcopy(), values, tokens)

    def _stop(self, fault: Exception) -> None:
        self.fault = self.fault or fault
        raise SearchStopped from fault


class CheckedMetric:
    """A metric in the form that an optimizer takes; counts its failures."""

    def __init__(self, metric: Callable[..., Any]) -> None:
        self._metric, self.__name__ = metric, getattr(metric, "__name__", "metric")
        self._lock = threading.Lock()
        self._runs = self._failures = 0
        self._first: MetricError | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            self._runs += 1
        try:
            return self._metric(*args, **kwargs)
        except MetricError as error:
            with self._lock:
                self._failures += 1
                self._first = self._first or error
            raise

    def broken(self) -> MetricError | None:
        """The first failure, once more than a tenth of the runs have failed."""
        return self._first if self._failures > METRIC_ERRORS * self._runs else None


def cause_of_type(error: BaseException | None, kind: type[E]) -> E | None:
    """The first error of `kind` in the chain of causes that ends in `error`; None when there is none."""
    return next((cause for cause in causes(error) if isinstance(cause, kind)), None)
