"""Running candidates on validation rows: here, many at once, or on workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from dspy_toolkit.errors import ProgramError, RequestRefused
from dspy_toolkit.evaluation import score_rows
from dspy_toolkit.lm.usage import Usage
from dspy_toolkit.optimizers.pool.entry import BASELINE
from dspy_toolkit.optimizers.states import fill, state_of
from dspy_toolkit.store import Frozen, Ref

if TYPE_CHECKING:
    import dspy

    from dspy_toolkit.lm.meter import MeteredLM
    from dspy_toolkit.optimizers.pool.pool import Job, Score
    from dspy_toolkit.optimizers.problem import Problem

log = logging.getLogger(__name__)


class ScoreJob(Frozen):
    """A program to score on some rows of the validation sample."""

    program: Ref
    """Its state."""
    label: str
    first: int
    last: int
    """One past the last row, counted in the sample."""


class Scored(Frozen):
    """What came of a job."""

    values: tuple[float, ...] = ()
    """A score in [0, 1] for each row."""
    usage: Usage = Usage()
    tokens: float = 0.0
    """Prompt tokens of one run of the program, on average; what the metric asks is no part of it."""
    refused: str = ""
    """Why the program cannot be run: its prompts do not fit the model. There are no values then."""


Runner = Callable[[Sequence[ScoreJob]], Sequence[Scored]]
"""Scores programs elsewhere, in any order or all at once; the results come in the order of the arguments."""


def score_job(problem: Problem, job: ScoreJob) -> Scored:
    """Do one job, with a meter of its own. Raises what the baseline would raise, too: the pool decides."""
    program = fill(problem.program.deepcopy(), problem.store.read_json(job.program))
    return _score(problem, program, job.first, job.last, problem.connection.lm.metered(), problem.threads)


def scoring(problem: Problem, lm: MeteredLM, elsewhere: Runner | None) -> Score:
    """The pool's way of scoring; calls are charged to `lm`."""

    def score(jobs: Sequence[Job]) -> list[bool]:
        if elsewhere is None:
            threads = max(problem.threads // len(jobs), 1)
            with ThreadPoolExecutor(len(jobs), thread_name_prefix="score") as pool:
                found = list(
                    pool.map(
                        lambda job: _score(problem, job.entry.program, job.first, job.last, lm.part(), threads), jobs
                    )
                )
        else:
            asked = [
                ScoreJob(
                    program=problem.store.save_json(state_of(job.entry.program)),
                    label=job.entry.label,
                    first=job.first,
                    last=job.last,
                )
                for job in jobs
            ]
            found = list(elsewhere(asked))
            for each in found:
                lm.meter.add(each.usage)
        for job, each in zip(jobs, found, strict=True):
            if each.refused and job.entry.family == BASELINE:
                raise RequestRefused(each.refused)
            if each.refused:
                log.warning("%s is left out: %s", job.entry.label, each.refused)
                continue
            job.entry.values += each.values
            job.entry.tokens = each.tokens
            if each.usage.physical_calls:
                latency = each.usage.seconds / each.usage.physical_calls
                job.entry.seconds = latency * each.usage.lm_calls / len(each.values)
        return [not each.refused for each in found]

    return score


def _score(problem: Problem, program: dspy.Module, first: int, last: int, lm: MeteredLM, threads: int) -> Scored:
    rows = problem.val_sample(last).iloc[first:]
    try:
        scored = score_rows(
            program,
            problem.cases(rows),
            problem.metric,
            keys=[str(key) for key in rows["_row"]],
            split="val",
            lm=lm,
            adapter=problem.connection.adapter,
            threads=threads,
        )
    except (ProgramError, RequestRefused) as error:
        return Scored(refused=str(error), usage=lm.meter.usage)
    own = lm.meter.usage - lm.meter.judge.usage
    return Scored(
        values=tuple(row.value for row in scored), usage=lm.meter.usage, tokens=own.prompt_tokens / len(scored)
    )
