"""The engine against other ways of running the same model, on this machine, in one run.

    python -m benchmarks.lm [--only WORKLOAD …] [--systems NAME …] [--scale 1.0] [--json PATH] [--png PATH]

Every system runs in a process of its own, one after another, and is called through `dspy.LM` and at its native
interface by 16 threads, with the same prompts, the same max_tokens and temperature 0. Peers that are not installed are
named and left out. About an hour on 2 cores, most of it the peers'; take it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.lm.floor import Shape, shape_of
from benchmarks.lm.systems import ABLATION, missing
from benchmarks.lm.workloads import SHOT_TOKENS, WORKLOADS, Workload, make_program, messages_of
from benchmarks.machine import write

if TYPE_CHECKING:
    from dspy_toolkit.lm.models.weights import Weights
    from dspy_toolkit.settings import Settings

SYSTEMS = ("engine", "generate", "mlx_lm.server", "llama.cpp", "expert")
WIDTH = 180
"""Characters of a table that goes into a file: five systems side by side."""
WORKER_SECONDS = 1500
"""A system that takes longer is ended; the rows that it had written count."""


def read_rows(settings: Settings) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The router's training and validation rows. The third split is not read."""
    from dspy_toolkit.pipeline.context import Context
    from dspy_toolkit.pipeline.prepare import prepare
    from dspy_toolkit.pipeline.resolve import resolve
    from dspy_toolkit.projects.router import project
    from dspy_toolkit.run import Request

    context = Context(project, settings.for_project(project.name))
    dataset = prepare(context, resolve(context, Request(location=project.name)).data)
    frames = (context.store.read_frame(part) for part in (dataset.train, dataset.val))
    train, val = (frame[["request", "project"]].astype(str).to_dict("records") for frame in frames)
    return train, val  # pyright: ignore[reportReturnType]


def demonstrations(train: list[dict[str, str]], weights: Weights) -> list[dict[str, str]]:
    """As many training rows as bring the prompt before the question to SHOT_TOKENS."""
    from dspy_toolkit.lm.models.tokenizer import load_tokenizer
    from dspy_toolkit.lm.protocol import Message

    tokenizer = load_tokenizer(weights.folder, weights.sha256)
    demos: list[dict[str, str]] = []
    for row in train:
        messages = messages_of(make_program("classify", "few-shot", demos), "")[:-1]
        if len(tokenizer.encode_chat([Message.model_validate(each) for each in messages])) >= SHOT_TOKENS:
            break
        demos.append(row)
    return demos


def peer_folder(weights: Weights, home: Path, device: str) -> Path:
    """The weights as MLX peers load them: expanded on the CPU, where quantized ones would be slow for them alone."""
    from benchmarks.lm.float32 import is_quantized

    if device != "cpu" or not is_quantized(weights.folder):
        return weights.folder
    target = home / "models" / f"float32-{weights.sha256[:8]}"
    if not target.exists():
        command = [sys.executable, "-m", "benchmarks.lm.float32", str(weights.folder), str(target)]
        subprocess.run(command, check=True)
    return target


def plan(only: list[str], systems: list[str]) -> dict[str, list[Workload]]:
    """System → its workloads: the affordable ones, or exactly what was named."""
    chosen = [workload for workload in WORKLOADS if not only or workload.name in only]
    return {
        system: [each for each in chosen if system in each.systems or (only and systems)]
        for system in (*SYSTEMS, *ABLATION)
        if (system in systems if systems else system in SYSTEMS)
    }


def run_system(order: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Run one worker to its end and read what it wrote."""
    given, result = folder / f"{order['system']}.json", folder / f"{order['system']}.jsonl"
    given.write_text(json.dumps(order, default=str), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.lm.worker", str(given), str(result)]
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1"}
    environment["DSPY_CACHEDIR"] = str(folder / "dspy")
    process = subprocess.Popen(command, env=environment)
    try:
        code = process.wait(WORKER_SECONDS)
        if code:
            print(f"{order['system']} ended with code {code}.", file=sys.stderr)
    except subprocess.TimeoutExpired:
        print(f"{order['system']} took longer than {WORKER_SECONDS} s and is ended.", file=sys.stderr)
    finally:
        _end(process)
    return [json.loads(line) for line in result.read_text(encoding="utf-8").splitlines()] if result.exists() else []


def _end(process: subprocess.Popen[bytes]) -> None:
    """A worker that still runs, with the server that it started."""
    import psutil

    if process.poll() is not None:
        return
    family = psutil.Process(process.pid).children(recursive=True)
    for member in (*family, psutil.Process(process.pid)):
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows: the machine's, then each system's."""
    from benchmarks.throughput import measure_rates
    from dspy_toolkit.lm.models.embedded import EMBEDDED
    from dspy_toolkit.lm.models.gguf import find_gguf
    from dspy_toolkit.lm.models.hardware import inspect_hardware
    from dspy_toolkit.lm.models.weights import find_weights
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    home = settings.path().absolute()
    weights, hardware = find_weights(settings.lm.model, home), inspect_hardware()
    rates = measure_rates()
    rows = [
        _machine_row("matrix product", rates.flops / 1e9, "GFLOP/s"),
        _machine_row("copy", rates.bytes / 1e9, "GB/s"),
    ]
    config = json.loads((weights.folder / "config.json").read_text(encoding="utf-8"))
    bits = 32 if hardware.device == "cpu" else config.get("quantization", {}).get("bits", 15) + 1
    shape: Shape | None = shape_of(config, bits)
    train, val = read_rows(settings)
    demos = demonstrations(train, weights)
    gguf = find_gguf() if weights.name.startswith(f"mlx/{EMBEDDED}@") else None
    with tempfile.TemporaryDirectory(prefix="dspy-toolkit-benchmark-") as scratch:
        for system, workloads in plan(arguments.only, arguments.systems).items():
            reason = missing(system)
            if system == "llama.cpp" and gguf is None:
                reason = f"there is no GGUF of {weights.name}; it takes part with the embedded model"
            if reason or not workloads:
                print(f"{system} is left out: {reason or 'none of these workloads is its own'}.", file=sys.stderr)
                continue
            place = {
                "home": home,
                "model": settings.lm.model,
                "folder": weights.folder
                if system in ("engine", *ABLATION)
                else peer_folder(weights, home, hardware.device),
                "gguf": gguf,
                "threads": hardware.cores,
                "log": Path(scratch) / f"{system}.log",
            }
            order = {
                "system": system,
                "place": place,
                "workloads": [workload.name for workload in workloads],
                "rates": rates.model_dump(),
                "shape": asdict(shape) if shape else None,
                "train": train,
                "val": val,
                "demos": demos,
                "scale": arguments.scale,
            }
            rows += run_system(order, Path(scratch))
    return rows


def _machine_row(measure: str, value: float, unit: str) -> dict[str, Any]:
    return {"workload": "machine", "way": "", "system": "machine", "measure": measure, "value": value, "unit": unit, "note": ""}  # fmt: skip


def main() -> None:
    """Measure, print, draw and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [workload.name for workload in WORKLOADS]
    parser.add_argument("--only", nargs="+", default=[], choices=names, metavar="WORKLOAD", help=", ".join(names))
    parser.add_argument(
        "--systems", nargs="+", default=[], choices=(*SYSTEMS, *ABLATION), metavar="NAME", help=", ".join(SYSTEMS)
    )
    parser.add_argument(
        "--ablation", action="store_true", help=f"also the engine without a part: {', '.join(ABLATION)}"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of requests; 1 is what the docs show")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--png", type=Path, default=Path("benchmark-lm.png"), help="where the figure goes")
    arguments = parser.parse_args()

    from rich.console import Console

    from benchmarks.lm.report import figure, tables

    if arguments.ablation:
        arguments.systems = [*(arguments.systems or SYSTEMS), *ABLATION]
        arguments.only = arguments.only or ["classify-cold", "classify-warm", "few-shot", "thought", "json"]
    # A bare SIGTERM would leave the worker, and the server that it started, behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    rows = measure(arguments)
    systems = [system for system in (*SYSTEMS, *ABLATION) if any(row["system"] == system for row in rows)]
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for table in tables(rows, systems):
        console.print(table)
    caption = ", ".join(f"{row['measure']} {row['value']:.0f} {row['unit']}" for row in rows[:2])
    notes = [row for row in rows if row["measure"] == "failed" or "failed" in row["note"]]
    console.print(f"This machine: {caption}. {time.monotonic() - began:.0f} s in all.", highlight=False)
    for row in notes:
        console.print(f"{row['system']}, {row['workload']}, {row['way']}: {row['note']}", highlight=False, markup=False)
    arguments.png.write_bytes(figure(rows, systems, f"This machine: {caption}"))
    print(f"drawn in {arguments.png}", file=sys.stderr)
    write(arguments.json, "lm", {"rows": rows})


if __name__ == "__main__":
    main()
