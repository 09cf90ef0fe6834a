"""How long managing many versions takes: listing 1,000, and a program out of one home and into another.

    python -m benchmarks.managing [--versions 1000] [--home FOLDER]

First what the work itself takes, without imports; then `dspy-toolkit programs list` as a process, beside one that imports MLflow
and does nothing else. The versions are entries of the registry that share one run's files: listing reads no files.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dspy_toolkit.optimizers.states import state_of
from dspy_toolkit.project import load_project
from dspy_toolkit.project.signatures import fields_of, signature_hash
from dspy_toolkit.registry import Manifest, find_version, list_versions, save_version
from dspy_toolkit.registry.exports import export_bundle
from dspy_toolkit.registry.importing import import_program
from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking.mlflow_client import session
from dspy_toolkit.tracking.runs import open_run

TIMES = 5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument("--home", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home, other = Settings(home=asked.home or Path(scratch, "home")), Settings(home=Path(scratch, "other"))
        began = time.perf_counter()
        with session(home, "opening"):
            pass
        print(f"importing MLflow and making a database: {time.perf_counter() - began:.2f} s")
        fill(home, asked.versions)
        with session(other, "opening"):
            pass
        bundle = Path(scratch, "router.bundle")
        show(f"list of {asked.versions} versions", lambda: list_versions(home, "router"))
        show("export", lambda: export_bundle(home, "router@1", bundle))
        imported = iter(range(TIMES))

        def read_in() -> None:
            # Into a project of another name each time: a program that is there already is not written again.
            project = Path(scratch, f"p{next(imported)}.toml")
            project.write_text(PROJECT.replace("NAME", project.stem))
            import_program(other, bundle, str(project))

        show("import", read_in)
        print(f"the bundle has {bundle.stat().st_size:,} bytes")
        for what, arguments in PROCESSES.items():
            show(f"a process: {what}", lambda arguments=arguments: run(home, arguments))


COMMAND = ("-c", "from dspy_toolkit.cli import main; main()")
PROCESSES = {
    "import mlflow": ("-c", "from mlflow import MlflowClient"),
    "programs list": (*COMMAND, "programs", "list"),
    "programs list router": (*COMMAND, "programs", "list", "router"),
}
PROJECT = """
name = "NAME"
signature = 'request: str -> project: Literal["lora", "diffusion", "clip", "federated", "compression", "meta-learning"]'
[dataset]
source = "none.csv"
inputs = ["request"]
outputs = ["project"]
"""


def fill(home: Settings, versions: int) -> None:
    """Give the project `router` so many versions."""
    program = load_project("router").build()
    manifest = Manifest(
        project="router",
        optimizer="bootstrap",
        model="mlx/none@00000000",
        metric="exact_match",
        signature_fields={name: str(kind) for name, kind in fields_of(program).items()},
        signature_sha256=signature_hash(program),
        trained_rows=tuple(f"{row:064x}" for row in range(300)),
    )
    save_version(home, "router", state_of(program), manifest, open_run(home, "router", "a run"))
    first = find_version(home, "router@1")
    with session(home, "filling") as mlflow:
        for _ in range(versions - 1):
            source = f"runs:/{first.run_id}/program"
            mlflow.create_model_version("router", source, first.run_id, tags={"program_sha256": first.program_sha256})


def run(home: Settings, arguments: Sequence[str]) -> None:
    """Run Python with these arguments, in that home."""
    variables = os.environ | {"DSPY_TOOLKIT_HOME": str(home.path()), "MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run([sys.executable, *arguments], env=variables, stdout=subprocess.DEVNULL, check=True)


def show(what: str, do: Callable[[], object]) -> None:
    """Print the median and the slowest of some times, and what the processor spent, which other work on the machine delays less."""
    seconds, spent = [], []
    for _ in range(TIMES):
        began, before = time.perf_counter(), _processor()
        do()
        seconds.append(time.perf_counter() - began)
        spent.append(_processor() - before)
    print(
        f"{what}: median {statistics.median(seconds):.2f} s, slowest {max(seconds):.2f} s, of {TIMES}; "
        f"processor {statistics.median(spent):.2f} s",
        flush=True,
    )


def _processor() -> float:
    """Seconds that this process and those that it waited for have spent."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


if __name__ == "__main__":
    main()
