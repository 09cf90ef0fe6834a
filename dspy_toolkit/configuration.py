"""The settings in a person's hands: what is in force, changing one in a file, checking a file.

    config show    settings_in_force
    config set     change_setting
    config check   check_settings

Not covered: what there is to set, and how the sources are laid over each other (`dspy_toolkit.settings`); keys and passwords,
which are shown as masks and are not written into a file: they belong into the environment.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dspy_toolkit.errors import SettingsError, nearest
from dspy_toolkit.printable import without_password
from dspy_toolkit.settings import FILE_NAME, OVERRIDABLE, PREFIX, SECRET, Settings, check_table, load_settings

if TYPE_CHECKING:
    from tomlkit import TOMLDocument


class SettingInForce(NamedTuple):
    """A setting, and where it comes from."""

    name: str
    """Such as `lm.model` or `projects.router.lm.model`."""
    value: str
    """As it is shown: a secret is a mask, and what has no value is `not set`."""
    source: str
    """`dspy-toolkit.toml`, or `environment (DSPY_TOOLKIT_…)` with the variable; empty for a default."""


class Changed(NamedTuple):
    """What `change_setting` wrote."""

    value: Any
    """As it was read."""
    before: Any
    """What stood in the file; None where nothing did."""


def settings_in_force(settings: Settings, name: str = "") -> list[SettingInForce]:
    """Every setting with its value and where that comes from, in the order of the sections.

    Sources are the environment and the working folder's file as they are now: `settings` are those that `load_settings` has read.

    Args:
        settings: the values.
        name: one setting (`lm.model`) or a section (`lm`) alone; all of them where it is empty.

    Returns:
        One line for each setting; there is at least one.

    Raises:
        SettingsError: nothing has that name; the nearest is named.
    """
    found = list(_in_force(settings))
    kept = [line for line in found if not name or line.name == name or line.name.startswith(f"{name}.")]
    if not kept:
        raise SettingsError(f"{name} is not a setting.{nearest(name, [line.name for line in found])}")
    return kept


def change_setting(name: str, value: str, path: Path = Path(FILE_NAME)) -> Changed:
    """Write a setting into a settings file, which is made when it is missing. Comments stay.

    Nothing is written where the setting is unknown or the value does not fit.

    Args:
        name: such as `lm.model`, `optimize.budget` or `projects.router.lm.model`.
        value: as TOML writes it; what is no TOML is a text: `mlx/smollm2-135m` needs no quotes.
        path: the file; by default that of the working folder.

    Returns:
        The value as it was read, and the one before it.

    Raises:
        SettingsError: there is no such setting, the value does not fit, it may be a secret (which does not belong into a file), or
            the file cannot be read or written.
    """
    from dspy_toolkit.durable import write_file

    *tables, key = parts = name.split(".")
    if not all(parts):
        raise SettingsError(f"{name!r} is not a setting. Write section.key, such as lm.model.")
    if SECRET.search(key) or key == "tracking_uri":
        variable = f"{PREFIX}{'__'.join(part.upper() for part in parts)}"
        raise SettingsError(f"{name} may hold a secret, which does not belong into a file. Set {variable} instead.")
    document, given = _document(path), _value(value)
    before = _put(document, tables, key, given)
    check_table(document.unwrap(), str(path))
    write_file(path.absolute(), document.as_string().encode(), SettingsError)
    return Changed(given, before)


def check_settings(file: Path | None = None) -> Settings:
    """Check a settings file by itself, or everything that is in force.

    Args:
        file: `dspy-toolkit.toml`, or another file of its form: neither the environment nor the working folder's file counts then.
            None: what `load_settings` reads.

    Returns:
        The settings that it comes to.

    Raises:
        SettingsError: the file cannot be read, a key is unknown (the nearest is named), or a value does not fit.
    """
    if file is None:
        return load_settings()
    return check_table(_document(file, needed=True).unwrap(), str(file))


def _in_force(settings: Settings) -> Iterator[SettingInForce]:
    from pydantic_settings import EnvSettingsSource, TomlConfigSettingsSource

    from dspy_toolkit.sections import Section
    from dspy_toolkit.tracking.runs import masked

    environment, file = EnvSettingsSource(type(settings))(), TomlConfigSettingsSource(type(settings))()

    def line(path: tuple[str, ...], value: Any) -> SettingInForce:
        source = ""
        if _has(environment, path):
            source = f"environment ({PREFIX}{'__'.join(path).upper()})"
        elif _has(file, path):
            source = FILE_NAME
        text = without_password(str(masked(value, path[-1]))) if value is not None else "not set"
        return SettingInForce(".".join(path), text, source)

    for name, value in settings:
        if isinstance(value, Section):
            yield from (line((name, key), inner) for key, inner in value)
        elif name == "projects":
            for project, tables in value.items():
                if location := tables.get("location"):
                    yield line((name, project, "location"), location)
                for section in OVERRIDABLE:
                    yield from (
                        line((name, project, section, key), inner) for key, inner in tables.get(section, {}).items()
                    )
        else:
            yield line((name,), value)


def _has(values: Any, path: tuple[str, ...]) -> bool:
    for key in path:
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True


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
