"""How long it takes, and how much memory, until a large file of rows is split.

    python -m benchmarks.datasets [--rows 100000] [--seed 0] [--kind csv] [--json PATH]

`first`, `second` and `grown` are what a project waits for: reading the file and `datasets.prepare`, in an empty home; in the
same one again, where every row's split is remembered; and there with one row in a hundred more. `read`, `check`, `name` and
`place` are the parts of `first`, one after another. Each of the four is a process of its own. The yardstick, in every one of them, is the least that anybody would
do to the same file: `json` and `hashlib` on every line; "times" is against that of the same process, so that a slow or
a busy machine slows both. Memory is the peak of the resident set over what the imports take; a part's is the peak until its
end.

The rows are made up: texts of 10 to 60 words of a vocabulary with Zipf's frequencies, of which a fifth begin as others do, a
seventh are an earlier text with a typo or two, and one in a hundred is an earlier row again.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from benchmarks.machine import write

Label = Literal["bug", "idea", "question", "praise", "other"]
LABELS = ("bug", "idea", "question", "praise", "other")
VOCABULARY = 30_000
OPENINGS = 50


def made_up_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """`count` rows with `text` and `label`; the same seed gives the same rows."""
    source = random.Random(seed)
    words = _words(source)
    weights = list(itertools.accumulate(1 / rank for rank in range(1, VOCABULARY + 1)))
    openings = [" ".join(source.choices(words, cum_weights=weights, k=source.randint(4, 12))) for _ in range(OPENINGS)]
    rows: list[dict[str, str]] = []
    while len(rows) < count:
        draw = source.random()
        if rows and draw < 0.01:
            rows.append(dict(source.choice(rows)))
        elif rows and draw < 0.01 + 1 / 7:
            text = source.choice(rows)["text"]
            rows.append({"text": _mistyped(text, source), "label": source.choice(LABELS)})
        else:
            text = " ".join(source.choices(words, cum_weights=weights, k=source.randint(10, 60)))
            if source.random() < 0.2:
                text = f"{source.choice(openings)} {text}"
            rows.append({"text": f"{text.capitalize()}.", "label": source.choice(LABELS)})
    return rows


def write_rows(rows: list[dict[str, str]], path: Path) -> None:
    """Save `rows` as CSV, JSONL or Parquet, by the suffix of `path`."""
    import pandas as pd

    frame = pd.DataFrame(rows)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        frame.to_parquet(path, index=False)


def _words(source: random.Random) -> list[str]:
    """Words of one to four syllables, the frequent ones first and mostly short, as in any language."""
    consonants, vowels = "bcdfghjklmnprstvwz", "aeiou"
    syllables = [a + b + c for a in consonants for b in vowels for c in ("", "", "n", "r", "s", "t")]
    source.shuffle(syllables)
    often = list(itertools.accumulate(rank**-0.5 for rank in range(1, len(syllables) + 1)))
    words: dict[str, float] = {}
    while len(words) < VOCABULARY:
        word = "".join(source.choices(syllables, cum_weights=often, k=source.choice((1, 2, 2, 3, 3, 4))))
        words.setdefault(word, len(word) + source.uniform(0, 6))
    return sorted(words, key=words.__getitem__)


def _mistyped(text: str, source: random.Random) -> str:
    for _ in range(source.randint(1, 2)):
        place = source.randrange(len(text))
        change = source.choice(("", "x", text[place] * 2, text[place : place + 2][::-1]))
        text = text[:place] + change + text[place + 1 :]
    return text


class Stopwatch:
    """Seconds of named stages, and the peak memory until the end of each."""

    def __init__(self, lines: Path) -> None:
        """Take the yardstick. Args: lines: the rows as JSON lines."""
        self.stages: dict[str, dict[str, float]] = {}
        self._own = peak_bytes()
        began = time.process_time()
        with lines.open("rb") as file:
            for line in file:
                hashlib.sha256(json.dumps(json.loads(line), sort_keys=True).encode()).hexdigest()
        self._yardstick = time.process_time() - began

    def time(self, stage: str, call: Callable[[], Any]) -> Any:
        """Do `call`, and keep what it took under the name `stage`."""
        wall, processor = time.perf_counter(), time.process_time()
        result = call()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        self.stages[stage] = {
            "seconds": wall,
            "processor_seconds": processor,
            "yardsticks": processor / self._yardstick,
            "peak_megabytes": (peak_bytes() - self._own) / 1e6,
        }
        return result


def peak_bytes() -> int:
    """The largest resident set of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts what a process was before its exec, its parent's copy, into ru_maxrss
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def take(kind: str, folder: Path, file: str) -> dict[str, dict[str, float]]:
    """Measure `first`, `second`, `grown` or `parts` in this process, which should have done nothing else."""
    import pandas as pd  # noqa: F401  what the toolkit imports counts as the interpreter's own
    import pyarrow.parquet  # noqa: F401

    from dspy_toolkit.datasets import DatasetSpec, check_rows, prepare, read_rows
    from dspy_toolkit.datasets.fractions import default_fractions
    from dspy_toolkit.datasets.grouping import Row, place
    from dspy_toolkit.datasets.neighbors import comparable
    from dspy_toolkit.datasets.table import row_hash
    from dspy_toolkit.store import Store

    watch = Stopwatch(folder / "rows.jsonl")
    path = folder / file
    spec = DatasetSpec(source=file, inputs=("text",), outputs=("label",))
    fields: dict[str, Any] = {"text": str, "label": Label}
    if kind == "parts":
        frame = watch.time("read", lambda: read_rows(path))
        checked, _ = watch.time("check", lambda: check_rows(frame, spec, fields, False))
        records = checked.to_dict("records")
        rows = watch.time(
            "name", lambda: list({Row(row_hash(row), comparable([row["text"]]), ()): None for row in records})
        )
        watch.time("place", lambda: place(rows, [], seed=0, fractions=default_fractions(len(rows)), threshold=0.8))
    else:
        store, memory = Store(str(folder / "objects")), folder / "splits.jsonl"
        watch.time(kind, lambda: prepare(read_rows(path), spec, fields, store, remembered=memory))
    return watch.stages


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=("csv", "jsonl", "parquet"), default="csv")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    arguments = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, file = Path(name), f"rows.{arguments.kind}"
        grown = made_up_rows(arguments.rows + arguments.rows // 100, arguments.seed)
        rows = grown[: arguments.rows]
        write_rows(rows, folder / "rows.jsonl")
        write_rows(rows, folder / file)
        write_rows(grown, folder / f"grown.{arguments.kind}")
        del grown
        print(f"{len(rows)} rows, {(folder / file).stat().st_size / 1e6:.1f} MB of {arguments.kind}")
        print(f"{'stage':<8} {'seconds':>8} {'on CPU':>8} {'times':>6} {'peak MB':>8}")
        for kind in ("parts", "first", "second", "grown"):
            with multiprocessing.get_context("spawn").Pool(1) as process:
                stages = process.apply(take, (kind, folder, f"grown.{arguments.kind}" if kind == "grown" else file))
            for stage, found in stages.items():
                print(
                    f"{stage:<8} {found['seconds']:8.2f} {found['processor_seconds']:8.2f} "
                    f"{found['yardsticks']:6.1f} {found['peak_megabytes']:8.0f}",
                    flush=True,
                )
            results |= stages
    write(arguments.json, "datasets", {"rows": arguments.rows, "kind": arguments.kind, "stages": results})


if __name__ == "__main__":
    main()
