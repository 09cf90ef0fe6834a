"""Giving advice: facts → guard → surrogate → words.

    advice = advise("federated", "30 hospitals, very different patients, some drop out, 40 rounds at most")
    print(advice.text)
    Path("run-config.toml").write_text(advice.configuration.to_yaml())

No step asks a language model for a number. A model, where one was optimized for the project, reads the description; code finds the
facts and refuses what cannot be; the surrogate ranks measured configurations; of those that are within one standard error of the best
the cheapest is advised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dspy_toolkit.advising.advisor import Advisor, Configuration, Facts, load_advisor
from dspy_toolkit.advising.cells import Frame
from dspy_toolkit.advising.explaining import unsupported_numbers
from dspy_toolkit.advising.landscape import COVER, Ranked, matching, quantiles
from dspy_toolkit.advising.situation import UNKNOWN, Situation
from dspy_toolkit.errors import ProjectError

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings


@dataclass(frozen=True)
class Unknown:
    """A field that was not said, and what it may cost."""

    field: str
    matters: float
    """How much worse the advice is, at most over the field's levels, than one that knew it; in the native unit."""


@dataclass(frozen=True)
class Advice:
    """A configuration, what to expect of it, and why."""

    project: str
    situation: Situation
    read_by: str
    """What read the description: a program's version, keyword rules, or nothing."""
    measured: Mapping[str, Any]
    """The measured configuration that was chosen."""
    configuration: Configuration
    expected: float
    """Predicted loss, in the native unit."""
    range: tuple[float, float] | None
    """What 80 % of runs on families that were not measured fell into; None outside the measured ground."""
    candidates: tuple[Ranked, ...]
    """Within one standard error of the surrogate's best, best first."""
    unknown: tuple[Unknown, ...]
    outside: tuple[str, ...]
    facts: Facts
    text: str
    """The explanation. Each of its numbers is a fact."""
    support: int
    """Runs that were measured in this context, over all configurations."""

    def as_json(self, tool: str = "") -> dict[str, Any]:
        """What scripts and clients are given.

        Args:
            tool: in whose format the configuration is written; the project's first by default.

        Raises:
            ProjectError: no such tool.
        """
        return {
            "project": self.project,
            "situation": self.situation.model_dump(),
            "read_by": self.read_by,
            "configuration": self.configuration.model_dump(),
            "measured": dict(self.measured),
            "expected_loss": self.expected,
            "range": self.range,
            "candidates": len(self.candidates),
            "unknown": {each.field: each.matters for each in self.unknown},
            "outside": self.outside,
            "facts": dict(self.facts.values),
            "violations": self.facts.violations,
            "why": self.text.splitlines(),
            "written": self.configuration.to_yaml(tool),
        }


def advise(
    project: str | Advisor,
    description: str = "",
    *,
    settings: Settings | None = None,
    own: Frame | None = None,
    **given: str,
) -> Advice:
    """Advise on a project.

    Args:
        project: a name under which an advisor is registered, or an advisor.
        description: what somebody has, in their own words.
        settings: where promoted programs are; the environment's by default.
        own: the user's own runs, with the landscape's columns; the more there are, the more they count.
        given: fields of the situation and facts by name, which count before the description: `memory="16GB"`.

    Raises:
        ProjectError: no such project, a value that cannot be read, or nothing that is allowed.
    """
    advisor = project if isinstance(project, Advisor) else load_advisor(project)
    facts_given = {name: value for name, value in given.items() if name in advisor.given}
    stated = advisor.situation.read({name: value for name, value in given.items() if name not in advisor.given})
    described, read_by = read_description(advisor, description, settings)
    situation = advisor.situation(**{**described.model_dump(), **stated.known()})
    return advise_on(advisor, situation, read_by=read_by, given=facts_given, own=own)


def read_description(advisor: Advisor, description: str, settings: Settings | None = None) -> tuple[Situation, str]:
    """(situation, what read it): by the project's promoted program, by keyword rules while there is none."""
    if not description.strip():
        return advisor.situation(), "options alone"
    from dspy_toolkit.advising.champion import ask_champion

    if (asked := ask_champion(advisor, description, settings)) is not None:
        return asked
    return advisor.situation.lenient(advisor.keywords(description)), "keyword rules (no optimized program is promoted)"


def advise_on(
    advisor: Advisor,
    situation: Any,
    *,
    read_by: str = "options alone",
    given: Mapping[str, str] | None = None,
    own: Frame | None = None,
    ranges: bool = True,
) -> Advice:
    """Advise on a situation that is read already.

    Args:
        ranges: False leaves out the range and what the unknown matters, which cost a second: for scoring many.
    """
    facts = advisor.facts(situation, given or {})
    context = advisor.context_of(situation)
    surrogate = advisor.surrogate(situation, own)
    ranked = surrogate.rank(context, advisor.permits(situation))
    if not ranked:
        reasons = sorted({advisor.allowed(situation, row) for row in advisor.configurations()} - {""})
        raise ProjectError(f"{advisor.name}: no measured configuration is allowed: {'; '.join(reasons)}. Ask for less.")
    close = [each for each in ranked if each.loss <= ranked[0].loss + surrogate.standard_error]
    chosen = min(close, key=lambda each: (advisor.cost(each.configuration), each.loss))
    configuration = advisor.configure(situation, chosen.configuration, facts)
    outside = tuple(advisor.outside(situation))
    interval, unknown = None, ()
    if ranges:
        if not outside:
            low, high = quantiles(advisor.errors(situation))
            interval = (chosen.loss + low * chosen.spread, chosen.loss + high * chosen.spread)
        unknown = tuple(_unknown(advisor, situation, context, chosen, surrogate))
    support = len(matching(advisor.runs, advisor.columns, context))
    text = explain(advisor, situation, chosen, close, ranked, interval, unknown, outside, facts, support)
    return Advice(
        advisor.name, situation, read_by, chosen.configuration, configuration, chosen.loss, interval, tuple(close),
        unknown, outside, facts, text, support,
    )  # fmt: skip


def _unknown(advisor: Advisor, situation: Any, context: Mapping[str, str], chosen: Ranked, surrogate: Any):
    """What each unknown part of the context may cost."""
    permitted = advisor.permits(situation)
    for name in advisor.columns.context:
        if name in context:
            continue
        worst = 0.0
        for level in sorted(advisor.runs[name].unique()):
            ranked = surrogate.rank({**context, name: level}, permitted)
            here = next((each.loss for each in ranked if each.configuration == chosen.configuration), None)
            if here is not None:
                worst = max(worst, here - ranked[0].loss)
        yield Unknown(name, worst)


def explain(
    advisor: Advisor,
    situation: Situation,
    chosen: Ranked,
    close: list[Ranked],
    ranked: list[Ranked],
    interval: tuple[float, float] | None,
    unknown: tuple[Unknown, ...],
    outside: tuple[str, ...],
    facts: Facts,
    support: int,
) -> str:
    """Why, in sentences whose numbers are all facts."""
    from_default = next((each.loss for each in ranked if each.configuration == dict(advisor.default)), None)
    lines = [f"Expected: {advisor.describe(chosen.loss)}."]
    if interval is not None:
        low, high = sorted(advisor.describe(value) for value in interval)
        lines.append(f"{COVER:.0%} of runs in contexts that the surrogate had not seen fell between {low} and {high}.")
    lines.append(
        f"Ranked best of {len(ranked)} measured configurations, by {support} runs."
        if len(close) == 1
        else f"The cheapest of {len(close)} configurations that are within one standard error of the best, of {len(ranked)}, by {support} runs."
    )
    if from_default is not None and chosen.configuration != dict(advisor.default):
        lines.append(f"The default ({advisor.default_note}) is predicted at {advisor.describe(from_default)}.")
    lines.extend(f"Not known: {each.field}; it may cost up to {each.matters:.3g} {advisor.unit}." for each in unknown)
    lines.extend(f"Outside the measured ground: {reason}." for reason in outside)
    lines.extend(facts.notes)
    lines.extend(f"Warning: {reason}." for reason in facts.violations)
    return "\n".join(lines)


def known_numbers(advice: Advice) -> list[float | str]:
    """The facts by which an explanation of this advice may be checked."""
    values: list[float | str] = [*advice.facts.values.values(), *advice.facts.notes, advice.text]
    values.extend(str(value) for value in advice.measured.values())
    values.extend(str(value) for value in advice.configuration.model_dump().values())
    values.extend(advice.situation.model_dump().values())
    return values


def checked_explanation(advice: Advice, written: str) -> str:
    """An explanation that somebody else wrote, such as a model, where each of its numbers is a fact; else the advice's own."""
    return written if written.strip() and not unsupported_numbers(written, known_numbers(advice)) else advice.text


def stated(situation: Situation) -> str:
    """The situation in a line."""
    known = [f"{name.replace('_', ' ')}: {value}" for name, value in situation.known().items()]
    left = [name.replace("_", " ") for name, value in situation.model_dump().items() if value == UNKNOWN]
    return "; ".join(known + ([f"not said: {', '.join(left)}"] if left else []))
