"""The ledger: what it grants, that it never grants more than the rate, and that nothing makes it forget."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_toolkit import locks
from dspy_toolkit.errors import LedgerError
from dspy_toolkit.gate.ledger import POWER_LAW, Ledger
from dspy_toolkit.store import Ref, digest

ROWS = [f"row{i}" for i in range(100)]
_names = count()

ASK_ON_A_FULL_DISK = """
import resource, sys
from dspy_toolkit.errors import LedgerError
from dspy_toolkit.gate.ledger import Ledger

path, size = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    Ledger(path).grant(["row"], project="router", candidate="other", champion="champion", rate=0.05)
except LedgerError as error:
    print(error)
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "home" / "ledger.jsonl")


def ask(ledger: Ledger, rows=ROWS, *, project="router", candidate=None, champion="champion", rate=0.05):
    """A grant for a candidate that nobody has asked about before."""
    candidate = candidate or f"candidate{next(_names)}"
    return ledger.grant(rows, project=project, candidate=candidate, champion=champion, rate=rate)


def test_the_first_opening_spends_a_quarter_and_later_ones_less_and_less(ledger):
    first, second, third = ask(ledger), ask(ledger), ask(ledger)
    assert (first.alpha, first.looks, first.left) == (pytest.approx(0.0125), 1, pytest.approx(0.75))
    assert (second.alpha, second.looks) == (pytest.approx(0.0125 / 2**POWER_LAW), 2)
    assert (third.alpha, third.looks) == (pytest.approx(0.0125 / 3**POWER_LAW), 3)
    assert third.left == pytest.approx(1 - (first.alpha + second.alpha + third.alpha) / 0.05)


def test_all_openings_there_can_ever_be_spend_the_rate_and_no_more():
    from scipy.special import zeta

    assert 0.999 < 0.25 * zeta(POWER_LAW) <= 1


def test_ninety_nights_do_not_spend_more_than_the_rate(ledger):
    alphas = [ask(ledger).alpha for _ in range(90)]
    assert all(alpha > 1e-5 for alpha in alphas), "the ninetieth night has something to work with"
    assert sum(alphas) <= 0.05


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.frozensets(st.integers(0, 11), min_size=1), min_size=1, max_size=12), st.sampled_from([0.01, 0.05, 0.2])
)
def test_no_test_set_spends_more_than_the_rate_however_sets_overlap(sets, rate):
    with TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.jsonl")
        spent: dict[frozenset[int], float] = {}
        for rows in sets:
            try:
                grant = ask(ledger, [f"r{row}" for row in rows], rate=rate)
            except LedgerError:
                continue
            spent[rows] = spent.get(rows, 0) + grant.alpha
            assert 0 <= grant.left <= 0.75
        assert all(total <= rate for total in spent.values())


def components(sets):
    """The sets that share a row, directly or through others."""
    parts: list[tuple[set[int], list[int]]] = []
    for index, rows in enumerate(sets):
        touched = [part for part in parts if part[0] & rows]
        parts = [part for part in parts if not part[0] & rows]
        parts.append((set(rows).union(*(p[0] for p in touched)), [index, *(i for p in touched for i in p[1])]))
    return [indices for _, indices in parts]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.frozensets(st.integers(0, 11), min_size=1, max_size=4), min_size=1, max_size=14),
    st.sampled_from([0.01, 0.05, 0.2]),
)
def test_all_openings_that_are_connected_by_shared_rows_spend_one_rate_together(sets, rate):
    with TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.jsonl")
        granted: list[tuple[frozenset[int], float]] = []
        for rows in sets:
            try:
                granted.append((rows, ask(ledger, [f"r{row}" for row in rows], rate=rate).alpha))
            except LedgerError:
                continue
        for together in components([rows for rows, _ in granted]):
            assert sum(granted[index][1] for index in together) <= rate


def test_rows_that_are_added_bring_no_part_of_the_rate_back(ledger):
    """Not by their share: a test set that grows by one row a night would spend the rate over and over."""
    ask(ledger)
    grown = ask(ledger, ROWS + [f"new{i}" for i in range(10_000)])
    assert grown.alpha == pytest.approx(0.0125 / 2**POWER_LAW)
    assert grown.looks == 2


def test_a_year_of_rows_that_grow_spends_one_rate(ledger):
    rows, alphas = list(ROWS), []
    for night in range(120):
        rows = [*rows[1:], f"new{night}", f"newer{night}"]  # after a hundred nights no row of the first is left
        alphas.append(ask(ledger, rows).alpha)
    assert sum(alphas) <= 0.05


def test_a_part_of_a_test_set_has_seen_all_of_its_openings(ledger):
    ask(ledger)
    assert ask(ledger, ROWS[:10]).looks == 2


def test_test_sets_that_a_third_one_connects_share_its_rate(ledger):
    ask(ledger, ["a", "b"])
    ask(ledger, ["c", "d"])
    assert ask(ledger, ["b", "c"]).looks == 3
    assert ask(ledger, ["a"]).looks == 4


def test_a_row_is_known_again_by_any_of_its_names(ledger):
    ask(ledger, ["row hash", "text hash"])
    assert ask(ledger, ["another row hash", "text hash"]).looks == 2
    assert ask(ledger, ["another row hash", "another text hash"]).looks == 3


def old_ledger(path: Path, rows: list[str], alphas: list[float]) -> None:
    """As version 0.1.0 wrote it: row hashes, and a quarter of what was left each time."""
    test_set = digest(sorted(rows))
    lines = [{"line": "test_set", "test_set": test_set, "rows": sorted(rows)}]
    for look, alpha in enumerate(alphas, start=1):
        lines.append(
            {"line": "grant", "id": f"{look:032}", "time": "2026-01-01T00:00:00+00:00", "project": "router"}
            | {"test_set": test_set, "candidate": f"c{look}", "champion": "champion", "alpha": alpha, "rate": 0.05}
            | {"looks": look, "left": 0.75**look}
        )
        lines.append({"line": "result", "id": f"{look:032}", "time": "…", "outcome": "refused", "rows": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_version_0_1_0_spent_counts_and_its_lines_stay(ledger):
    alphas = [0.0125 * 0.75**look for look in range(8)]
    old_ledger(ledger.path, ["hash1", "hash2"], alphas)
    before = ledger.path.read_bytes()
    grant = ask(ledger, ["hash2", "text2"])
    assert grant.looks == 9
    assert grant.alpha == pytest.approx(0.0125 / 9**POWER_LAW)
    assert ask(ledger, ["text2"]).looks == 10, "known by its text from now on"
    assert ask(ledger, ["text3"]).looks == 1
    assert ledger.path.read_bytes().startswith(before)
    assert [opening.outcome for opening in ledger.openings()[:8]] == ["refused"] * 8


def test_where_version_0_1_0_spent_nearly_all_a_quarter_of_the_rest_is_granted(ledger):
    alphas = [0.0125 * 0.75**look for look in range(30)]
    old_ledger(ledger.path, ["hash1"], alphas)
    assert ask(ledger, ["hash1"]).alpha == pytest.approx((0.05 - sum(alphas)) / 4)


def test_the_same_scores_again_show_nothing_new_and_spend_nothing(ledger):
    asked = {"project": "p", "candidate": "scores", "champion": "old scores"}
    first = ledger.grant(ROWS, **asked, same_scores=True)
    ledger.record(first, "refused")
    assert ledger.grant(ROWS, **asked, same_scores=True) == first
    assert ledger.grant(ROWS, **(asked | {"candidate": "others"}), same_scores=True).looks == 2


def test_fresh_rows_start_anew(ledger):
    ask(ledger)
    fresh = ask(ledger, [f"fresh{i}" for i in range(100)])
    assert (fresh.alpha, fresh.looks) == (pytest.approx(0.0125), 1)


def test_the_order_of_rows_and_the_project_name_change_nothing(ledger):
    first = ask(ledger)
    second = ask(ledger, ROWS[::-1] + ROWS[:3], project="another")
    assert second.test_set == first.test_set
    assert second.looks == 2


def test_an_evaluation_that_died_has_spent_its_grant(ledger):
    ask(ledger)  # and nothing is recorded
    again = Ledger(ledger.path)
    assert ask(again).alpha < 0.0125
    assert [opening.outcome for opening in again.openings()] == [None, None]


def test_the_same_unanswered_question_gets_the_same_grant(ledger):
    first = ask(ledger, candidate="a")
    assert ask(Ledger(ledger.path), candidate="a") == first
    assert ask(ledger, candidate="b") != first
    ledger.record(first, "refused")
    answered = ask(ledger, candidate="a")
    assert answered.id != first.id and answered.looks == 3


def test_every_opening_is_listed_with_its_outcome(ledger):
    grant, rows = ask(ledger), Ref(sha256="ab" * 32, kind="parquet")
    ask(ledger)
    ledger.record(grant, "promoted", rows)
    first, second = ledger.openings()
    assert (first.grant, first.outcome, first.rows) == (grant, "promoted", rows)
    assert second.outcome is None


def test_the_file_only_grows(ledger):
    before = b""
    for _ in range(3):
        ledger.record(ask(ledger), "refused")
        after = ledger.path.read_bytes()
        assert after.startswith(before) and len(after) > len(before)
        before = after


def test_a_line_cut_short_is_dropped_because_nobody_was_given_its_grant(ledger):
    kept = ask(ledger)
    with open(ledger.path, "ab") as file:
        file.write(b'{"line":"grant","id":"x","ti')
    assert [opening.grant for opening in ledger.openings()] == [kept]
    assert ask(ledger).looks == 2
    assert len(ledger.openings()) == 2


def test_a_last_line_without_its_line_end_counts(ledger):
    """Some editors take it. The grant was given, and what comes next must not run into it."""
    kept = ask(ledger)
    ledger.path.write_bytes(ledger.path.read_bytes().rstrip(b"\n"))
    assert [opening.grant for opening in ledger.openings()] == [kept]
    assert ask(ledger).looks == 2
    assert len(ledger.openings()) == 2


@pytest.mark.parametrize("line", ["garbage", '{"line": "grant", "id": 3}', '{"line": "unknown"}'])
def test_a_damaged_line_is_an_error_that_names_it(ledger, line):
    ask(ledger)
    with open(ledger.path, "a") as file:
        file.write(line + "\n")
    with pytest.raises(LedgerError, match="line 3 is not a line of the ledger"):
        ask(ledger)


def test_a_grant_whose_rows_were_removed_is_an_error(ledger):
    ask(ledger)
    ledger.path.write_bytes(ledger.path.read_bytes().splitlines(keepends=True)[1])
    with pytest.raises(LedgerError, match="line 1"):
        ledger.openings()


def test_a_rate_that_is_spent_refuses_the_opening(ledger):
    ask(ledger, rate=0.4)
    with pytest.raises(LedgerError, match="opened 1 times and its false-promotion rate of 5% is spent. Test on fresh"):
        ask(ledger, rate=0.05)


def test_bad_requests_are_refused(ledger):
    with pytest.raises(LedgerError, match="has no rows"):
        ask(ledger, [])
    with pytest.raises(LedgerError, match="between 0 and 0.5, not at 1.5"):
        ask(ledger, rate=1.5)
    grant = ask(ledger)
    with pytest.raises(LedgerError, match="holds no grant"):
        ledger.record(grant.model_copy(update={"id": "other"}), "refused")


def test_a_home_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "home").write_text("a file, not a folder")
    with pytest.raises(LedgerError, match="Cannot write .*ledger"):
        ask(Ledger(tmp_path / "home" / "ledger.jsonl"))


def test_a_full_disk_leaves_the_ledger_as_it_was(ledger):
    """Room for ten more bytes: the operating system cuts the write short, then refuses. In a process of its own,
    since the limit holds for every file that a process writes, a log of these tests among them."""
    pytest.importorskip("resource")
    ask(ledger)
    before = ledger.path.read_bytes()
    child = subprocess.run(
        [sys.executable, "-c", ASK_ON_A_FULL_DISK, str(ledger.path), str(len(before) + 10)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    assert "Free some space" in child.stdout
    assert ledger.path.read_bytes() == before


def test_a_lock_that_somebody_keeps_is_one_clear_error(ledger, monkeypatch):
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.05)
    ask(ledger)
    with locks.held(Path(f"{ledger.path}.lock")), pytest.raises(LedgerError, match="Wait until it ends"):
        ask(ledger)


def test_two_runs_at_once_never_get_the_same_alpha(ledger):
    with ThreadPoolExecutor(4) as pool:
        grants = list(pool.map(lambda _: ask(Ledger(ledger.path)), range(12)))
    assert sorted(grant.looks for grant in grants) == list(range(1, 13))
    assert len({grant.alpha for grant in grants}) == 12


def test_nothing_is_made_before_the_first_grant(tmp_path):
    assert Ledger(tmp_path / "home" / "ledger.jsonl").openings() == []
    assert not (tmp_path / "home").exists()
