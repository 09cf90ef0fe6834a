"""Decoding on a GPU: the next step is on its way before anybody has seen the tokens of the last.

    step n      launch(n + 1, from the tokens of n on the device) ─▶ wait for the tokens of n ─▶ tell the sequences
    step n + 1  launch(n + 2, …)                                  ─▶ wait for the tokens of n + 1 ─▶ …

So the device works while the host reads, decodes text and builds the next graph. A row that ends with its token has been
fed once too often: what it was to say next is dropped. One that its length ends is known beforehand and is fed no more.
Where a row has a grammar nothing runs ahead, since what it may say next hangs on the token: its step is launched, its
masks are made meanwhile, and then it is waited for. Either way a step waits once, for one array (`choosing`).
"""

from __future__ import annotations

import time
from collections import abc
from typing import Any

from dspy_toolkit.lm.engine.choosing import Chosen
from dspy_toolkit.lm.engine.decode import Decoding
from dspy_toolkit.lm.engine.sequence import Outcome, Sequence


class PipelinedDecoding(Decoding):
    """As `Decoding`, with at most one wait a step. For the engine's thread only."""

    def __init__(self, model: Any, tokenizer: Any, device: str, fill: float) -> None:
        """Args as `Decoding`'s."""
        super().__init__(model, tokenizer, device, fill)
        self._flight: Chosen | None = None
        """What was launched and not read: of these sequences, what is pending on the host has been fed."""

    def keep(self, rows: abc.Sequence[int]) -> None:
        """Drop all sequences but those in some rows of the batch."""
        super().keep(rows)
        if self._flight is not None:
            self._flight = _only(self._flight, set(self.sequences))

    def settle(self) -> list[tuple[Sequence, Outcome]]:
        """Read what was launched, and launch no more."""
        flight, self._flight = self._flight, None
        return [] if flight is None else self._take(flight.read(self._text))

    def step(self) -> list[tuple[Sequence, Outcome]]:
        """Read one launched token of each row, having launched the next; the sequences that ended, with why."""
        began = time.perf_counter()
        flight = self._flight if self._flight is not None else self._launch()
        self._flight = None
        if flight is not None and self._may_run_ahead(flight):
            self._flight = self._launch_ahead(flight)
        over: list[tuple[Sequence, Outcome]] = []
        if flight is not None:
            waiting = time.perf_counter()
            chosen = flight.read(self._text)
            self.counts.model_seconds += time.perf_counter() - waiting
            over = self._take(chosen)
        if self._flight is None and flight is not None and self.sequences and self._free():
            self._flight = self._launch()  # some have joined: from now on all are fed together
        self.counts.seconds += time.perf_counter() - began
        return over

    def _free(self) -> bool:
        """Whether no sequence's next token hangs on what only the host knows."""
        return all(not sequence.is_watched for sequence in self.sequences)

    def _may_run_ahead(self, flight: Chosen) -> bool:
        return self._free() and flight.sequences == self.sequences

    def _launch(self) -> Chosen | None:
        """Start a step from what is pending on the host; None where no row is ready for a choice after it."""
        began = time.perf_counter()
        logits, ready = self._feed()
        self.counts.model_seconds += time.perf_counter() - began
        if logits is None:
            return None
        chosen = self._chooser.choose(logits, ready, self._bits(ready))
        chosen.start()
        return chosen

    def _launch_ahead(self, flight: Chosen) -> Chosen | None:
        """Start the step after `flight`, whose tokens nobody has seen; None where all rows end with those."""
        staying = [row for row, sequence in enumerate(flight.sequences) if sequence.room > 1]
        tokens = flight.tokens
        if len(staying) < len(flight.sequences):
            import mlx.core as mx

            super().keep(staying)
            if not staying:
                return None
            tokens = tokens[mx.array(staying)]
        began = time.perf_counter()
        logits = self._model(tokens[:, None], cache=self.caches)[:, 0]
        self.counts.model_seconds += time.perf_counter() - began
        self.counts.steps += 1
        self.counts.batched_rows += len(self.sequences)
        chosen = self._chooser.choose(logits, self.sequences, ahead=tokens)
        chosen.start()
        return chosen


def _only(flight: Chosen, sequences: set[Sequence]) -> Chosen | None:
    """What was launched for some sequences."""
    rows = [row for row, sequence in enumerate(flight.sequences) if sequence in sequences]
    if len(rows) < len(flight.sequences):
        if not rows:
            return None
        flight.keep(rows)
    return flight
