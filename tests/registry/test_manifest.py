"""What a version says about itself survives being written and read, and bad bytes are refused with a reason."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from dspy_toolkit.errors import RegistryError
from dspy_toolkit.registry.manifest import (
    SCHEMA_VERSION,
    Manifest,
    manifest_bytes,
    program_bytes,
    read_manifest,
    read_program,
)

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=8), plain, max_size=4)


def a_manifest(**changes: Any) -> Manifest:
    return Manifest(
        **{
            "project": "router",
            "signature_sha256": "f" * 64,
            "optimizer": "gepa",
            "model": "mlx/tiny",
            "metric": "exact",
        }
        | {"signature_fields": {"request": "str"}}
        | changes
    )


@settings(max_examples=40, deadline=None)
@given(reports=objects, optimizer_settings=objects, rows=st.lists(st.text(max_size=16), max_size=4))
def test_reading_inverts_writing(reports: Any, optimizer_settings: Any, rows: list[str]) -> None:
    manifest = a_manifest(reports=reports, optimizer_settings=optimizer_settings, trained_rows=rows, parent=3)
    assert read_manifest(manifest_bytes(manifest), "manifest.json") == manifest


@settings(max_examples=40, deadline=None)
@given(state=objects)
def test_program_is_read_back_when_its_hash_fits(state: dict[str, Any]) -> None:
    data = program_bytes(state)
    manifest = a_manifest(program_sha256=hashlib.sha256(data).hexdigest())
    assert read_program(data, manifest, "program.json") == state
    with pytest.raises(RegistryError, match="was changed after it was saved"):
        read_program(data + b" ", manifest, "program.json")


def test_equal_programs_have_equal_bytes() -> None:
    assert program_bytes({"b": 1, "a": [2]}) == program_bytes({"a": [2], "b": 1})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x80\x04K\x01.", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "holds a JSON list"),
        (b"{}", "is not a manifest: project: Field required"),
        (json.dumps({"schema_version": SCHEMA_VERSION + 1}).encode(), "pip install --upgrade dspy-toolkit"),
    ],
)
def test_what_is_no_manifest_is_refused(data: bytes, expected: str) -> None:
    with pytest.raises(RegistryError, match=expected) as caught:
        read_manifest(data, "x/manifest.json")
    assert str(caught.value).startswith("x/manifest.json")


def test_an_unknown_field_is_refused() -> None:
    value = json.loads(manifest_bytes(a_manifest())) | {"champoin": 1}
    with pytest.raises(RegistryError, match="champoin: Extra inputs"):
        read_manifest(json.dumps(value).encode(), "manifest.json")


def test_what_is_not_json_is_not_written() -> None:
    with pytest.raises(RegistryError, match="json_mode=True"):
        program_bytes({"demos": [object()]})
    with pytest.raises(RegistryError, match="json_mode=True"):
        program_bytes({"score": float("nan")})
    with pytest.raises(RegistryError, match="not plain JSON"):
        manifest_bytes(a_manifest(reports={"val": object()}))


def test_a_secret_among_the_settings_is_masked() -> None:
    data = manifest_bytes(a_manifest(optimizer_settings={"lm": {"key": SecretStr("hunter2")}}))
    assert b"hunter2" not in data
    assert b"**********" in data
