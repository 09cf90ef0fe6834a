"""One candidate scored on some validation rows, as a run of its own: a search with `--workers` starts many, on any machine.

The machines share the store, Prefect's results and the project's files. Not meant to be started by hand.
"""

from __future__ import annotations

from prefect import flow

from dspy_toolkit.optimizers.pool.scoring import Scored
from dspy_toolkit.run import ScoreInput
from tasks.steps import score_one
from tasks.tracing import traced


@flow(flow_run_name="score {given.job.label} for {given.project}", persist_result=True, result_serializer="json")
def score_candidate(given: ScoreInput) -> Scored:
    """Run a candidate on rows of the validation sample, and score its answers.

    Args:
        given: the candidate, the rows that it is to be run on, and the project.
    """
    with traced():
        return score_one(given)
