"""The honest peer: what someone who knows mlx_lm well would write for this work in some 150 lines.

`BatchGenerator` batches, `LRUPromptCache` keeps the prompts' caches, and llguidance holds each reply to the same grammar as the
engine's. What several waiting prompts begin with is read once, before they are inserted, and what the grammar dictates at the
start of a reply is put into the prompt. In the middle of a reply it is decoded, since `BatchGenerator` feeds a token a step; it
also starts each row from a copy of what its prompt shares, and asks one grammar after another.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy
import numpy as np

from benchmarks.lm.peers import Answer, Messages, Place, options, peer_adapter
from benchmarks.lm.plain import serve_by
from dspy_toolkit.lm.meter import MeteredLM

WIDTH = 16
SHARED = 64
"""Tokens that several prompts must share beyond what is kept, to be read once for all."""


@dataclass(eq=False)
class Job:
    """One request."""

    prompt: list[int]
    max_tokens: int
    matcher: Any
    forced: list[int] = field(default_factory=list)
    reply: list[int] = field(default_factory=list)
    pieces: queue.SimpleQueue[str | None] = field(default_factory=queue.SimpleQueue)
    future: Future[Answer] = field(default_factory=Future)


class ExpertSystem:
    """`BatchGenerator`, `LRUPromptCache` and llguidance, on one thread."""

    name = "expert/model"

    def __init__(self, place: Place) -> None:
        from dspy_toolkit.lm.models.blas import preload

        preload()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(place.folder, ready), daemon=True)
        self._thread.start()
        ready.result()
        serve_by("expert", self)

    def lm(self, max_tokens: int) -> tuple[MeteredLM, dspy.Adapter]:
        return MeteredLM(self.name, **options(max_tokens)), peer_adapter()

    def submit(self, messages: Messages, max_tokens: int, signature: type[dspy.Signature] | None) -> Job:
        """Queue a request; on its caller's thread."""
        prompt = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        job = Job(list(prompt), max_tokens, self._matcher(signature) if signature is not None else None)
        if job.matcher is not None:
            job.forced = list(job.matcher.compute_ff_tokens())[:max_tokens]
            job.matcher.consume_tokens(job.forced)
        self._jobs.put(job)
        return job

    def _matcher(self, signature: type[dspy.Signature]) -> Any:
        import llguidance

        from dspy_toolkit.lm.grammar import signature_grammar

        with self._compiling:
            grammar = signature_grammar(signature)
            if grammar not in self._compiled:
                self._compiled[grammar] = llguidance.LLMatcher(self._guide, grammar, log_level=0)
            return self._compiled[grammar].deep_copy()

    def ask(self, messages: Messages, max_tokens: int, signature: type[dspy.Signature] | None = None) -> Answer:
        return self.submit(messages, max_tokens, signature).future.result()

    def count(self, messages: Messages) -> int:
        """Tokens of a prompt."""
        return len(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    def stream(self, messages: Messages, max_tokens: int, signature: type[dspy.Signature]) -> Generator[str]:
        job = self.submit(messages, max_tokens, signature)
        while (piece := job.pieces.get()) is not None:
            yield piece

    def drop(self) -> None:
        """Nothing: the requests under way end within a second or two."""

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    # On its own thread.

    def _run(self, folder: Path, ready: Future[None]) -> None:
        import llguidance.hf
        from mlx_lm import load
        from mlx_lm.generate import BatchGenerator
        from mlx_lm.models.cache import LRUPromptCache

        self._model, self._tokenizer = load(str(folder))[:2]
        self._guide, self._compiled = llguidance.hf.from_tokenizer(self._tokenizer._tokenizer), dict[str, Any]()
        self._compiling = threading.Lock()
        self._kept = LRUPromptCache(max_size=64)
        stops = [[token] for token in self._tokenizer.eos_token_ids]
        self._batch = BatchGenerator(self._model, stop_tokens=stops, completion_batch_size=WIDTH)
        ready.set_result(None)
        running: dict[int, Job] = {}
        while (new := self._take(block=not running)) is not None:
            if new:
                self._read_shared([job.prompt for job in new])
                running |= {self._insert(job): job for job in new}
            for response in self._batch.next()[1]:
                self._note(running, response)
        self._batch.close()
        import mlx.core as mx

        mx.clear_streams()

    def _take(self, *, block: bool) -> list[Job] | None:
        """The jobs that wait; None when it is to stop."""
        jobs: list[Job] = []
        try:
            while True:
                job = self._jobs.get(block=block and not jobs, timeout=None)
                if job is None:
                    return None
                jobs.append(job)
        except queue.Empty:
            return jobs

    def _read_shared(self, prompts: list[list[int]]) -> None:
        """Read once what the waiting prompts begin with, where it is much longer than what is kept."""
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        shared = _beginning(prompts)[:-1] if len(prompts) > 1 else []
        cache, rest = self._kept.fetch_nearest_cache("model", shared) if shared else (None, [])
        if len(rest) < SHARED:
            return
        cache = cache or make_prompt_cache(self._model)
        for at in range(0, len(rest), 512):
            self._model(mx.array([rest[at : at + 512]]), cache=cache)
            mx.eval([layer.state for layer in cache])
        self._kept.insert_cache("model", shared, cache, cache_type="system")

    def _insert(self, job: Job) -> int:
        whole = job.prompt + job.forced
        cache, rest = self._kept.fetch_nearest_cache("model", whole)
        (uid,) = self._batch.insert(
            [rest],
            [max(job.max_tokens - len(job.forced), 1)],
            caches=[cache] if cache is not None else None,
            all_tokens=[whole[: len(whole) - len(rest)]],
            logits_processors=[[_Grammar(job, len(whole))] if job.matcher is not None else []],
        )
        return uid

    def _note(self, running: dict[int, Job], response: Any) -> None:
        job = running[response.uid]
        before = self._tokenizer.decode(job.forced + job.reply)
        if response.finish_reason != "stop":
            job.reply.append(response.token)
        over = response.finish_reason is not None
        text = self._tokenizer.decode(job.forced + job.reply, skip_special_tokens=True)
        if over or not text.endswith("\ufffd"):
            job.pieces.put(text[len(before) :])
        if over:
            self._kept.insert_cache("model", list(response.all_tokens), response.prompt_cache)
            job.pieces.put(None)
            job.future.set_result(Answer(text, len(job.forced) + len(job.reply)))
            del running[response.uid]


def _beginning(prompts: list[list[int]]) -> list[int]:
    """What all of them begin with: what the first and the last in order do."""
    first, last = min(prompts), max(prompts)
    return first[: next((at for at, pair in enumerate(zip(first, last, strict=False)) if len({*pair}) > 1), len(first))]


class _Grammar:
    """A logits processor that allows what the grammar does."""

    def __init__(self, job: Job, begin: int) -> None:
        self._job, self._seen = job, begin
        self._bits: Any = None

    def __call__(self, tokens: Any, logits: Any) -> Any:
        import llguidance.numpy as guide
        import mlx.core as mx

        matcher, new = self._job.matcher, tokens[self._seen :].tolist()
        self._seen += len(new)
        if matcher.is_stopped() or not all(matcher.consume_token(token) for token in new):
            return logits  # it is asked once more after the end
        if self._bits is None:
            self._bits = guide.allocate_token_bitmask(1, logits.shape[-1])
        guide.fill_next_token_bitmask(matcher, self._bits, 0)
        allowed = np.unpackbits(self._bits.view(np.uint8), axis=1, bitorder="little")[:, : logits.shape[-1]]
        return mx.where(mx.array(allowed.astype(bool)), logits, -mx.inf)
