"""Two processes on one machine: two first runs in one home, and the lease of the accelerator."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dspy_toolkit.errors import LeaseTimeout
from dspy_toolkit.lm.models import lease
from dspy_toolkit.lm.models.lease import acquire
from tests.drills.conftest import Saw
from tests.drills.forks import ROOT, Forks

pytestmark = pytest.mark.timeout(3600)


@pytest.mark.soak
@pytest.mark.drill(17, "two first runs at once in an empty home")
def test_two_first_runs(forks: Forks, project: Path, undisturbed, tmp_path: Path, saw: Saw) -> None:
    home = tmp_path / "home"
    with Forks() as others, ThreadPoolExecutor(2) as both:
        ended = list(both.map(lambda each: each.run(project, home, convert=True), (forks, others)))
    # The slower one finds the faster one's champion: promoted, it would replace what it was not compared with.
    late = [each for each in ended if each.code]
    assert len(late) < 2, ended
    assert all("Run the optimization again." in each.said for each in late), late
    again = forks.run(project, home)
    assert again.code == 0 and again.end is not None, again
    assert again.end["champion"] == undisturbed.end["champion"]
    assert again.end["replaced"] == undisturbed.end["replaced"]
    assert again.end["left running"] == 0 and again.end["damaged objects"] == 0
    assert sorted(path.name for path in (home / "models").iterdir() if path.is_dir()) == ["smollm2-135m"]
    saw("both ended; one baseline, one champion, one model", max(each.seconds for each in ended))


HOLD = """
import sys
from pathlib import Path
from dspy_toolkit.lm.models.lease import acquire
lease = acquire("cpu", 10, Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.mark.drill(18, "files of the lease are removed while it is held")
def test_the_lease_is_tidied_up(tmp_path: Path, saw: Saw) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout is not None and holder.stdin is not None and holder.stdout.readline() == "held\n"
        (path / "a file").touch()
        for each in path.iterdir():
            each.unlink()
        with pytest.raises(OSError, match="irectory|permitted"):
            path.unlink()
        with pytest.raises(LeaseTimeout):
            acquire("cpu", 0.3, path)
        started = time.monotonic()
        holder.kill()
        acquire("cpu", 30, path).release()
        seconds = time.monotonic() - started
    saw("a second process stayed out; it was let in when the first was killed", seconds)


@pytest.mark.soak
@pytest.mark.drill(19, "an engine is idle")
def test_an_idle_engine(model_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saw: Saw) -> None:
    from dspy_toolkit.lm.engine import thread
    from dspy_toolkit.lm.engine.engine import Engine
    from dspy_toolkit.lm.models.weights import find_weights
    from dspy_toolkit.locks import take
    from dspy_toolkit.settings import LMSettings
    from tests.lm.asking import send, turns

    path = tmp_path / "lock"
    monkeypatch.setattr(lease, "lease_path", lambda device: path)
    engine = Engine(find_weights("mlx/smollm2-135m", model_home), LMSettings(lease="wait", lease_seconds=600))
    try:
        assert send(engine, turns("Hello!"), max_tokens=2).result(120).text
        started = time.monotonic()
        assert take(path) is None
        while (other := take(path)) is None and time.monotonic() < started + 2 * thread.IDLE_SECONDS:
            time.sleep(0.1)
        seconds = time.monotonic() - started
        assert other is not None and seconds > thread.IDLE_SECONDS / 2
        other.release()
        assert send(engine, turns("Hello!"), max_tokens=2).result(120).text and take(path) is None
    finally:
        engine.close()
    saw("others had the accelerator after a minute; the next call took it back", seconds)
