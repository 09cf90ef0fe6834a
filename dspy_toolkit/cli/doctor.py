"""`dspy-toolkit doctor`: every decision that the toolkit would take here, and what is wrong.

Without `--fix` nothing is written or fetched, and without `--generate` no model is loaded. What `--fix` mends is in `repairs`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from dspy_toolkit.errors import SettingsError
from dspy_toolkit.printable import json_text, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dspy_toolkit.cli.findings import Finding
    from dspy_toolkit.cli.repairs import Repair

_Flag = Annotated[bool, Parameter(negative="", show_default=False)]


def doctor(*, json: _Flag = False, generate: _Flag = False, fix: _Flag = False, yes: _Flag = False) -> int:
    """Show what this machine, home and configuration come to, and what is wrong with them.

    The exit code is 1 when something is wrong.

    Args:
        json: Print JSON, for scripts; with --fix also what was mended.
        generate: Also load the model, let it say something short, and report its speed.
        fix: First mend what can be mended without harm: the home's mode, damaged caches and locks, files that killed writers left,
            the embedded model. Asks before each.
        yes: With --fix, do not ask.
    """
    if yes and not fix:
        raise SettingsError("--yes is for --fix. Add --fix, or leave it out.")
    mended: list[Repair] = []
    if fix:
        mended = mend(agreed=(lambda _: True) if yes else _asked)
    findings = list(examine(generate=generate))
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


def mend(agreed: Callable[[str], bool]) -> list[Repair]:
    """Mend what can be mended without harm; says on stderr what it does.

    Args:
        agreed: given what would be done, whether to do it.

    Returns:
        What was mended.

    Raises:
        ToolkitError: something could not be mended; what was before it is.
    """
    from dspy_toolkit.cli.repairs import repairs
    from dspy_toolkit.settings import load_settings

    mended: list[Repair] = []
    for repair in repairs(load_settings()):
        if agreed(f"{repair.name}: {repair.what}"):
            repair.do()
            mended.append(repair)
            print(printable(f"Mended {repair.name}: {repair.what}."), file=sys.stderr)
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


def examine(*, generate: bool = False) -> Iterator[Finding]:
    """All findings. What cannot be checked, because something before it is wrong, is left out."""
    from dspy_toolkit.cli import findings, model_findings
    from dspy_toolkit.settings import load_settings

    yield from findings.packages()
    try:
        from dspy_toolkit.lm.models.hardware import inspect_hardware

        hardware = inspect_hardware()
    except ImportError as error:
        yield findings.wrong("machine", "mlx", f"cannot be imported: {error}", findings.REINSTALL)
        hardware = None
    else:
        yield from findings.machine(hardware)
    try:
        settings = load_settings()
    except SettingsError as error:
        yield findings.wrong("settings", "all", "cannot be used", str(error))
        return
    if hardware is not None:
        yield from model_findings.models(settings, hardware)
        yield from model_findings.backends(settings, hardware)
    yield from findings.home(settings)
    yield from findings.tracking(settings)
    if hardware is not None:
        yield from findings.lease(settings, hardware.device)
    yield from findings.projects(settings)
    yield from findings.configuration(settings)
    if generate:
        yield from _guarded(lambda: model_findings.generation(settings))


def _guarded(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    from dspy_toolkit.cli.boundary import message_of
    from dspy_toolkit.cli.findings import wrong

    try:
        yield from look()
    except Exception as error:  # isolation boundary: DSPy and LiteLLM wrap what the engine raised
        if (message := message_of(error)) is None:
            raise
        yield wrong("generation", "reply", "none", message)


def _report(found: list[Finding]) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    from dspy_toolkit.cli.findings import ARROW

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
