"""`dspy-toolkit config`: the settings in force and where each comes from; changing one in dspy-toolkit.toml; checking a file.

Not covered: what it does (`dspy_toolkit.configuration`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from dspy_toolkit.cli.options import Json
from dspy_toolkit.errors import SettingsError
from dspy_toolkit.printable import json_text


def show(name: Annotated[str, Parameter(show_default=False)] = "", /, *, json: Json = False) -> None:
    """Show the settings in force, and where each comes from when it is not the default.

    Args:
        name: One setting, such as lm.model, or a section, such as lm; all of them when it is not given.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.configuration import settings_in_force
    from dspy_toolkit.display.tables import console, listing
    from dspy_toolkit.settings import load_settings

    rows = settings_in_force(load_settings(), name)
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
    from dspy_toolkit.configuration import change_setting
    from dspy_toolkit.settings import FILE_NAME

    given, before = change_setting(name, value)
    if json:
        file = str(Path(FILE_NAME).absolute())
        print(json_text({"setting": name, "before": before, "value": given, "file": file}, indent=2))
        return
    print(f"{name} is {given!r} in {FILE_NAME} now" + (f"; it was {before!r}." if before is not None else "."))


def check(file: Annotated[Path | None, Parameter(show_default=False)] = None, /, *, json: Json = False) -> None:
    """Check a settings file, or, where none is named, everything that is in force. The exit code is 1 where it is wrong.

    Args:
        file: dspy-toolkit.toml, or another file of its form.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.configuration import check_settings

    fault = ""
    try:
        check_settings(file)
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
