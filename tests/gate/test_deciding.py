"""The whole gate in one call, and what it needs to run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dspy_toolkit.errors import DatasetError, LedgerError
from dspy_toolkit.gate import Ledger, decide

OLD, NEW = [0] * 30 + [1] * 10 + [1] * 200, [1] * 30 + [0] * 10 + [1] * 200
IDS = [f"row {i}" for i in range(240)]

ALONE = """
import sys
from importlib.abc import MetaPathFinder

ALLOWED = {allowed}
OURS = {{"dspy_toolkit", *sys.stdlib_module_names, *sys.builtin_module_names}}

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root not in OURS | set(ALLOWED) and not root.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"{{name}} is not installed here", name=root)

sys.meta_path.insert(0, Blocked())
{code}
"""
LIBRARY = {"numpy", "scipy", "pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}
TERMINAL = {
    "cyclopts",
    "attr",
    "attrs",
    "docstring_parser",
    "rich",
    "rich_rst",
    "docutils",
    "pygments",
    "markdown_it",
    "mdurl",
}


def alone(code: str, allowed: set[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` where nothing but the standard library and `allowed` can be imported."""
    return subprocess.run(
        [sys.executable, "-c", ALONE.format(allowed=sorted(allowed), code=code)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PATH": "", "OPENBLAS_NUM_THREADS": "1"},
    )


def test_scores_in_and_a_verdict_out():
    found = decide(OLD, NEW)
    assert (found.outcome, found.promoted_for) == ("promoted", "quality")
    assert found.reason == "Better than the champion: +8.3 points on 240 sealed rows (97.5 % interval +2.6 to +14.5)."
    assert decide(NEW, OLD).outcome == "refused"


def test_every_look_is_in_the_ledger_and_the_same_scores_are_no_new_one(tmp_path):
    path = tmp_path / "ledger.jsonl"
    first = decide(OLD, NEW, rows=IDS, ledger=path)
    assert decide(OLD, NEW, rows=IDS, ledger=str(path)) == first
    other = decide(OLD, [*NEW[:-1], 0], rows=IDS, ledger=Ledger(path))
    assert first.evidence is not None and other.evidence is not None
    assert (first.evidence.looks, other.evidence.looks) == (1, 2)
    assert other.evidence.level > first.evidence.level
    assert [opening.outcome for opening in Ledger(path).openings()] == ["promoted", "promoted"]
    assert "row 1" not in path.read_text(), "names are kept as hashes"


def test_groups_name_the_rows_where_nothing_else_does(tmp_path):
    path = tmp_path / "ledger.jsonl"
    decide(OLD, NEW, groups=[i // 2 for i in range(240)], ledger=path)
    again = decide(NEW, OLD, groups=[str(i // 2) for i in range(240)], ledger=path)
    assert again.evidence is not None and again.evidence.looks == 2
    with pytest.raises(DatasetError, match="A ledger knows rows by their names"):
        decide(OLD, NEW, ledger=path)


def test_scores_that_do_not_differ_spend_nothing(tmp_path):
    path = tmp_path / "ledger.jsonl"
    assert decide(OLD, OLD, rows=IDS, ledger=path).outcome == "unchanged"
    assert not path.exists()
    assert decide([1] * 2000, [1] * 2000, old_tokens=100, new_tokens=90).promoted_for == "tokens"


def test_tokens_may_be_given_row_by_row():
    found = decide(OLD, NEW, old_tokens=[10] * 240, new_tokens=np.full(240, 8))
    assert found.evidence is not None and found.evidence.tokens_ratio == pytest.approx(0.8)
    assert decide(OLD, NEW, new_tokens=5).evidence.tokens_ratio == 1


def test_repeats_count_by_their_mean():
    """Of 60 rows that run eight times each: more is seen than in one run of each, and less than in 480 rows."""
    random = np.random.default_rng(0)
    chance = random.uniform(0.2, 0.7, 60)
    old, new = (random.uniform(size=(60, 8)) < each[:, None] for each in (chance, chance + 0.2))
    many = decide(old.astype(float), new.astype(float)).evidence
    one = decide(old[:, 0].astype(float), new[:, 0].astype(float)).evidence
    as_rows = decide(old.ravel().astype(float), new.ravel().astype(float)).evidence
    assert many.high - many.low < one.high - one.low
    assert many.high - many.low > as_rows.high - as_rows.low
    assert many.n == 60


def test_a_rate_that_is_spent_is_the_ledgers_error(tmp_path):
    path = tmp_path / "ledger.jsonl"
    decide(OLD, NEW, rows=IDS, ledger=path, rate=0.4)
    with pytest.raises(LedgerError, match="is spent"):
        decide(NEW, OLD, rows=IDS, ledger=path, rate=0.05)


def test_scores_of_other_rows_are_refused():
    with pytest.raises(DatasetError, match="Not one of each for every row: {'old': 240, 'new': 239, 'groups': 240}"):
        decide(OLD, NEW[1:])
    with pytest.raises(DatasetError, match="The new score of row 3 is 2, outside"):
        decide([0, 1, 1], [0, 1, 2])


def test_it_needs_numpy_scipy_and_pydantic_alone(tmp_path):
    code = f"""
from dspy_toolkit.gate import decide, power
print(decide({OLD}, {NEW}, rows=range(240), ledger="ledger.jsonl").outcome)
print(decide([0.5, 0.25] * 40, [0.75, 0.5] * 40, groups=list(range(40)) * 2, ledger="ledger.jsonl").outcome)
print(power(gain=0.05).rows)
"""
    ran = alone(code, LIBRARY, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["promoted", "promoted", "758"]
    assert "not installed here" in alone("import pandas", LIBRARY, tmp_path).stderr, "the block holds"


def test_its_command_needs_a_terminals_packages_besides(tmp_path):
    for name, scores in (("old", OLD), ("new", NEW)):
        (tmp_path / f"{name}.csv").write_text("id,score\n" + "".join(f"{i},{s}\n" for i, s in enumerate(scores)))
    arguments = ["gate", "old.csv", "new.csv", "--ledger", "ledger.jsonl"]
    ran = alone(f"from dspy_toolkit.cli import main\nmain({arguments})", LIBRARY | TERMINAL, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("promoted: Better than the champion: +8.3 points")
