"""Program versions in MLflow: saved with a manifest, promoted by an alias, rolled back by a tag.

`manifest` describes a version, `versions` saves and finds them, `promotion` moves the alias of the live one, `unfinished`
looks after promotions that a killed process left.
"""

from dspy_toolkit.registry.manifest import Manifest
from dspy_toolkit.registry.promotion import Decision, champion, champions, promote, rollback, undo
from dspy_toolkit.registry.versions import (
    Version,
    find_version,
    list_projects,
    list_versions,
    load_version,
    save_version,
)

__all__ = [
    "Decision",
    "Manifest",
    "Version",
    "champion",
    "champions",
    "find_version",
    "list_projects",
    "list_versions",
    "load_version",
    "promote",
    "rollback",
    "save_version",
    "undo",
]
