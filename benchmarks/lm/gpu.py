"""The engine on a GPU: whether its tokens are mlx_lm's own, and its steps beside those of mlx_lm's `BatchGenerator`.

    python -m benchmarks.lm.gpu --json PATH

Needs no model: Llama's architecture with random weights is written to a temporary folder, in float32, in bf16 and in 4
bits. For each: greedy tokens of prompts that begin apart and of prompts that begin alike, against mlx_lm's
`generate_step` (one prompt at a time) and `BatchGenerator`; the time of a step at several widths, the two systems
taking turns; peak memory; bursts through the whole engine. Ends with 1 if a token differs for another reason than a
near tie, or the engine breaks a promise.

Two orders of additions round differently, so tokens that are nearly as likely as each other may swap, more often the
fewer bits there are; what follows such a place cannot be compared. Random weights have more of these places than
trained ones. Not covered: accuracy, trained weights, other architectures, speculative decoding, several GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lm.random_model import FORMATS, SIZES, write_model

WIDTHS = (1, 4, 16)
REPLY = 48
"""Tokens of a reply whose tokens are compared."""
PROMPT, STEPS, WARM = 128, 96, 24
"""Tokens of a prompt whose steps are timed, its steps, and those of them before the timing."""
ROUNDS = 3
BURST, SHARED, OWN = 32, 1000, 40
"""Requests of a burst, tokens that they share, tokens of their own."""
NEAR = {"float32": 1e-3, "bf16": 0.15, "4bit": 0.15}
"""Logits of one step that lie nearer together than this many of their standard deviations may change places."""


@dataclass(frozen=True)
class Bench:
    """What is measured: one model, as the engine has it and as mlx_lm has it."""

    weights: Any
    plan: Any
    hardware: Any
    settings: Any
    tokenizer: Any
    model: Any


@dataclass(frozen=True)
class Exact:
    """A model whose logits are in float32, so that mlx_lm compares what the model said.

    It takes the likeliest token of log-probabilities, and in bf16 their rounding makes ties of logits that are none.
    """

    model: Any

    def __call__(self, *inputs: Any, **more: Any) -> Any:
        """The logits."""
        import mlx.core as mx

        return self.model(*inputs, **more).astype(mx.float32)

    @property
    def layers(self) -> Any:
        """The model's, for which mlx_lm makes caches."""
        return self.model.layers


def prompts_of(lengths: Sequence[int], shared: int = 0, seed: int = 0) -> list[list[int]]:
    """Random tokens, of which the first `shared` are the same for all."""
    rng = np.random.default_rng(seed)
    beginning = rng.integers(0, 256, shared).tolist()
    return [beginning + rng.integers(0, 256, length).tolist() for length in lengths]


def start(bench: Bench, batch: Any, prompts: Sequence[Sequence[int]], tokens: int) -> list[Any]:
    """Sequences of the engine's batch that nothing but their length ends."""
    from dspy_toolkit.lm.engine.sequence import Sequence as Running
    from dspy_toolkit.lm.protocol import Message, PendingReply, make_request

    request = make_request(messages=(Message(role="user", content="-"),), max_tokens=tokens)
    started = [
        Running(request, PendingReply(), prompt, None, bench.tokenizer.decode, frozenset(), 600.0) for prompt in prompts
    ]
    for sequence in started:
        batch.note(sequence)
    batch.insert(started)
    return started


def engine_tokens(bench: Bench, batch: Any, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """What the engine's batch answers."""
    sequences = start(bench, batch, prompts, tokens)
    while batch.sequences:
        batch.step()
    batch.take_over()
    return [sequence.reply for sequence in sequences]


def engine_steps(bench: Bench, batch: Any, width: int) -> list[float]:
    """Seconds of the engine's steps in which `width` sequences were decoded and nothing was read."""
    start(bench, batch, prompts_of([PROMPT] * width, seed=width), STEPS)
    seconds = []
    while len(batch.sequences) == width:
        before = batch.counts
        began = time.perf_counter()
        batch.step()
        took = time.perf_counter() - began
        after = batch.counts
        if (
            after["batched_rows"] - before["batched_rows"] == width
            and after["computed_tokens"] == before["computed_tokens"]
        ):
            seconds.append(took)
    batch.take_over()
    batch.reset()
    return seconds[WARM:]


def peer_steps(model: Any, prompts: Sequence[Sequence[int]], tokens: int) -> Iterator[tuple[float, list[Any]]]:
    """(seconds, responses) of each step of mlx_lm's `BatchGenerator`."""
    from mlx_lm.generate import BatchGenerator

    generator = BatchGenerator(
        model, max_tokens=tokens, completion_batch_size=max(WIDTHS), prefill_batch_size=max(WIDTHS)
    )
    try:
        left = set(generator.insert([list(prompt) for prompt in prompts]))
        while left:
            began = time.perf_counter()
            _, responses = generator.next()
            yield time.perf_counter() - began, responses
            left -= {response.uid for response in responses if response.finish_reason is not None}
    finally:
        generator.close()


def peer_tokens(bench: Bench, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """What `BatchGenerator` answers."""
    replies: dict[int, list[int]] = {}
    for _, responses in peer_steps(Exact(bench.model), prompts, tokens):
        for response in responses:
            replies.setdefault(response.uid, []).append(int(response.token))
    return [replies[uid] for uid in sorted(replies)]


def alone_tokens(bench: Bench, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """What `generate_step` answers to one prompt after the other."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    model: Any = Exact(bench.model)
    return [
        [int(token) for token, _ in generate_step(mx.array(list(prompt)), model, max_tokens=tokens)]
        for prompt in prompts
    ]


def compare(bench: Bench, prompts: Sequence[Sequence[int]], ours: list[list[int]], theirs: list[list[int]]) -> Any:
    """How many replies are the same, where the others part, and how near the two tokens were there."""
    import mlx.core as mx

    parted = []
    for prompt, one, other in zip(prompts, ours, theirs, strict=True):
        if one == other:
            continue
        at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
        if at is None:
            raise SystemExit(f"A reply has {len(one)} tokens, the other {len(other)}.")
        logits = bench.model(mx.array([[*prompt, *one[:at]]]))[0, -1].astype(mx.float32)
        scores = np.array(logits)
        parted.append({"at": at, "gap": float(abs(scores[one[at]] - scores[other[at]]) / scores.std())})
    same = len(prompts) - len(parted)
    return {"same": same, "of": len(prompts), "parted": parted, "gap": max((p["gap"] for p in parted), default=0.0)}


def check_tokens(bench: Bench) -> dict[str, Any]:
    """Greedy replies of the engine and of mlx_lm, to prompts that begin apart and to prompts that begin alike."""
    from dspy_toolkit.lm.engine.batch import Batch
    from dspy_toolkit.lm.engine.rules import DEFAULT

    results = {}
    sets = {
        "apart": prompts_of([20, 33, 64, 90, 120, 150, 181, 200]),
        "alike": prompts_of([10, 15, 20, 26, 33, 41, 50, 60], shared=300),
    }
    for name, prompts in sets.items():
        batch = Batch(bench.weights, bench.tokenizer, bench.plan, bench.hardware, DEFAULT[bench.hardware.device])
        ours = engine_tokens(bench, batch, prompts, REPLY)
        again = engine_tokens(bench, batch, prompts, REPLY)
        hits = batch.counts["prefix_hits"]
        batch.free()
        alone, theirs = alone_tokens(bench, prompts, REPLY), peer_tokens(bench, prompts, REPLY)
        results[name] = {
            "engine and BatchGenerator": compare(bench, prompts, ours, theirs),
            "engine and generate_step": compare(bench, prompts, ours, alone),
            "engine from kept prefixes and generate_step": compare(bench, prompts, again, alone),
            "BatchGenerator and generate_step": compare(bench, prompts, theirs, alone),
            "prefix_hits": hits,
        }
    return results


def time_steps(bench: Bench) -> dict[str, Any]:
    """Milliseconds of a decoding step: the median of each round, the systems taking turns."""
    import mlx.core as mx

    from dspy_toolkit.lm.engine.batch import Batch
    from dspy_toolkit.lm.engine.rules import DEFAULT

    batch = Batch(bench.weights, bench.tokenizer, bench.plan, bench.hardware, DEFAULT[bench.hardware.device])
    results = {}
    for width in WIDTHS:
        rounds: dict[str, list[float]] = {"engine": [], "BatchGenerator": []}
        peak = dict.fromkeys(rounds, 0)
        for _ in range(ROUNDS):
            for system, medians in rounds.items():
                mx.synchronize()
                mx.clear_cache()
                held = mx.get_active_memory()
                mx.reset_peak_memory()
                if system == "engine":
                    seconds = engine_steps(bench, batch, width)
                else:
                    steps = peer_steps(bench.model, prompts_of([PROMPT] * width, seed=width), STEPS)
                    seconds = [took for took, responses in steps if len(responses) == width][WARM:]
                peak[system] = max(peak[system], mx.get_peak_memory() - held)
                medians.append(1e3 * statistics.median(seconds))
        ratio = statistics.median(rounds["engine"]) / statistics.median(rounds["BatchGenerator"])
        results[str(width)] = {"milliseconds": rounds, "ratio": ratio, "peak_bytes_beside_weights": peak}
        print(f"  width {width}: {_ms(rounds['engine'])} ms, {_ms(rounds['BatchGenerator'])} ms: {ratio:.2f}")
    batch.free()
    return results


def _ms(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def run_bursts(bench: Bench) -> dict[str, Any]:
    """Tokens a second of many requests at once, through the whole engine, and through `BatchGenerator`."""
    from dspy_toolkit.lm.engine.engine import Engine
    from dspy_toolkit.lm.protocol import Message, make_request

    engine = Engine(bench.weights, bench.settings, bench.hardware)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    results: dict[str, Any] = {}
    try:
        for name, shared, own in (("apart", 0, PROMPT), ("alike", SHARED, OWN)):
            rates: dict[str, list[float]] = {"engine": [], "BatchGenerator": []}
            for turn in range(ROUNDS + 1):
                rng = np.random.default_rng((shared, turn))
                beginning = "".join(rng.choice(letters, shared))
                said = [beginning + "".join(rng.choice(letters, own)) for _ in range(BURST)]
                requests = [
                    make_request(messages=(Message(role="user", content=text),), max_tokens=REPLY) for text in said
                ]
                prompts = [bench.tokenizer.encode_request(request) for request in requests]
                began = time.perf_counter()
                replies = [pending.result(300) for pending in [engine.submit(request) for request in requests]]
                between = time.perf_counter()
                tokens = sum(len(responses) for _, responses in peer_steps(bench.model, prompts, REPLY))
                ended = time.perf_counter()
                if turn:  # the first compiles kernels
                    rates["engine"].append(sum(reply.completion_tokens for reply in replies) / (between - began))
                    rates["BatchGenerator"].append(tokens / (ended - between))
            ours, theirs = (statistics.median(each) for each in rates.values())
            results[name] = {"tokens_per_second": rates, "ratio": ours / theirs}
            print(f"  burst {name}: {ours:.0f} and {theirs:.0f} tokens/s: {ours / theirs:.2f}")
        results["promises"] = keep_promises(engine)
    finally:
        engine.close()
    return results


def keep_promises(engine: Any) -> dict[str, bool]:
    """Whether grammars, seeds, log-probabilities, penalties and streams do what the engine says."""
    import re

    from dspy_toolkit.lm.protocol import Message, make_request

    def ask(text: str, **wanted: Any) -> Any:
        return engine.submit(make_request(messages=(Message(role="user", content=text),), max_tokens=24, **wanted))

    bound = [ask(f"name {n}", grammar='start: "say " /[a-m]{5,12}/ "!"') for n in range(4)]
    free = [ask(f"name {n}") for n in range(4)]  # in one batch with those
    drawn = [ask("draw", temperature=1.0, top_p=0.9, top_k=50, seed=7) for _ in range(2)]
    noted = ask("note", logprobs=3, repetition_penalty=1.2).result(120).logprobs
    return {
        "grammar": all(re.fullmatch("say [a-m]{5,12}!", pending.result(120).text) for pending in bound),
        "beside it": all(pending.result(120).completion_tokens > 0 for pending in free),
        "seed": drawn[0].result(120).text == drawn[1].result(120).text,
        "logprobs": all(len(token.top) == 3 and token.logprob <= 0 for token in noted),
        "stream": "".join(ask("stream", temperature=0.5, seed=1))
        == ask("stream", temperature=0.5, seed=1).result().text,
    }


def measure(size: str, kind: str, pretend: bool, folder: Path) -> dict[str, Any]:
    """Everything, for one random model."""
    import mlx.core as mx

    from dspy_toolkit.lm.models.hardware import inspect_hardware
    from dspy_toolkit.lm.models.memory import plan_model
    from dspy_toolkit.lm.models.tokenizer import load_tokenizer
    from dspy_toolkit.lm.models.weights import Weights, load_model
    from dspy_toolkit.settings import LMSettings

    began = time.perf_counter()
    write_model(folder, SIZES[size], kind)
    weights = Weights(name=f"mlx/{folder.name}", folder=folder, sha256=folder.name)
    hardware = inspect_hardware()
    if pretend:
        hardware = hardware.model_copy(update={"device": "cuda"})
    if hardware.device == "cpu":
        raise SystemExit("There is no GPU that MLX can use. --pretend takes the GPU's ways on the CPU, for a test.")
    settings = LMSettings(lease="share", batch_size=max(WIDTHS))
    plan = plan_model(weights, hardware, settings)
    model, _ = load_model(weights, hardware.device)
    bench = Bench(weights, plan, hardware, settings, load_tokenizer(folder, weights.sha256), model)
    print(f"{folder.name}: made in {time.perf_counter() - began:.1f} s, {mx.get_active_memory() / 2**20:.0f} MiB")
    results: dict[str, Any] = {"tokens": check_tokens(bench)}
    for name, found in results["tokens"].items():
        for pair, each in found.items():
            if pair != "prefix_hits":
                print(f"  {name}, {pair}: {each['same']} of {each['of']} the same, gap {each['gap']:.2g}")
    if kind != "float32":
        results["steps"], results["bursts"] = time_steps(bench), run_bursts(bench)
    return results


def broken(results: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    found = []
    for name, each in results.items():
        for prompts, pairs in each.get("tokens", {}).items():
            gap = max(pairs[pair]["gap"] for pair in pairs if pair.startswith("engine"))
            if not gap <= NEAR[name.split("-")[1]]:
                found.append(f"{name}: tokens of prompts that begin {prompts} differ where logits are {gap:.2g} apart")
        for promise, kept in each.get("bursts", {}).get("promises", {}).items():
            if not kept:
                found.append(f"{name}: {promise}")
        if "error" in each:
            found.append(f"{name}: {each['error']}")
    return found


def main() -> int:
    """The benchmark's command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--models", nargs="+", default=["small-float32", "small-bf16", "small-4bit"])
    parser.add_argument("--pretend", action="store_true", help="take the GPU's ways on a CPU, to test this script")
    options = parser.parse_args()
    # Read when the first matrix product runs. With it, a product in float32 has the precision of 19 bits.
    os.environ.setdefault("MLX_ENABLE_TF32", "0")
    from importlib.metadata import version

    from dspy_toolkit.lm.models.blas import preload

    preload()
    import mlx.core as mx

    device = {name: str(value) for name, value in mx.device_info().items()}
    report: dict[str, Any] = {"device": device, "mlx": version("mlx"), "mlx-lm": version("mlx-lm"), "results": {}}
    with tempfile.TemporaryDirectory() as place:
        for name in options.models:
            size, kind = name.split("-")
            if size not in SIZES or kind not in FORMATS:
                raise SystemExit(f"No model {name!r}: SIZE-FORMAT of {', '.join(SIZES)} and {', '.join(FORMATS)}.")
            try:
                report["results"][name] = measure(size, kind, options.pretend, Path(place) / name)
            except Exception as error:  # isolation boundary: one model; the next may work
                report["results"][name] = {"error": f"{type(error).__name__}: {error}"}
            if options.json is not None:
                options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            mx.clear_cache()
    problems = broken(report["results"])
    print("\n".join(problems) or "All as it should be.")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
