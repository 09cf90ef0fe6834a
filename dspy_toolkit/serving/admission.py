"""How much is worked on at once, how much may wait, and how often somebody may ask.

Over a limit a request is turned away at once, with 429 and `Retry-After`, before any work is done for it.

Covered: requests worked on and waiting, those of one key, a key's rate over all routes that know who asks (`limits`, in fixed
minutes). Not covered: the size of a request (`requests`), several processes: each counts its own.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter

from dspy_toolkit.sections import ServingSettings
from dspy_toolkit.serving.problems import Problem


class Admission:
    """The limits of one server, on one event loop."""

    def __init__(self, settings: ServingSettings) -> None:
        self._settings = settings
        self._free = asyncio.Semaphore(settings.concurrency)
        self._rate = RateLimitItemPerMinute(settings.rate_per_minute)
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._of_key: Counter[str] = Counter()
        self.waiting = 0
        """Requests that wait to be worked on."""
        self.active = 0
        """Requests that are worked on."""

    async def count(self, key: str, requests: int = 1) -> None:
        """Count requests of a key for its rate; those that are over it are not counted.

        Raises:
            Problem: 429, over the rate.
        """
        test, hit = self._limiter.test, self._limiter.hit
        if await test(self._rate, key, cost=requests) and await hit(self._rate, key, cost=requests):
            return
        reset = await self._limiter.get_window_stats(self._rate, key)
        most, left = self._settings.rate_per_minute, reset.reset_time - time.time()
        raise Problem(429, "rate_limited", f"More than {most} requests a minute.", retry_after=max(1.0, left))

    @asynccontextmanager
    async def slot(self, key: str) -> AsyncIterator[None]:
        """A place to work in, waited for where the queue has room.

        Args:
            key: whose request it is.

        Raises:
            Problem: 429, over one of the limits.
        """
        settings = self._settings
        if self._of_key[key] >= settings.key_concurrency:
            raise Problem(
                429, "too_many_at_once", f"More than {settings.key_concurrency} requests at once.", retry_after=1
            )
        if self._free.locked() and self.waiting >= settings.queue_size:
            raise Problem(429, "queue_full", "Too many requests are waiting. Try again.", retry_after=1)
        self._of_key[key] += 1
        try:
            self.waiting += 1
            try:
                await self._free.acquire()
            finally:
                self.waiting -= 1
            self.active += 1
            try:
                yield
            finally:
                self.active -= 1
                self._free.release()
        finally:
            self._of_key[key] -= 1
            if not self._of_key[key]:
                del self._of_key[key]
