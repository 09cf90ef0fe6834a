"""Every verb of `dspy-toolkit programs`, `projects` and `data`, and `replay`, as a function.

    list      list_projects, list_versions, list_known        promote   promote_by_verdict
    show      load_state, messages_of, describe                rollback  rollback
    diff      differences                                      delete    delete_version
    history   champions                                        migrate   migrate
    export    export_bundle, export_dspy, …                    reprove   reprove
    import    import_program, read_bundle                      validate  validate
    new       new_project, from_evals

    data check   check_data                 data show            show_rows, show_row
    data split   split_data, write_splits   data from-feedback   rows_of, write_rows
    replay       replay

Each takes the settings first and raises a `ToolkitError` with the next command in it. None prints.
"""

from dspy_toolkit.pipeline.replay import Replay, replay
from dspy_toolkit.pipeline.reprove import Reproof, reprove
from dspy_toolkit.pipeline.rows import DataCheck, RowShown, check_data, show_row, show_rows, split_data, write_splits
from dspy_toolkit.pipeline.validate import Finding, validate
from dspy_toolkit.project.listing import Known, describe, list_known
from dspy_toolkit.registry import champions, list_projects, list_versions, rollback
from dspy_toolkit.registry.bundle import Bundle, read_bundle
from dspy_toolkit.registry.deleting import delete_version
from dspy_toolkit.registry.differences import Difference, PredictorDifference, differences
from dspy_toolkit.registry.exports import Exported, export_bundle, export_dspy, export_mlflow, export_prompt
from dspy_toolkit.registry.fitting import Fit, migrate
from dspy_toolkit.registry.importing import ImportedVersion, import_program
from dspy_toolkit.registry.messages import SentPrompt, messages_of
from dspy_toolkit.registry.programs import load_state
from dspy_toolkit.registry.verdicts import Promotion, promote_by_verdict
from dspy_toolkit.scaffold import NewProject, from_evals, new_project
from dspy_toolkit.serving.dataset import FeedbackRows, rows_of, write_rows

__all__ = [
    "Bundle",
    "DataCheck",
    "Difference",
    "Exported",
    "FeedbackRows",
    "Finding",
    "Fit",
    "ImportedVersion",
    "Known",
    "NewProject",
    "PredictorDifference",
    "Promotion",
    "Replay",
    "Reproof",
    "RowShown",
    "SentPrompt",
    "champions",
    "check_data",
    "delete_version",
    "describe",
    "differences",
    "export_bundle",
    "export_dspy",
    "export_mlflow",
    "export_prompt",
    "from_evals",
    "import_program",
    "list_known",
    "list_projects",
    "list_versions",
    "load_state",
    "messages_of",
    "migrate",
    "new_project",
    "promote_by_verdict",
    "read_bundle",
    "replay",
    "reprove",
    "rollback",
    "rows_of",
    "show_row",
    "show_rows",
    "split_data",
    "validate",
    "write_rows",
    "write_splits",
]
