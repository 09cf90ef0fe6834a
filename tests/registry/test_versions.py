"""Versions are saved whole, found by their names, and read only when they are the bytes that were saved."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dspy_toolkit.errors import RegistryError
from dspy_toolkit.registry import (
    find_version,
    list_projects,
    list_versions,
    load_version,
    promote,
    reading,
)
from dspy_toolkit.registry.deleting import delete_version
from dspy_toolkit.registry.manifest import Manifest
from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking import runs as tracking


def artifact(home: Settings, version: int, name: str) -> Path:
    """The stored file of a version of `router`."""
    run_id = find_version(home, f"router@{version}").run_id
    return home.path("artifacts", run_id, "artifacts", "program", name)


def test_a_saved_version_comes_back_by_number_alias_and_folder(home: Settings, save, tmp_path: Path) -> None:
    assert [save("one"), save("two")] == [1, 2]
    promote(home, "router", 2)
    state, manifest = load_version(home, "router@1")
    assert state == {"text": "one"}
    assert isinstance(manifest, Manifest)
    assert manifest.project == "router"
    assert load_version(home, "router@champion")[0] == {"text": "two"}
    folder = shutil.copytree(artifact(home, 2, "program.json").parent, tmp_path / "kept@home")
    assert load_version(home, str(folder))[0] == {"text": "two"}


def test_files_lie_under_home_even_when_it_has_a_space(home: Settings, save) -> None:
    save("one")
    assert artifact(home, 1, "program.json").exists()
    assert artifact(home, 1, "manifest.json").exists()


def test_a_list_tells_what_people_ask(home: Settings, save) -> None:
    save("one", optimizer="mipro")
    save("two", optimizer="gepa")
    promote(home, "router", 1)
    promote(home, "router", 2)
    first, second = list_versions(home, "router")
    assert (first.version, first.optimizer, first.aliases, first.previous) == (1, "mipro", (), None)
    assert (second.version, second.optimizer, second.aliases, second.previous) == (2, "gepa", ("champion",), 1)
    assert first.program_sha256 != second.program_sha256
    assert first.created <= second.created
    assert list_projects(home) == ["router"]


def test_saving_again_on_the_same_run_is_the_same_version(home: Settings, save) -> None:
    run_id = tracking.open_run(home, "router", "optimize router")
    assert save("one", run_id=run_id) == save("one", run_id=run_id) == 1
    with pytest.raises(RegistryError, match=r"already holds router@1, another program"):
        save("two", run_id=run_id)
    assert load_version(home, "router@1")[0] == {"text": "one"}


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("router@7", "No version 7 of router; it has 1, 2. Run `dspy-toolkit programs list router`."),
        ("router@champion", "Nothing of router is promoted yet; it has 1, 2."),
        ("router@champoin", "router has no alias 'champoin'."),
        ("ruoter@1", "The registry has no program of 'ruoter'. Did you mean router?"),
        ("a'b@1", 'The registry has no program of "a\'b". Known: router.'),
        ("router", "there is no such folder. Write project@champion, project@3, or a folder's path."),
        ("router@", "there is no such folder."),
    ],
)
def test_a_wrong_name_gets_the_nearest_and_the_next_command(
    home: Settings, save, reference: str, expected: str
) -> None:
    save("one")
    save("two")
    with pytest.raises(RegistryError, match=re.escape(expected)):
        load_version(home, reference)


def test_a_misspelt_alias_is_corrected(home: Settings, save) -> None:
    promote(home, "router", save("one"))
    with pytest.raises(RegistryError, match="Did you mean champion?"):
        load_version(home, "router@champoin")


def test_reading_makes_nothing(tmp_path: Path) -> None:
    home = Settings(home=tmp_path / "none")
    with pytest.raises(RegistryError, match="flows.optimize_program --project router"):
        list_versions(home, "router")
    assert list_projects(home) == []
    assert list(tmp_path.iterdir()) == []


def test_a_changed_program_is_refused(home: Settings, save) -> None:
    save("one")
    artifact(home, 1, "program.json").write_text(json.dumps({"text": "evil"}))
    with pytest.raises(RegistryError, match=r"program.json of router@1 was changed after it was saved"):
        load_version(home, "router@1")


def test_a_version_without_its_manifest_is_not_whole(home: Settings, save) -> None:
    save("one")
    artifact(home, 1, "manifest.json").unlink()
    with pytest.raises(RegistryError, match=r"no manifest.json can be read there"):
        load_version(home, "router@1")


def test_a_version_whose_files_are_gone_says_so(home: Settings, save) -> None:
    save("one")
    shutil.rmtree(home.path("artifacts"))
    with pytest.raises(RegistryError, match="router@1"):
        load_version(home, "router@1")


def test_a_pickle_is_never_opened(home: Settings, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "exploded",))

    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "program.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(RegistryError, match="the folder holds program.pkl"):
        load_version(home, str(tmp_path / "old"))
    with pytest.raises(RegistryError, match="nothing but JSON is read"):
        load_version(home, str(tmp_path / "old" / "program.pkl"))
    (tmp_path / "old" / "program.pkl").rename(tmp_path / "old" / "program.json")
    shutil.copy(tmp_path / "old" / "program.json", tmp_path / "old" / "manifest.json")
    with pytest.raises(RegistryError, match="is not JSON"):
        load_version(home, str(tmp_path / "old"))
    assert not (tmp_path / "exploded").exists()


def test_a_version_that_holds_another_project_is_refused(home: Settings, save) -> None:
    save("one")
    save("two", project="lora")
    lora = home.path("artifacts", find_version(home, "lora@1").run_id, "artifacts", "program")
    for name in ("program.json", "manifest.json"):
        shutil.copy(lora / name, artifact(home, 1, name))
    with pytest.raises(RegistryError, match="router@1 holds a program of lora"):
        load_version(home, "router@1")


def test_a_name_that_mlflow_cannot_keep_is_refused_before_writing(home: Settings, save) -> None:
    with pytest.raises(RegistryError, match="letters, digits"):
        save("one", project="a/b")
    assert list_projects(home) == []


def test_lists_are_read_without_mlflow_and_say_what_it_says(
    home: Settings, save, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", "three"):
        save(name, optimizer=name)
    promote(home, "router", 1)
    promote(home, "router", 2)
    delete_version(home, "router@3")
    kept = reading.saved_model(home, "router")
    assert kept is not None and kept.aliases == {"champion": 2}
    assert reading.saved_names(home) == ["router"] and reading.saved_model(home, "another") is None
    quick = list_versions(home, "router"), list_projects(home)
    monkeypatch.setattr(reading, "SCHEMA", "another one")
    assert reading.saved_model(home, "router") is None and reading.saved_names(home) is None
    assert (list_versions(home, "router"), list_projects(home)) == quick
    assert [version.version for version in quick[0]] == [1, 2]


def test_a_list_imports_no_mlflow(home: Settings, save) -> None:
    save("one")
    asked = (
        "import sys\n"
        "from dspy_toolkit.registry import list_projects, list_versions\n"
        "from dspy_toolkit.settings import load_settings\n"
        "settings = load_settings(home=sys.argv[1])\n"
        "print([len(list_versions(settings, name)) for name in list_projects(settings)], 'mlflow' in sys.modules)\n"
    )
    said = subprocess.run([sys.executable, "-c", asked, str(home.path())], capture_output=True, text=True, check=True)
    assert said.stdout == "[1] False\n"
