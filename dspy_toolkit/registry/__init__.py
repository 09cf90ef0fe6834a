"""Program versions in MLflow: saved with a manifest, promoted by an alias, rolled back by a tag.

`manifest` says what a version tells about itself, `versions` saves and finds them, `promotion` says which one is live,
`unfinished` looks after promotions that a killed process left.
"""

from dspy_toolkit.registry.manifest import Manifest
from dspy_toolkit.registry.promotion import Decision, champion, promote, rollback, undo
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
    "find_version",
    "list_projects",
    "list_versions",
    "load_version",
    "promote",
    "rollback",
    "save_version",
    "undo",
]
