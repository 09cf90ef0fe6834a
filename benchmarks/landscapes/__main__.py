"""Print the tables of docs/projects/: `python -m benchmarks.landscapes [--project NAME] [--words]`.

Without a language model. The first table is on true facts: measured regret in contexts of families that were held out. With
`--words`, a second one goes from the descriptions: the keyword rules' and the most frequent levels' fields, and the regret of what they
lead to.
"""

from __future__ import annotations

from typing import Any

from cyclopts import App

from dspy_toolkit.advising import load_advisor
from dspy_toolkit.advising.references import NAMES, coverage, interval_over_families, regrets

PROJECTS = ("lora", "diffusion", "clip", "federated")

app = App(name="python -m benchmarks.landscapes", help=__doc__)


@app.default
def main(*, project: str = "", words: bool = False) -> None:
    """Print the tables.

    Args:
        project: one of the four, or a project of your own with an advisor; all four when left out.
        words: also from the descriptions.
    """
    for name in [project] if project else PROJECTS:
        advisor = load_advisor(name)
        situation = advisor.situation()
        runs = advisor.runs
        print(f"\n## {name}: {len(runs)} runs, {runs['family'].nunique()} families, {runs['seed'].nunique()} seeds\n")
        print(f"| advised by | mean regret ({advisor.unit}) | 95 % over families | worst tenth | worst |")
        print("|---|---:|---:|---:|---:|")
        found = regrets(advisor, situation)
        for reference in NAMES:
            rows = found[found["reference"] == reference]
            mean, low, high = interval_over_families(rows)
            tenth = rows["regret"].nlargest(max(len(rows) // 10, 1)).mean()
            print(f"| {reference} | {mean:.3g} | {low:.3g} to {high:.3g} | {tenth:.3g} | {rows['regret'].max():.3g} |")
        share, count = coverage(advisor, situation)
        print(f"\nRanges that promise 80 % covered {share:.0%} of {count} held-out runs.")
        if words:
            _words(advisor, name)


def _words(advisor: Any, name: str) -> None:
    """Fields and regret from the descriptions, read by rules."""
    import numpy as np

    from dspy_toolkit.advising.program import advice_metric
    from dspy_toolkit.project import load_project

    project = load_project(name)
    rows = _rows(project)
    metric = advice_metric(lambda: advisor)
    print(f"\nFrom the words: {len(rows)} descriptions, {len({row['context'] for row in rows})} contexts.\n")
    print(f"| read by | fields right | all fields right | mean regret ({advisor.unit}) | score |")
    print("|---|---:|---:|---:|---:|")
    import dspy

    cases = [dspy.Example(**row).with_inputs("request") for row in rows]
    readers = {"true fields": lambda case: dspy.Prediction(**case.toDict())}
    readers |= {label: rule(cases) for label, rule in project.reference_rules.items()}
    for label, read in readers.items():
        scores = [metric(case, read(case)) for case in cases]
        fields = np.array([score.measures["fields"] for score in scores])
        regret = np.array([score.measures.get("regret", np.nan) for score in scores])
        mean = float(np.mean([score.value for score in scores]))
        print(f"| {label} | {fields.mean():.0%} | {(fields == 1).mean():.0%} | {np.nanmean(regret):.3g} | {mean:.2f} |")


def _rows(project: Any) -> list[dict[str, Any]]:
    import json

    return [json.loads(line) for line in project.data_path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    app()
