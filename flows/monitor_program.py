"""Hold live programs against their promoted scores, and act when one has fallen.

python -m flows.monitor_program --project router
"""

from __future__ import annotations

from prefect import flow
from prefect.runtime import flow_run

from flows.temporary_server import watch_run
from tasks.watching import (
    act_on_fall,
    look_at_machine,
    look_at_program,
    programs_to_watch,
    record_look,
)


@flow(flow_run_name="monitor {project}", on_running=[watch_run])
def monitor_program(project: str = "", auto_rollback: bool = False) -> dict[str, str]:
    """Look at live programs: new labelled rows, served feedback, drift, latency, calibration, a few old rows again.

    A fall below the promoted score is told, and a new search is begun. Where it is beyond the promotion's own error and
    `auto_rollback` is set, the version before is live again.

    Args:
        project: a name; every project with a live program where it is empty.
        auto_rollback: roll back by itself.

    Returns:
        What was seen of each program, in a sentence.
    """
    look_at_machine()
    seen, failed = {}, []
    for location in programs_to_watch(project):
        looked = look_at_program(location, return_state=True)
        if not looked.is_completed():  # the others are looked at all the same
            failed.append(looked)
            continue
        found = looked.result()
        if found is not None:
            record_look(found, flow_run.get_name() or "monitor")
            act_on_fall(found, location, auto_rollback)
            seen[found.project] = found.sentence
    for looked in failed:
        looked.result()  # raises what stopped it
    return seen


if __name__ == "__main__":
    from flows.terminal import run_at_terminal

    run_at_terminal(monitor_program)
