"""`dspy-toolkit doctor`: every decision that the toolkit would take here, and what is wrong.

Without `--fix` or `--tune` nothing is written or fetched, and without `--generate` or `--tune` no model is loaded.

Not covered: what is looked at and mended (`dspy_toolkit.doctor`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from dspy_toolkit.doctor import examine
from dspy_toolkit.errors import SettingsError
from dspy_toolkit.printable import json_text, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dspy_toolkit.doctor import Finding, Repair

_Flag = Annotated[bool, Parameter(negative="", show_default=False)]


def doctor(
    *, json: _Flag = False, generate: _Flag = False, fix: _Flag = False, yes: _Flag = False, tune: _Flag = False
) -> int:
    """Show what this machine, home and configuration come to, and what is wrong with them.

    The exit code is 1 when something is wrong.

    Args:
        json: Print JSON, for scripts; with --fix also what was mended.
        generate: Also load the model, let it say something short, and report its speed.
        fix: First mend what can be mended without harm: the home's mode, damaged caches and locks, files that killed writers left,
            the embedded model. Asks before each.
        yes: With --fix, do not ask.
        tune: Instead measure, for about a minute, how many sequences, tokens of a prompt and tokens of a step the engine had best
            do at once with this model on this machine. Engines of this home go by it from then on.
    """
    from dspy_toolkit.cli.boundary import message_of

    if yes and not fix:
        raise SettingsError("--yes is for --fix. Add --fix, or leave it out.")
    if tune and (fix or generate):
        raise SettingsError("--tune measures and does nothing else. Give it alone.")
    if tune:
        return _tune(json)
    mended = _mend(yes) if fix else []
    findings = list(examine(generate=generate, explain=message_of))
    wrong = [finding for finding in findings if finding.state == "wrong"]
    if json:
        done = [{"name": repair.name, "what": repair.what} for repair in mended]
        report = {"ok": not wrong, "mended": done, "findings": [finding.model_dump() for finding in findings]}
        print(json_text(report, indent=2))
    else:
        from dspy_toolkit.display.tables import console

        said = f"{len(wrong)} thing{'s' * (len(wrong) > 1)} to mend (✗)." if wrong else "Nothing is wrong."
        console().print(*_report(findings), said, sep="\n")
    return 1 if wrong else 0


def _tune(json: bool) -> int:
    from dspy_toolkit.display.tables import console
    from dspy_toolkit.doctor import tune
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    print(f"Measuring {settings.lm.model} for a minute or two; a large model takes longer.", file=sys.stderr)
    findings = list(tune(settings))
    if json:
        print(json_text({"findings": [finding.model_dump() for finding in findings]}, indent=2))
    else:
        console().print(*_report(findings), f"Kept in {settings.path('tuned.json')}.", sep="\n")
    return 0


def _mend(yes: bool) -> list[Repair]:
    """What was mended; says on stderr what it does."""
    from dspy_toolkit.doctor import mend
    from dspy_toolkit.settings import load_settings

    def agreed(repair: Repair) -> bool:
        return yes or _asked(f"{repair.name}: {repair.what}")

    def said(repair: Repair) -> None:
        print(printable(f"Mended {repair.name}: {repair.what}."), file=sys.stderr)

    mended = mend(load_settings(), agreed, said)
    if not mended:
        print("Nothing was mended.", file=sys.stderr)
    return mended


def _asked(what: str) -> bool:
    """Whether a person says yes. Where nobody can, nothing is done."""
    print(printable(f"{what}?"), file=sys.stderr)
    if sys.stdin is None or not sys.stdin.isatty():
        print("Nobody can be asked here: add --yes.", file=sys.stderr)
        return False
    print("Do it? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _report(found: list[Finding]) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    from dspy_toolkit.doctor.findings import ARROW

    marks = {"ok": Text("✓", "green"), "note": Text("!", "yellow"), "wrong": Text("✗", "bold red")}
    for subject in dict.fromkeys(finding.subject for finding in found):
        yield Text(subject.capitalize(), "bold underline")
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column()
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for finding in (finding for finding in found if finding.subject == subject):
            value, arrow, source = finding.value.partition(ARROW)
            about = Text.assemble(value, (arrow + source, "cyan"))
            if finding.advice:
                about.append(f"\n{finding.advice}", style=marks[finding.state].style)
            table.add_row(marks[finding.state], finding.name, about)
        yield table
        yield ""
