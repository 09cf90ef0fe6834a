"""`dspy-toolkit config`: the settings in force and where each comes from; changing one in dspy-toolkit.toml; checking a file.

Not covered: keys and passwords, which are shown as masks and are not written into a file: they belong into the environment.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dspy_toolkit.cli.options import Json
from dspy_toolkit.errors import SettingsError
from dspy_toolkit.printable import json_text

if TYPE_CHECKING:
    from tomlkit import TOMLDocument


def show(name: Annotated[str, Parameter(show_default=False)] = "", /, *, json: Json = False) -> None:
    """Show the settings in force, and where each comes from when it is not the default.

    Args:
        name: One setting, such as lm.model, or a section, such as lm; all of them when it is not given.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.cli.findings import ARROW, configuration
    from dspy_toolkit.display.tables import console, listing
    from dspy_toolkit.errors import nearest
    from dspy_toolkit.settings import load_settings

    found = list(configuration(load_settings()))
    kept = [line for line in found if not name or line.name == name or line.name.startswith(f"{name}.")]
    if not kept:
        raise SettingsError(f"{name} is not a setting.{nearest(name, [line.name for line in found])}")
    rows = [(line.name, *line.value.partition(ARROW)[::2]) for line in kept]
    if json:
        print(
            json_text(
                {setting: {"value": value, "from": source or "default"} for setting, value, source in rows}, indent=2
            )
        )
        return
    console().print(listing(("setting", "value", "from"), rows))


def change(name: str, value: str, /, *, json: Json = False) -> None:
    """Write a setting into dspy-toolkit.toml of the working folder, which is made when it is missing. Comments stay.

    Nothing is written where the setting is unknown or the value does not fit.

    Args:
        name: Such as lm.model, optimize.budget or projects.router.lm.model.
        value: As TOML writes it; what is no TOML is a text: mlx/smollm2-135m needs no quotes.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.durable import write_file
    from dspy_toolkit.settings import FILE_NAME, PREFIX, SECRET, check_table

    *tables, key = parts = name.split(".")
    if not all(parts):
        raise SettingsError(f"{name!r} is not a setting. Write section.key, such as lm.model.")
    if SECRET.search(key) or key == "tracking_uri":
        variable = f"{PREFIX}{'__'.join(part.upper() for part in parts)}"
        raise SettingsError(f"{name} may hold a secret, which does not belong into a file. Set {variable} instead.")
    path = Path(FILE_NAME)
    document, given = _document(path), _value(value)
    before = _put(document, tables, key, given)
    check_table(document.unwrap(), str(path))
    write_file(path.absolute(), document.as_string().encode(), SettingsError)
    if json:
        print(json_text({"setting": name, "before": before, "value": given, "file": str(path.absolute())}, indent=2))
        return
    print(f"{name} is {given!r} in {FILE_NAME} now" + (f"; it was {before!r}." if before is not None else "."))


def check(file: Annotated[Path | None, Parameter(show_default=False)] = None, /, *, json: Json = False) -> None:
    """Check a settings file, or, where none is named, everything that is in force. The exit code is 1 where it is wrong.

    Args:
        file: dspy-toolkit.toml, or another file of its form.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.settings import check_table, load_settings

    fault = ""
    try:
        if file is None:
            load_settings()
        else:
            check_table(_document(file, needed=True).unwrap(), str(file))
    except SettingsError as error:
        if not json:
            raise
        fault = str(error)
    if json:
        print(json_text({"ok": not fault, "fault": fault}, indent=2))
        if fault:
            raise SystemExit(1)
        return
    print(f"{file or 'What is in force'}: nothing is wrong.")


def _document(path: Path, *, needed: bool = False) -> TOMLDocument:
    import tomlkit
    from tomlkit.exceptions import ParseError

    if not path.exists() and not needed:
        return tomlkit.document()
    try:
        return tomlkit.parse(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, ParseError) as error:
        raise SettingsError(f"{path} cannot be read: {error}. Correct it.") from error


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _put(document: TOMLDocument, tables: list[str], key: str, value: Any) -> Any:
    """Set a key, making the tables on the way; what was there."""
    import tomlkit
    from tomlkit.items import AbstractTable

    at: Any = document
    for table in tables:
        if table not in at:
            at[table] = tomlkit.table()
        at = at[table]
        if not isinstance(at, AbstractTable):
            raise SettingsError(f"{table} is a value in the file, and no table. Correct it there.")
    before = at.unwrap().get(key)
    at[key] = value
    return before
