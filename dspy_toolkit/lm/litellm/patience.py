"""How long one call waits for a remote model before its failure is the search's.

A search makes hundreds of calls, sixteen at a time, and a provider's limit is reached in the middle of one: were each 429 the
end of the task, every retry would begin by reaching the limit again. So a call waits for a server that says it has no room,
as long as that asks for (`Retry-After`), and asks once or twice more after a failure. What lasts longer is for the one layer
that retries, the orchestrator's tasks. A time-out is never waited out twice, and what is wrong with a request never passes.
"""

from __future__ import annotations

import random

from dspy_toolkit.errors import EngineBusy, EngineFailed, ToolkitError

BUSY_SECONDS = 120.0
"""Waiting of one call, all together, for a server without room."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between two attempts, doubled each time, unless the server asks for more."""
FAILED_PAUSES = (1.0, 4.0)
"""Seconds before another attempt at a server that cannot be reached, fails, or answers with nothing that can be read."""

# Of its own: what is drawn here changes no sample.
_random = random.Random()


class Patience:
    """That of one call."""

    def __init__(self) -> None:
        self._failed, self._busy, self._waited = iter(FAILED_PAUSES), FIRST_PAUSE, 0.0

    def pause(self, fault: ToolkitError, retry_after: float | None = None) -> float | None:
        """Seconds to wait before the next attempt; None when there is to be none.

        Args:
            fault: how the last attempt ended.
            retry_after: the seconds that the server asked for.
        """
        if isinstance(fault, EngineFailed) and fault.retryable:
            return next(self._failed, None)
        if not isinstance(fault, EngineBusy):
            return None
        # A little more than asked for: else all threads come back in the same moment.
        pause = max(retry_after or 0.0, self._busy) * _random.uniform(1.0, 1.25)
        self._busy = min(2 * self._busy, LONGEST_PAUSE)
        self._waited += pause
        return pause if self._waited <= BUSY_SECONDS else None
