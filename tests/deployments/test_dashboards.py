"""The rules and the dashboard: promtool accepts them, and every figure that they name is really exposed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from deployments.pages import GAUGES, PREFIX

HERE = Path(__file__).parents[2] / "deployments/dashboards"
FIGURE = re.compile(r"\bdspy_toolkit_\w+")
RECORDED = re.compile(r"\bdspy_toolkit:[\w:]+")


def rules() -> list[dict[str, str]]:
    return [rule for group in yaml.safe_load((HERE / "rules.yaml").read_text())["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    board = json.loads((HERE / "grafana.json").read_text())
    shown = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    chosen = [each["query"] for each in board["templating"]["list"] if each["type"] == "query"]
    return [rule["expr"] for rule in rules()] + shown + chosen


def exposed() -> set[str]:
    """The series of the engines and of our pages, as they are exposed. tests/deployments/test_pages.py has the latter from HTTP."""
    from dspy_toolkit.lm.engine import stats
    from dspy_toolkit.lm.exporter import EngineCollector
    from dspy_toolkit.testing import FakeEngine

    engine = FakeEngine(lambda request: "")
    families = list(EngineCollector(lambda: {"mlx/fake": engine}).collect())
    engine.close()
    names = {sample.name for family in families for sample in family.samples}
    names |= {f"{stats.PREFIX}{part}_{end}" for part in stats.PARTS for end in ("bucket", "sum", "count")}
    return names | {PREFIX + name for name in GAUGES}


def test_every_expression_names_figures_that_are_exposed() -> None:
    used = {name for expression in expressions() for name in FIGURE.findall(expression)}
    assert len(used) > 12 and used <= exposed(), used - exposed()
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert {name for expression in expressions() for name in RECORDED.findall(expression)} <= recorded


def test_every_alert_says_what_to_type() -> None:
    for rule in rules():
        if "alert" in rule:
            said = rule["annotations"]["summary"]  # type: ignore[index]
            assert re.search(r"[Tt]ype: |optimize anew", said), rule["alert"]


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)
@pytest.mark.parametrize("check", [["rules", "rules.yaml"], ["config", "prometheus.yaml"]])
def test_promtool_accepts_them(check: list[str]) -> None:
    done = subprocess.run(["promtool", "check", *check], cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)
def test_every_expression_can_be_parsed(tmp_path: Path) -> None:
    shown = [each for each in expressions() if not each.startswith("label_values")]
    groups = [{"name": "all", "rules": [{"record": f"x:{n}", "expr": each} for n, each in enumerate(shown)]}]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"groups": groups}))
    done = subprocess.run(
        ["promtool", "check", "rules", "all.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
