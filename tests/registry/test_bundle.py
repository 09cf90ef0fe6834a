"""A program as one file: what goes in comes out elsewhere, and nothing that is made up is taken."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from dspy_toolkit.errors import ModelError, RegistryError, ToolkitError
from dspy_toolkit.lm.models.adapters import find_adapter
from dspy_toolkit.project import load_project, register
from dspy_toolkit.project.finding import _registered
from dspy_toolkit.registry import list_projects, list_versions, load_version, promote, undo
from dspy_toolkit.registry.bundle import INDEX_FILE, read_bundle
from dspy_toolkit.registry.exports import export_bundle
from dspy_toolkit.registry.importing import import_program
from dspy_toolkit.registry.manifest import KeptVerdict
from dspy_toolkit.registry.programs import load_program
from dspy_toolkit.registry.verdicts import keep_verdict, promote_by_verdict
from dspy_toolkit.settings import Settings
from dspy_toolkit.store import Store
from dspy_toolkit.tracking.history import read_history
from tests.conftest import QUESTIONS
from tests.registry.test_adapters import saved
from tests.registry.test_rows import saved as with_rows

MEMBER = {"instructions": "Be brief.", "neighbors": {"rows": "../x"}}
"""Of an ensemble, with rows that are no hash."""


@pytest.fixture
def bundle(home: Settings, save_questions: Callable[..., int], tmp_path: Path) -> Path:
    promote(home, "questions", save_questions("Be brief."))
    path = tmp_path / "questions.bundle"
    export_bundle(home, "questions@champion", path)
    return path


def rewritten(bundle: Path, changes: dict[str, bytes | None], *, index: dict[str, Any] | None = None) -> Path:
    """A bundle with some members replaced, added or left out, and its index made to agree, but for what `index` says."""
    with zipfile.ZipFile(bundle) as file:
        members = {name: file.read(name) for name in file.namelist()}
    about = json.loads(members.pop(INDEX_FILE))
    members = {name: data for name, data in {**members, **changes}.items() if data is not None}
    about["parts"] = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in members.items()
    }
    path = bundle.with_name("rewritten.bundle")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(INDEX_FILE, json.dumps({**about, **(index or {})}))
        for name, data in members.items():
            file.writestr(name, data)
    return path


def with_state(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A bundle whose program was changed by somebody who knows where all the hashes stand."""
    found = read_bundle(bundle)
    change(found.state)
    program = json.dumps(found.state).encode()
    manifest = found.manifest.model_copy(update={"program_sha256": hashlib.sha256(program).hexdigest()})
    return rewritten(bundle, {"program.json": program, "manifest.json": manifest.model_dump_json().encode()})


def test_a_folder_of_the_projects_name_is_no_saved_program(
    home: Settings, save_questions: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(home, "questions", save_questions())
    monkeypatch.chdir(tmp_path)
    Path("questions").mkdir()  # as `projects new questions` makes one
    export_bundle(home, "questions", tmp_path / "bundle.zip")
    assert read_bundle(tmp_path / "bundle.zip").about.version == 1


def test_a_program_comes_to_another_home(bundle: Path, other: Settings, questions: Path) -> None:
    made = import_program(other, bundle, str(questions))
    assert (made.project, made.version, made.there_already, made.fits) == ("questions", 1, False, True)
    assert (made.origin.project, made.origin.version) == ("questions", 1)
    loaded = load_program(other, "questions@1")
    assert loaded.program.predictors()[0].signature.instructions == "Be brief."
    assert [demo["text"] for demo in loaded.program.predictors()[0].demos] == ["Who wrote Emma?"]
    assert loaded.manifest is not None and loaded.manifest.imported == made.origin
    assert loaded.manifest.trained_rows == ("a", "b")
    assert read_history(other).runs == ()  # nothing was optimized


def test_equal_programs_have_equal_bytes_and_no_place_of_this_machine(
    bundle: Path, home: Settings, questions: Path
) -> None:
    again = bundle.with_name("again")
    export_bundle(home, "questions@1", again)
    assert again.read_bytes() == bundle.read_bytes()
    with zipfile.ZipFile(bundle) as file:
        assert all(str(questions.parent).encode() not in file.read(name) for name in file.namelist())


@pytest.mark.parametrize(
    ("champion_then", "sha256", "kept", "said"),
    [
        (None, "", True, ""),  # against the project's own program
        (7, "a" * 64, True, "the champion of another home"),
        (7, "", False, "never compared"),  # of a champion that only its own home knows
    ],
)
def test_a_verdict_travels_where_it_can_be_understood(
    home: Settings, other: Settings, save_questions: Callable[..., int], questions: Path, tmp_path: Path,
    champion_then: int | None, sha256: str, kept: bool, said: str,
) -> None:  # fmt: skip
    """Also one that was reached after the version was saved."""
    save_questions("Be brief.")
    verdict = KeptVerdict(outcome="promoted", reason="Better.", champion=champion_then, champion_sha256=sha256)
    keep_verdict(home, "questions", 1, verdict)
    export_bundle(home, "questions@1", tmp_path / "b")
    import_program(other, tmp_path / "b", str(questions))
    found = load_version(other, "questions@1")[1].verdict
    assert (found is not None) is kept
    if kept:
        assert promote_by_verdict(other, "questions@1").replaced is None
        undo(other, "questions", 1)
    first = questions.with_name("other.toml")
    first.write_text(QUESTIONS)
    promote(
        other,
        "questions",
        import_program(other, with_state(tmp_path / "b", lambda state: state.update(demos=[])), str(first)).version,
    )
    with pytest.raises(RegistryError, match=said or "the project's own program"):
        promote_by_verdict(other, "questions@1")


def test_the_same_bundle_twice_is_one_version(bundle: Path, other: Settings, questions: Path) -> None:
    first = import_program(other, bundle, str(questions))
    again = import_program(other, bundle, str(questions))
    assert (again.version, again.there_already) == (first.version, True)
    assert len(list_versions(other, "questions")) == 1


def test_fields_that_are_called_otherwise_are_mapped(bundle: Path, other: Settings, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.toml"
    theirs.write_text(
        QUESTIONS.replace('"questions"', '"theirs"').replace("text: str", "query: str").replace('["text"]', '["query"]')
    )
    with pytest.raises(RegistryError, match=r"does not fit theirs: .*--map OLD=NEW.*label, query"):
        import_program(other, bundle, str(theirs))
    with pytest.raises(RegistryError, match="no field 'txt'. Did you mean text"):
        import_program(other, bundle, str(theirs), {"txt": "query"})
    made = import_program(other, bundle, str(theirs), {"text": "query"})
    program = load_program(other, f"theirs@{made.version}").program
    assert program.predictors()[0].demos[0]["query"] == "Who wrote Emma?"


def test_a_bundle_of_an_unknown_project_waits_for_it(bundle: Path, other: Settings, questions: Path) -> None:
    made = import_program(other, bundle)
    assert not made.fits
    register(load_project(str(questions)))
    try:
        assert load_program(other, "questions@1").program.predictors()[0].signature.instructions == "Be brief."
    finally:
        _registered.pop("questions")


def test_an_adapter_travels_with_its_program(home: Settings, other: Settings, tmp_path: Path) -> None:
    sha256, state = saved(home)
    export_bundle(home, "router@1", tmp_path / "router.bundle")
    found = read_bundle(tmp_path / "router.bundle")
    assert found.state == state and set(found.adapters) == {sha256}
    assert import_program(other, tmp_path / "router.bundle").version == 1
    assert find_adapter(other.path(), sha256).sha256 == sha256
    assert load_version(other, "router@1")[0] == state


def test_rows_travel_with_the_program_that_chooses_among_them(home: Settings, other: Settings, tmp_path: Path) -> None:
    ref, _ = with_rows(home)
    export_bundle(home, "router@1", tmp_path / "router.bundle")
    found = read_bundle(tmp_path / "router.bundle")
    assert set(found.rows) == {ref.sha256}
    assert import_program(other, tmp_path / "router.bundle").version == 1
    assert Store(other.objects).read_json(ref) == Store(home.objects).read_json(ref)
    assert load_version(other, "router@1")[0] == load_version(home, "router@1")[0]


def test_rows_that_are_missing_or_others_are_refused(home: Settings, other: Settings, tmp_path: Path) -> None:
    ref, _ = with_rows(home)
    export_bundle(home, "router@1", tmp_path / "router.bundle")
    name = f"rows/{ref.sha256}.json"
    with pytest.raises(RegistryError, match=f"the rows {ref.sha256[:8]} have another hash"):
        import_program(other, rewritten(tmp_path / "router.bundle", {name: b"{}"}))
    with pytest.raises(RegistryError, match="which its program does not have"):
        import_program(other, rewritten(tmp_path / "router.bundle", {f"rows/{'a' * 64}.json": b"{}"}))
    with pytest.raises(RegistryError, match="neither the bundle nor this home holds"):
        import_program(other, rewritten(tmp_path / "router.bundle", {name: None}))
    assert not list_projects(other)


def test_an_adapter_of_another_content_is_not_kept(home: Settings, other: Settings, tmp_path: Path) -> None:
    sha256, _ = saved(home)
    export_bundle(home, "router@1", tmp_path / "router.bundle")
    name = f"adapters/{sha256}/adapter_config.json"
    changed = json.dumps({"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {}}).encode()
    with pytest.raises(ModelError, match="damaged or changed"):
        import_program(other, rewritten(tmp_path / "router.bundle", {name: changed}))
    assert not other.path("adapters").exists()


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/evil",
        "adapters/../../evil",
        "evil.pkl",
        "program.json/../x",
        "C:\\evil",
        "adapters/" + "a" * 64 + "/x.py",
    ],
)
def test_a_member_that_a_bundle_does_not_have_is_refused(bundle: Path, name: str) -> None:
    with pytest.raises(RegistryError, match="no part of a bundle. Nothing was taken"):
        read_bundle(rewritten(bundle, {name: b"x"}))


def test_a_link_is_refused(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as file:
        members = {name: file.read(name) for name in file.namelist()}
    path = bundle.with_name("link.bundle")
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = 0o120777 << 16 if name == "program.json" else 0
            file.writestr(member, data)
    with pytest.raises(RegistryError, match="program.json is a link"):
        read_bundle(path)


def test_a_member_twice_is_refused(bundle: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(bundle, "a") as file:
        file.writestr("program.json", b"{}")
    with pytest.raises(RegistryError, match="'program.json' twice"):
        read_bundle(bundle)


def test_a_part_that_unpacks_to_more_than_it_may_is_not_unpacked(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as file:
        members = {name: file.read(name) for name in file.namelist()}
    path = bundle.with_name("bomb.bundle")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data if name != INDEX_FILE else b" " * (2**20 + 1) + data)
    assert path.stat().st_size < 20_000
    with pytest.raises(RegistryError, match="bundle.json has more than 1,048,576 bytes"):
        read_bundle(path)
    # A size that is not true: said to be small in the directory.
    data = bytearray(path.read_bytes())
    at = data.rindex(INDEX_FILE.encode()) - 46
    data[at + 24 : at + 28] = (100).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(RegistryError):
        read_bundle(path)


def test_changed_bytes_are_named(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as file:
        parts = json.loads(file.read(INDEX_FILE))["parts"]
    changed = rewritten(bundle, {"program.json": b"{}"}, index={"parts": parts})
    with pytest.raises(RegistryError, match="program.json is not what its index says"):
        read_bundle(changed)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.update(forward="x"), "'forward', which is no part"),
        (lambda state: state.update(__class__="x"), "'__class__', which is no part"),
        (lambda state: state.update(demos=["x"]), "no list of demonstrations"),
        (lambda state: state.pop("signature"), "no signature"),
        (lambda state: state.clear(), "no predictor's state"),
        (lambda state: state.update(adapter="01234567"), "neither"),
        (lambda state: state.update(ensemble={"members": 5}), "`ensemble` makes no sense"),
        (lambda state: state.update(ensemble=["x"]), "`ensemble` makes no sense"),
        (
            lambda state: state.update(ensemble={"rule": "majority", "members": [{"forward": "x"}] * 2}),
            "makes no sense",
        ),
        (
            lambda state: state.update(ensemble={"rule": "majority", "members": [MEMBER] * 2}),
            "`neighbors` makes no sense",
        ),
        (lambda state: state.update(neighbors="../x"), "`neighbors` makes no sense"),
    ],
)
def test_a_state_that_no_program_has_is_refused(
    bundle: Path, other: Settings, questions: Path, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    made = with_state(bundle, change)
    with pytest.raises(ToolkitError, match=said):
        import_program(other, made, str(questions))
        load_version(other, "questions@1")


def test_the_address_of_a_model_is_neither_exported_nor_imported(
    bundle: Path, other: Settings, questions: Path
) -> None:
    made = with_state(bundle, lambda state: state.update(lm={"model": "openai/x", "api_base": "http://evil"}))
    import_program(other, made, str(questions))
    assert load_version(other, "questions@1")[0]["lm"] is None


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="cannot be read: No such file"):
        read_bundle(tmp_path / "none")
    with pytest.raises(RegistryError, match="cannot be read: Is a directory"):
        read_bundle(tmp_path)
    for number, data in enumerate((b"", b"PK", b"\x80\x04K\x01.", zip_of({"a": b""}), zip_of({}))):
        (tmp_path / str(number)).write_bytes(data)
        with pytest.raises(RegistryError, match="bundle"):
            read_bundle(tmp_path / str(number))


def zip_of(members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return made.getvalue()


@hypothesis(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_done_to_a_bundle_it_is_read_as_it_was_or_refused(bundle: Path, tmp_path: Path, data: Any) -> None:
    whole = bundle.read_bytes()
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if kind == "flip":
            changed[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del changed[at : at + data.draw(st.integers(1, 64))]
        else:
            changed[at:at] = data.draw(st.binary(min_size=1, max_size=64))
        if not changed:
            break
    folder = tmp_path / "fuzz"
    folder.mkdir(exist_ok=True)
    (folder / "b").write_bytes(bytes(changed))
    before = sorted(os.listdir(tmp_path))
    try:
        found = read_bundle(folder / "b")
    except RegistryError:
        pass
    else:
        was = read_bundle(bundle)
        assert (found.state, found.manifest, found.adapters) == (was.state, was.manifest, was.adapters)
    assert sorted(os.listdir(tmp_path)) == before and os.listdir(folder) == ["b"]
