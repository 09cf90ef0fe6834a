"""README.md's "Every night" as it stands, in a fresh clone: a Prefect server and a worker of its own, and the nightly run.

At the same terminal, before they are stopped: the deployment with another project, on the real embedded model, and a race
whose candidates are scored on the worker.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.documentation.shell import NIGHTLY, sections
from tests.lm.openai_server import OpenAIServer
from tests.system.fresh_clone import Model, environment, make_clone, terminal

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

PARAMETERS = json.dumps({"project": "films", "optimizer": "bootstrap", "budget": "60"})
ON_THE_WORKER = f"""
echo "=== films"
.venv/bin/prefect deployment run 'optimize-program/nightly-router' --params '{PARAMETERS}' --watch --watch-timeout 900
echo "=== a race"
.venv/bin/python -m flows.compare_optimizers --project films --budget 60 --workers
echo "=== its candidates"
.venv/bin/prefect flow-run ls --flow-name score-candidate --state-type COMPLETED
echo "=== the end"
"""
ALL_GONE = """
wait
echo "both have ended"
"""


def test_every_night_as_it_stands_and_candidates_scored_on_its_worker(films: Path, tmp_path: Path) -> None:
    clone = tmp_path / "a clone"
    make_clone(clone)
    (begin, end) = next(section.shell for section in sections(clone) if section.key == NIGHTLY)
    with OpenAIServer(Model()) as model:
        reader = environment(clone, tmp_path / "HOME", model.address) | {
            # What a deployment may name; it runs on the real model.
            "DSPY_TOOLKIT_PROJECTS__FILMS__LOCATION": str(films),
            "DSPY_TOOLKIT_PROJECTS__FILMS__LM__MODEL": "mlx/smollm2-135m",
            "DSPY_TOOLKIT_LM__LEASE": "share",
        }
        with terminal("\n".join([begin, ON_THE_WORKER, end, ALL_GONE]), clone, reader, tmp_path / "log") as at:
            printed = at.wait(1500)
    _, _, race, scored, stopped = re.split(r"^=== .*$", printed, flags=re.MULTILINE)
    assert "The pool" in race
    assert "labelled" in race
    assert scored.count(" score ") >= 4, "the baseline and candidates, each on some rows"
    assert "both have ended" in stopped
    assert "Traceback" not in printed

    from dspy_toolkit.settings import load_settings
    from dspy_toolkit.tracking.mlflow_client import connect, experiment_id

    settings = load_settings(home=clone / ".dspy-toolkit")
    assert not settings.path().stat().st_mode & 0o077, "the rows are the user's alone"
    client = connect(settings)
    # Not the races, and not the looks of the deployment that is due every hour.
    decided = "tags.outcome LIKE '%' and tags.outcome != 'compared'"
    nights = {
        run.data.params["optimizer"]: run.data
        for run in client.search_runs([experiment_id(client, settings)], filter_string=decided)
    }
    for project, optimizer in {"router": "auto", "films": "bootstrap"}.items():
        night = nights[optimizer]
        assert night.tags["project"] == project
        assert night.tags["outcome"] in ("promoted", "refused", "unchanged")
        assert night.metrics["val_baseline"] >= 0
