"""What a reference to a program is: a version in the registry, a folder, or a project by its name or place.

Not covered: loading what it names (`dspy_toolkit.registry.programs`).
"""

from __future__ import annotations

from pathlib import Path

from dspy_toolkit.registry.manifest import MANIFEST_FILE


def project_name(text: str) -> str:
    """The name of the project at `text`, which may be a name already. Only a location is looked into."""
    from dspy_toolkit.project import load_project  # loading a project needs far more than its name does

    return load_project(text).name if is_location(text) else text


def is_location(text: str) -> bool:
    """Whether `text` says where a project is (a file, `module:attr`), rather than what it is called."""
    return ":" in text or "/" in text or text.endswith((".toml", ".py"))


def is_version(reference: str) -> bool:
    """Whether `reference` names a version in the registry, such as `router@champion` (whether or not there is one)."""
    return "@" in reference and "/" not in reference and "\\" not in reference


def is_saved(reference: str) -> bool:
    """Whether `reference` is a folder that holds a saved program."""
    return not is_version(reference) and (Path(reference).expanduser() / MANIFEST_FILE).is_file()


def lasting_location(location: str) -> str:
    """A project's location that holds in any working folder: file paths become absolute, names are kept."""
    place, colon, attribute = location.rpartition(":") if ".py:" in location else (location, "", "")
    if not place.endswith((".toml", ".py")):
        return location
    return f"{Path(place).expanduser().resolve()}{colon}{attribute}"
