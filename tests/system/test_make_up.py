"""docs/deployments.md's "One command" as it stands, in a fresh clone: everything up, a night, an alert, and nothing left.

Between its two blocks: a run that fails reaches a webhook; the server and the pages are killed, and `make up` starts these two and
nothing else; a project of the user's own is deployed; and a run of it is under way when all is taken down.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from tests.documentation.shell import UP, sections
from tests.lm.openai_server import OpenAIServer
from tests.monitoring.test_alerts import webhook
from tests.system.fresh_clone import Model, environment, make_clone, terminal

pytestmark = [pytest.mark.system, pytest.mark.timeout(2700)]

BETWEEN = r"""
echo "=== from another shell"
env -i PATH="$PATH" HOME="$HOME" PYTHONPATH="$PYTHONPATH" \
    prefect deployment run 'optimize-program/nightly-router' --param project=nowhere --watch --watch-timeout 400 || true

for i in $(seq 60); do [ -s .dspy-toolkit/alerts.jsonl ] && break; sleep 0.5; done
echo "=== again"
for name in server pages; do
    kill -9 "$(grep -o '"pid": [0-9]*' ".dspy-toolkit/services/$name.json" | grep -o '[0-9]*')"
done
make up
echo "=== of one's own"
dspy-toolkit deploy films --cron "0 3 * * *" --timezone Europe/Berlin --optimizer bootstrap --budget 60
prefect deployment run 'optimize-program/nightly-films'
running() { python -c "
import sqlite3
database = sqlite3.connect('.dspy-toolkit/prefect/prefect.db')
rows = database.execute('SELECT name FROM flow_run WHERE state_type = ?', ('RUNNING',)).fetchall()
raise SystemExit(('optimize films',) not in rows)
"; }
for i in $(seq 480); do running && break; sleep 0.5; done
echo "=== down"
"""


def started_by(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TOOLKIT_SERVICES") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_one_command_brings_it_up_and_one_takes_it_down(films: Path, tmp_path: Path) -> None:
    clone = tmp_path / "a clone"
    make_clone(clone)
    begin, end = next(section.shell for section in sections(clone) if section.key == UP)
    with OpenAIServer(Model()) as model, webhook() as (hook, posted):
        reader = environment(clone, tmp_path / "HOME", model.address) | {
            "DSPY_TOOLKIT_ALERTS__TARGETS": f'["{hook}"]',
            "DSPY_TOOLKIT_PROJECTS__FILMS__LOCATION": str(films),
            "DSPY_TOOLKIT_PROJECTS__FILMS__LM__MODEL": "mlx/smollm2-135m",
            "DSPY_TOOLKIT_LM__LEASE": "share",
        }
        reader["PATH"] = f"{clone / '.venv/bin'}:{reader['PATH']}"
        home = clone / ".dspy-toolkit"
        try:
            with terminal("\n".join([begin, BETWEEN, end]), clone, reader, tmp_path / "log") as at:
                printed = at.wait(2400)
        finally:
            left = started_by(home)
            for process in left:
                process.kill()
        print(printed)
    up, other, again, own, down = re.split(r"^=== .*$", printed, flags=re.MULTILINE)
    assert "All of it is up" in up and "Completed" in up
    assert "Failed" in other
    [failed] = [each for each in posted if "failed optimize-program" in each["title"]]
    assert "'nowhere' is no project that this machine knows" in failed["message"]
    assert "/runs/flow-run/" in failed["message"] and "Type: `prefect flow-run logs" in failed["message"]
    before, after = (dict(re.findall(r"^(\w+) +up .*pid (\d+)", said, re.MULTILINE)) for said in (up, again))
    assert {name for name in before if before[name] != after[name]} == {"server", "pages"}
    assert {"worker", "mlflow"} <= after.keys()
    assert "optimize-program/nightly-films is deployed" in own
    # The one that was started; one of the schedules may have begun another, whatever hour it is.
    assert re.search(r"^[1-9]\d* runs? cancelled$", down, re.MULTILINE) and "server has ended" in down
    assert not left, left
    assert not (clone / "prefect.toml").exists()
    with closing(sqlite3.connect(home / "prefect/prefect.db")) as database:
        states = dict(
            database.execute("SELECT name, state_type FROM flow_run WHERE state_type != 'SCHEDULED'").fetchall()
        )
    assert "RUNNING" not in states.values() and "PENDING" not in states.values(), states
    assert states["optimize films"] == "CANCELLED" and states["optimize router"] == "COMPLETED"
    assert "Traceback" not in printed
    assert not home.stat().st_mode & 0o077
