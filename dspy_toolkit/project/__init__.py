"""What a project is, finding one by name, path or TOML file, and what of it can change a result.

definition    Project: a program, a metric and a dataset under a name
finding       load_project, load_named, project_names, register
toml_file     a project with no Python at all
fingerprints  a project's parts, each with a hash of all that it depends on
"""

from __future__ import annotations

from dspy_toolkit.project.definition import Project
from dspy_toolkit.project.finding import check_known, load_named, load_project, project_names, register
from dspy_toolkit.project.fingerprints import (
    ChampionPart,
    DataPart,
    NightPart,
    ProgramPart,
    ProjectRef,
    StartPart,
    data_part,
    program_part,
    refuse_changed,
)

__all__ = [
    "ChampionPart",
    "DataPart",
    "NightPart",
    "ProgramPart",
    "Project",
    "ProjectRef",
    "StartPart",
    "check_known",
    "data_part",
    "load_named",
    "load_project",
    "program_part",
    "project_names",
    "refuse_changed",
    "register",
]
