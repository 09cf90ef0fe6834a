"""Who may become the champion: by a verdict that holds, or past the gate with a reason; and the way back stays walkable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from dspy_toolkit.errors import RegistryError
from dspy_toolkit.registry import champion, champions, find_version, list_versions, promote, rollback
from dspy_toolkit.registry.deleting import delete_version
from dspy_toolkit.registry.manifest import KeptVerdict
from dspy_toolkit.registry.verdicts import keep_verdict, promote_by_verdict
from dspy_toolkit.settings import Settings

ROOT = Path(__file__).parents[2]


def passed(against: int | None, sha256: str | None = "") -> dict[str, Any]:
    verdict = KeptVerdict(outcome="promoted", reason="Better.", champion=against, champion_sha256=sha256 or "")
    return {"verdict": verdict}


def numbers(home: Settings, project: str = "router") -> list[int]:
    return [version.version for version in champions(home, project)]


def test_a_verdict_holds_for_the_champion_it_was_a_comparison_with(home: Settings, save) -> None:
    promote(home, "router", save("one"))
    first = champion(home, "router").sha256
    save("two", **passed(1, first))
    save("three", **passed(1, first))
    made = promote_by_verdict(home, "router@2")
    assert (made.version, made.replaced, made.forced) == (2, 1, "")
    with pytest.raises(
        RegistryError, match=r"passed the gate against version 1, and the champion is version 2.*reprove router@3"
    ):
        promote_by_verdict(home, "router@3")
    assert numbers(home) == [2, 1]
    rollback(home, "router")
    assert promote_by_verdict(home, "router@3").replaced == 1  # what it was compared with is live again


def test_who_did_not_pass_or_was_never_compared_stays(home: Settings, save) -> None:
    promote(home, "router", save("one"))
    save("two")
    save("three", verdict=KeptVerdict(outcome="refused", reason="Worse than the champion: it is.", champion=1))
    with pytest.raises(RegistryError, match="router@2 was never compared"):
        promote_by_verdict(home, "router@2")
    with pytest.raises(RegistryError, match="router@3 did not pass the gate: Worse than the champion: it is"):
        promote_by_verdict(home, "router@3")
    assert champion(home, "router").version == 1


def test_a_later_verdict_goes_before_the_manifests(home: Settings, save) -> None:
    promote(home, "router", save("one"))
    save("two")
    sha256 = champion(home, "router").sha256 or ""
    keep_verdict(
        home, "router", 2, KeptVerdict(outcome="promoted", reason="Asked anew.", champion=1, champion_sha256=sha256)
    )
    assert promote_by_verdict(home, "router@2").verdict == KeptVerdict(
        outcome="promoted", reason="Asked anew.", champion=1, champion_sha256=sha256
    )


def test_the_first_champion_is_the_projects_own_program_or_one_that_passed(home: Settings, save) -> None:
    save("found", optimizer="bootstrap")
    with pytest.raises(RegistryError, match="never compared"):
        promote_by_verdict(home, "router@1")
    save("own", optimizer="none")
    assert promote_by_verdict(home, "router@2").replaced is None


def test_force_needs_a_reason_which_is_kept_until_the_gate_promotes_it(home: Settings, save) -> None:
    promote(home, "router", save("one"))
    save("two")
    with pytest.raises(RegistryError, match="without a reason"):
        promote_by_verdict(home, "router@2", force=True, reason=" ")
    with pytest.raises(RegistryError, match="Add --force"):
        promote_by_verdict(home, "router@2", reason="because")
    made = promote_by_verdict(home, "router@2", force=True, reason="the customer\nasked for it")
    assert made.forced == find_version(home, "router@2").forced == "the customer asked for it"
    assert find_version(home, "router@2").promoted is not None
    rollback(home, "router")
    promote(home, "router", 2)
    assert find_version(home, "router@2").forced == ""


def test_a_version_whose_files_are_damaged_does_not_become_the_champion(home: Settings, save) -> None:
    promote(home, "router", save("one"))
    save("two", **passed(1, champion(home, "router").sha256))
    run_id = find_version(home, "router@2").run_id
    home.path("artifacts", run_id, "artifacts", "program", "program.json").write_text("{}")
    with pytest.raises(RegistryError, match="was changed after it was saved"):
        promote_by_verdict(home, "router@2")
    assert champion(home, "router").version == 1


def test_an_earlier_champion_that_is_promoted_again_leaves_its_place_in_the_chain(home: Settings, save) -> None:
    for text in ("one", "two", "three"):
        promote(home, "router", save(text))
    promote(home, "router", 1)
    assert numbers(home) == [1, 3, 2]
    assert [rollback(home, "router"), rollback(home, "router")] == [3, 2]
    with pytest.raises(RegistryError, match="router@2 is the first champion"):
        rollback(home, "router")


@hypothesis(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from([1, 2, 3, 4, 0, -2, -3]), min_size=1, max_size=10))
def test_the_chain_is_never_a_circle(home: Settings, save, steps: list[int]) -> None:
    """Promote n, roll back (0), delete -n, in any order: the way back has each version once, and ends."""
    project = "p" + "".join(map(str, steps)).replace("-", "d")
    for number in range(4):
        save(f"{project} {number}", project=project)
    for step in steps:
        try:
            if step > 0:
                promote(home, project, step)
            elif step == 0:
                rollback(home, project)
            else:
                delete_version(home, f"{project}@{-step}")
        except RegistryError:
            pass
        walked = champions(home, project)
        there = {version.version for version in list_versions(home, project)}
        assert len({version.version for version in walked}) == len(walked)
        assert not walked or (walked[-1].previous is None and walked[0].version == champion(home, project).version)
        assert {version.version for version in walked} <= there


def test_a_deleted_version_leaves_the_way_back_whole_and_its_number_unused(home: Settings, save) -> None:
    for text in ("one", "two", "three"):
        promote(home, "router", save(text))
    with pytest.raises(RegistryError, match="is the champion, and is not deleted"):
        delete_version(home, "router@3")
    with pytest.raises(RegistryError, match="Write its number"):
        delete_version(home, "router@champion")
    assert delete_version(home, "router@2").version == 2
    assert numbers(home) == [3, 1]
    assert rollback(home, "router") == 1
    assert delete_version(home, "router@3").version == 3
    assert save("four") == 4


def test_what_the_champions_losses_are_counted_from_is_not_deleted(home: Settings, save) -> None:
    promote(home, "router", save("one"))
    promote(home, "router", save("two", promoted_for="tokens", anchor=1))
    with pytest.raises(RegistryError, match="losses are counted from"):
        delete_version(home, "router@1")


PROMOTE = """
import json, os, sys, traceback
from dspy_toolkit.registry.verdicts import promote_by_verdict
from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking.mlflow_client import _load
_load()  # once, before the processes part: it takes seconds
home, reason, folder, *versions = sys.argv[1:]
started = []
for version in versions:
    if (child := os.fork()) == 0:
        try:
            made = promote_by_verdict(Settings(home=home), f"router@{version}", force=bool(reason), reason=reason)
            said = [made.version, made.replaced]
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        with open(os.path.join(folder, version), "w") as file:
            json.dump(said, file)
        os._exit(0)
    started.append(child)
for child in started:
    os.waitpid(child, 0)
"""


def eight_processes(home: Settings, folder: Path, reason: str = "") -> list[Any]:
    """What each of eight processes, which promote the versions 2 to 9 at once, said."""
    folder.mkdir()
    versions = [str(version) for version in range(2, 10)]
    subprocess.run(
        [sys.executable, "-c", PROMOTE, str(home.path()), reason, str(folder), *versions], cwd=ROOT, check=True
    )
    return [json.loads((folder / version).read_text()) for version in versions]


def test_eight_processes_that_promote_at_once_leave_one_champion_and_a_walkable_history(
    home: Settings, save, tmp_path: Path
) -> None:
    promote(home, "router", save("first"))
    for number in range(8):
        save(str(number))
    said = eight_processes(home, tmp_path / "said", "a race")
    walked = champions(home, "router")
    assert sorted(version.version for version in walked) == list(range(1, 10)), said
    assert walked[-1].version == 1
    # What each process said that it replaced is what the history has.
    assert sorted(said) == sorted([version.version, version.previous] for version in walked[:-1])
    assert [version.aliases for version in walked] == [("champion",)] + [()] * 8


@pytest.mark.soak
def test_of_eight_that_beat_the_same_champion_one_is_promoted(home: Settings, save, tmp_path: Path) -> None:
    promote(home, "router", save("first"))
    sha256 = champion(home, "router").sha256
    for number in range(8):
        save(str(number), **passed(1, sha256))
    said = eight_processes(home, tmp_path / "said")
    refused = [each for each in said if isinstance(each, str)]
    (done,) = [each for each in said if not isinstance(each, str)]
    assert len(refused) == 7 and all("RegistryError" in each and "champion is" in each for each in refused), said
    assert [version.version for version in champions(home, "router")] == [done[0], 1]
