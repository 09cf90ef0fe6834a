"""Everything that the doctor looks at, in the order of its report.

Not covered: what each subject's findings are (`findings`, `model_findings`), and mending (`mending`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from dspy_toolkit.errors import SettingsError

if TYPE_CHECKING:
    from dspy_toolkit.doctor.findings import Finding


def _explained(error: BaseException) -> str | None:
    from dspy_toolkit.lm import root_error

    known = root_error(error)
    return None if known is None else str(known)


def examine(
    *, generate: bool = False, explain: Callable[[BaseException], str | None] = _explained
) -> Iterator[Finding]:
    """Look at the packages, the machine, the home and the settings in force. Nothing is written or fetched.

    What cannot be checked, because something before it is wrong, is left out. Settings that cannot be used are a finding,
    and no error.

    Args:
        generate: also load the model and let it say something short; without it no model is loaded.
        explain: the words for an error that ended it; None for a bug, which is raised. By default the message of the toolkit's own
            error, also where DSPy or LiteLLM has wrapped it.

    Yields:
        What was found, each looked for when it is asked for. One whose state is `wrong` is to be repaired.

    Raises:
        Exception: with `generate`, what `explain` gives no words for.
    """
    from dspy_toolkit.doctor import findings, model_findings
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
        try:
            yield from model_findings.generation(settings)
        except Exception as error:  # isolation boundary: DSPy and LiteLLM wrap what the engine raised
            if (message := explain(error)) is None:
                raise
            yield findings.wrong("generation", "reply", "none", message)
