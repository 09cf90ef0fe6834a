"""Reading the project, and its rows."""

from __future__ import annotations

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from dspy_toolkit.datasets import Dataset, DatasetReport
from dspy_toolkit.display.progress import step
from dspy_toolkit.pipeline.workbench import Workbench
from dspy_toolkit.project import DataPart, ProjectRef
from dspy_toolkit.settings import load_settings
from tasks.policy import artifact_key, cached_task


@task(task_run_name="resolve {location}", cache_policy=NO_CACHE)
def resolve_project(location: str, start: str | None = None) -> ProjectRef:
    """Read everything that can change a result: never cached. A project without a champion gets its own program as one."""
    with step("resolve"):
        bench = Workbench.open(location, load_settings())
        bench.ensure_champion()
        return bench.resolve(start)


@cached_task(task_run_name="prepare {data.project}")
def prepare_dataset(data: DataPart) -> Dataset:
    """Check the rows and split them into train, val and sealed."""
    with step("prepare"):
        bench = Workbench.open(data.location, load_settings())
        dataset = bench.prepare()
        report = DatasetReport.model_validate(bench.store.read_json(dataset.report))
    rows = [
        {"split": split, "rows": count, "groups": report.groups[split], **report.classes.get(split, {})}
        for split, count in report.splits.items()
    ]
    create_table_artifact(
        rows,
        key=artifact_key(data.project, "data"),
        description=f"{report.rows} rows; {report.duplicates} duplicates, {report.near_duplicates} near-duplicates, "
        f"{len(report.set_aside)} set aside, {len(report.bad_rows)} bad rows dropped",
    )
    return dataset
