"""Several prompts for one predictor, whose answers become one.

A predictor's attribute `ensemble` holds its members: instructions, demonstrations and levers of each. The adapter asks the model once a
member, so that such a predictor costs as many calls as it has members, and makes one answer of theirs:

`majority`  of each output the value that most members gave; of equally many the earlier member's. Where all gave different ones, as
            with free text, it is that of the member whose last output was taken.
`mean`      the label whose probability is highest on average over the members, for a last output that all of them choose by the
            scores of its labels (`dspy_toolkit.lm.label_rules`); the others as by majority.

Not covered: ensembles of whole programs of several steps; streaming a member's answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from dspy_toolkit.errors import ProgramError
from dspy_toolkit.lm.choices import choices_of
from dspy_toolkit.lm.votes import heaviest, mean_probabilities
from dspy_toolkit.store import Frozen

if TYPE_CHECKING:
    import dspy

Rule = Literal["majority", "mean"]
MOST = 9
"""Members, at most."""


class Member(Frozen):
    """One prompt; its levers are read as those of a predictor are."""

    instructions: str
    demos: tuple[dict[str, Any], ...] = ()
    format: str | None = None
    labels: dict[str, Any] | None = None
    adapter: str | None = None
    neighbors: dict[str, Any] | None = None


class Ensemble(Frozen):
    """The members of one predictor, and how their answers become one."""

    rule: Rule
    members: tuple[Member, ...] = Field(min_length=2, max_length=MOST)
    """The best first: it decides where others are even."""


def ensemble_of(predictor: Any) -> Ensemble | None:
    """What a predictor has as its attribute `ensemble`; None where it is one prompt.

    Raises:
        ProgramError: what stands there is something else.
    """
    given = getattr(predictor, "ensemble", None)
    return None if given is None or callable(given) else read_ensemble(given)


def read_ensemble(given: Any) -> Ensemble:
    """What stands in a state as `ensemble`. Raises ProgramError where it is something else."""
    try:
        return Ensemble.model_validate(given)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ProgramError(f"A predictor's `ensemble` makes no sense: {where}: {problem['msg']}. Correct it.") from None


def joined(rule: Rule, signature: type[dspy.Signature], answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One answer of those of all members.

    Args:
        answers: output → value of each member, in their order; at least one.
    """
    names = [name for name in signature.output_fields if all(name in answer for answer in answers)]
    keys = [{name: _key(answer[name]) for name in names} for answer in answers]
    taken = {name: heaviest([key[name] for key in keys]) for name in names}
    if not names:
        return dict(answers[0])
    last = names[-1]
    found = {}
    if rule == "mean" and all("probabilities" in answer for answer in answers):
        best, chances = mean_probabilities([answer["probabilities"] for answer in answers])
        value = dict(choices_of(signature.output_fields[last].annotation) or ())[best]
        found = {last: value, "probabilities": chances, "confidence": chances[best]}
        taken[last] = next((at for at, key in enumerate(keys) if key[last] == _key(value)), 0)
    alone = {name for name in names if len(answers) > 1 and len({key[name] for key in keys}) == len(answers)}
    chosen = {name: answers[taken[last] if name in alone else taken[name]][name] for name in names}
    return {**chosen, **found}


def _key(value: Any) -> str:
    """A value by which it is known again."""
    from dspy.adapters.utils import serialize_for_json

    return json.dumps([type(value).__name__, serialize_for_json(value)], sort_keys=True, default=str)
