"""A burst of requests from sixteen threads: rate, accuracy, and, of the engine, where the time went and the floor."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean, median
from typing import Any

import dspy

from benchmarks.lm.asking import Caller, Found, Outcome, Setting, rows_for
from benchmarks.lm.floor import Shape, free_tokens, least_seconds, prefill_work
from benchmarks.lm.peers import System
from benchmarks.lm.systems import EngineSystem
from benchmarks.lm.workloads import Way, Workload, is_right, make_program, messages_of, signature_of
from benchmarks.throughput import THREADS, Burst, burst, step_figures

PRIMES = 4
"""Requests that make a prefix known before the clock starts; at once, since one alone shares with nobody."""


def rate(system: System, workload: Workload, way: Way, setting: Setting) -> Iterator[Found]:
    """Requests a second, how many were right, and how many could be read at all."""
    count = setting.requests(workload)
    rows = rows_for(workload, setting, count + PRIMES)
    call = Caller(system, workload, way, f"{workload.name} {way}", setting.demos if workload.shots else ())
    # Loads the model, compiles the grammar, and shares nothing with what follows.
    Caller(system, workload, way, f"warm-up {workload.name} {way}")(rows[-1])
    primes = rows[count:] if workload.primed else []
    if primes and setting.name != "generate":
        burst(call, primes)
    before, spent = _stats(system), call.lm.meter.usage.completion_tokens
    done = burst(call, rows[:count], THREADS)
    spent = call.lm.meter.usage.completion_tokens - spent
    answered = [outcome for outcome in done.results if outcome.failure is None]
    failures = [outcome.failure for outcome in done.results if outcome.failure is not None]
    note = f"{len(failures)} of {count} failed: {failures[0]}" if failures else f"n = {count}"
    yield Found("rate", len(answered) / done.seconds if answered else None, "requests/s", note)
    if not answered:
        return
    pairs = list(zip(done.results, rows, strict=False))
    yield Found("right", 100 * mean(is_right(outcome.fields, row) for outcome, row in pairs), "%", f"n = {count}")
    yield Found("valid", 100 * mean(outcome.fields is not None for outcome in done.results), "%", f"n = {count}")
    total = sum(outcome.tokens for outcome in answered) if way == "native" else spent
    yield Found("tokens", total / len(answered), "tokens/reply")
    yield Found("latency", median(done.latencies), "s", "median of a request")
    if before is not None:
        yield from _of_steps(before, _stats(system), done)
    if way == "native" and before is not None and setting.shape is not None and not failures:
        yield _floor(workload, setting, setting.shape, call.program, rows[:count], primes, done)


def at_full_width(system: System, workload: Workload, way: Way, setting: Setting) -> Iterator[Found]:
    """The engine's own time a step while sixteen rows decode free text: no grammar ends one early."""
    if not isinstance(system, EngineSystem):
        yield Found("step_overhead", None, "ms", "n/a: the engine counts its steps, others do not")
        return
    from dspy_toolkit.lm.protocol import make_request

    program = make_program(workload.kind, f"{workload.name} {way}")
    rows = rows_for(workload, setting, THREADS + PRIMES)

    def ask(row: dict[str, str]) -> Any:
        messages = messages_of(program, row["request"])
        return system.engine.submit(make_request(messages=messages, max_tokens=workload.max_tokens)).result()

    burst(ask, rows[THREADS:])
    before = _stats(system)
    done = burst(ask, rows[:THREADS])
    tokens = sum(reply.completion_tokens for reply in done.results)
    yield Found("rate", tokens / done.seconds, "tokens/s")
    found = list(_of_steps(before, _stats(system), done))
    yield from found or [Found("step_overhead", None, "ms", "n/a: the engine counts no steps")]


def _stats(system: System) -> Any:
    return system.engine.stats() if isinstance(system, EngineSystem) else None


def _of_steps(before: Any, after: Any, done: Burst[Any]) -> Iterator[Found]:
    for figure in step_figures(before, after, done.seconds):
        yield Found(figure.name, figure.value, figure.unit)
    if (steps := after.steps - before.steps) > 0:
        yield Found("width", (after.batched_rows - before.batched_rows) / steps, "rows/step")
    if (computed := after.computed_tokens - before.computed_tokens) > 0:
        yield Found(
            "padding", 100 * (after.padding_tokens - before.padding_tokens) / computed, "%", "of computed tokens"
        )


def _floor(
    workload: Workload,
    setting: Setting,
    shape: Shape,
    program: dspy.Module,
    rows: list[dict[str, str]],
    primes: list[dict[str, str]],
    done: Burst[Outcome],
) -> Found:
    """The least time for these prompts, and for the tokens of these replies that were decided."""
    from dspy_toolkit.lm.grammar import signature_grammar
    from dspy_toolkit.lm.models.tokenizer import load_tokenizer
    from dspy_toolkit.lm.models.weights import find_weights
    from dspy_toolkit.lm.protocol import Message

    weights = find_weights(setting.place.model, setting.place.home)
    tokenizer = load_tokenizer(weights.folder, weights.sha256)

    def encode(row: dict[str, str]) -> list[int]:
        return tokenizer.encode_chat([Message.model_validate(each) for each in messages_of(program, row["request"])])

    prompts = [encode(row) for row in rows]
    work = prefill_work(prompts, [encode(row) for row in primes])
    grammar = signature_grammar(signature_of(program))
    free = mean(
        free_tokens(tokenizer.matcher(grammar), tokenizer._tokenizer, outcome.text) if grammar else outcome.tokens
        for outcome in done.results
    )
    context = mean(map(len, prompts)) + mean(outcome.tokens for outcome in done.results) / 2
    seconds = least_seconds(shape, setting.rates, work, len(rows), free, context, primed=workload.primed)
    note = f"{work.tokens} prompt tokens of {sum(map(len, prompts))}, {free:.1f} decided tokens a reply"
    return Found("floor", len(rows) / seconds, "requests/s", note)
