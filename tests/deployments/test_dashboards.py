"""The rules and the dashboard: every name, label and value in them is one that is really exposed, and promtool runs the rules' tests.

What is exposed is text: of our pages over a home with a night and a look, and of a serving process with an engine, read as
Prometheus reads it. Where the code fixes a label's values (`outcome` of requests and swaps), an expression may name no others.

Not covered: Grafana itself, and PromQL beyond what these files need; promtool checks its syntax.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deployments import pages
from deployments.places import Places, Ports
from dspy_toolkit.lm.engine import stats
from dspy_toolkit.lm.exporter import OUTCOMES
from dspy_toolkit.lm.litellm.provider import serve, withdraw
from dspy_toolkit.lm.protocol import Reply
from dspy_toolkit.monitoring.alerts import receive
from dspy_toolkit.monitoring.sequential import fall_of
from dspy_toolkit.monitoring.watching import Watch
from dspy_toolkit.serving.measures import Measures
from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import FakeEngine
from dspy_toolkit.tracking.looks import keep_look
from tests.deployments.test_pages import record_night

ROOT = Path(__file__).parents[2]
HERE = ROOT / "deployments/dashboards"
SERVING = ROOT / "dspy_toolkit/serving"
SERIES = re.compile(r"\b(dspy_toolkit[\w:]+)(?:\{([^{}]*)\})?")
MATCHER = re.compile(r'\s*(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"\s*(?:,|$)')
GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\b\s*(?:\(([^()]*)\)\s*(\()?)?")
RISING = re.compile(r"\b(?:rate|increase)\((dspy_toolkit[\w:]+)")
SHOWN = re.compile(r"\{\{ ?(?:\$labels\.)?(\w+) ?\}\}")
OF_A_SCRAPE = {"job", "instance"}
"""Labels that Prometheus adds."""
CLIENTS_OWN = {"rate_limited", "too_many_at_once"}
"""Refusals that say nothing of the server."""

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)


@dataclass
class Exposed:
    """What expressions may name."""

    labels: dict[str, set[str]] = field(default_factory=dict)
    """Of each series."""
    values: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    """Of the labels, by series and name, whose values the code fixes."""
    rising: set[str] = field(default_factory=set)
    """The series that only grow."""

    def read(self, text: str) -> None:
        """Add the series of an exposition."""
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                known = self.labels.setdefault(sample.name, set(sample.labels))
                assert known == set(sample.labels), f"{sample.name} has two sets of labels"
                if family.type in ("counter", "histogram"):
                    self.rising.add(sample.name)


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Exposed:
    """Our pages' text, that of a process that serves, and what the rules record of them."""
    found, folder = Exposed(), tmp_path_factory.mktemp("exposed")
    home = Settings(home=folder)
    shutil.copy(empty_mlflow, home.path("mlflow.db"))
    record_night(home, sealed_candidate=0.62, sealed_champion=0.6)
    fall = fall_of([1.0] * 30 + [0.0] * 30, 0.9)
    look = Watch(
        project="questions", version=2, reference=0.9, reference_rows=100, served=fall, fresh=None, replies=80, labelled=60,
        liked=None, parse_failures=0, seconds_median=0.5, seconds_p95=1.5, drift=(), calibration=None, asked_again=8, otherwise=0,
    )  # fmt: skip
    keep_look(home, look, "monitor")
    receive(home, "a subject", "a body")
    found.read(pages.metrics(pages.Data(Places(folder, home, Ports()))).decode())

    measures = Measures(lambda: 1, lambda: 2)
    measures.requests.labels("router", "answered").inc()
    measures.seconds.labels("router").observe(0.2)
    measures.moves.labels("router", "router@2", "model_failed").inc()
    measures.swaps.labels("router", "swapped").inc()
    engine = FakeEngine(lambda request: "")
    serve(engine)
    stats.observe(engine.model, Reply(text="", finish_reason="stop", prompt_tokens=1, completion_tokens=1))
    found.read(measures.text().decode())
    withdraw(engine.model)
    engine.close()

    found.values[f"{stats.PREFIX}requests_total", "outcome"] = set(OUTCOMES)
    found.values["dspy_toolkit_serving_requests_total", "outcome"] = {"answered", "client_gone", *codes()}
    found.values["dspy_toolkit_serving_swaps_total", "outcome"] = told()
    found.values["dspy_toolkit_alerts", "sent"] = {"true", "false"}
    for rule in rules():
        if "record" in rule:
            found.labels[rule["record"]] = shown_labels(rule["expr"], found)
    return found


def calls(name: str) -> list[list[Any]]:
    """What is given to each call, in serving, of a function or a method of that name; None for what is no literal."""
    found = []
    for path in SERVING.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", None)) == name:
                found.append([each.value if isinstance(each, ast.Constant) else None for each in node.args])
    return found


def codes() -> dict[str, int]:
    """Code of a problem → status of HTTP, as serving's sources have them."""
    return {given[1]: given[0] for given in calls("Problem") if all(given[:2])}


def told() -> set[str]:
    """The outcomes of swaps."""
    return {given[1] for given in calls("_told")}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((HERE / "rules.yaml").read_text())["groups"] for rule in group["rules"]]


def board() -> dict[str, Any]:
    return json.loads((HERE / "grafana.json").read_text())


def variables() -> dict[str, str]:
    """Name → query, of those of the dashboard that a query fills."""
    return {each["name"]: each["query"] for each in board()["templating"]["list"] if each["type"] == "query"}


def shown() -> list[tuple[str, str]]:
    """The panels' expressions, with what a line is called."""
    return [(target["expr"], target["legendFormat"]) for panel in board()["panels"] for target in panel["targets"]]


def expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + [expression for expression, _ in shown()]


def shown_labels(expression: str, there: Exposed) -> set[str]:
    """The labels of what an expression gives."""
    groups = [match[1].replace(" ", "").split(",") for match in GROUPING.finditer(expression)]
    if groups:
        return {label for group in groups for label in group} - {"le"}
    return {label for name, _ in SERIES.findall(expression) for label in there.labels.get(name, ())} | OF_A_SCRAPE


def inside(text: str, opening: int) -> str:
    """What is between a parenthesis and the one that closes it."""
    depth = 0
    for at in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return text[opening + 1 : at]
    raise AssertionError(f"a parenthesis is not closed: {text}")


def faults(expression: str, there: Exposed) -> list[str]:
    """What in it is not exposed."""
    found = []
    for name, given in SERIES.findall(expression):
        if name not in there.labels:
            found.append(f"there is no series {name}")
            continue
        if MATCHER.sub("", given).strip():
            found.append(f"{{{given}}} cannot be read")
        for label, how, value in MATCHER.findall(given):
            if label not in there.labels[name] | OF_A_SCRAPE:
                found.append(f"{name} has no label {label}")
            elif value.startswith("$"):
                if value[1:] not in variables():
                    found.append(f"the dashboard has no variable {value}")
            elif unknown := {*(value.split("|") if "~" in how else [value])} - there.values.get((name, label), set()):
                found.append(f"{label} of {name} is never {', '.join(sorted(unknown))}")
    for match in GROUPING.finditer(expression):
        if match[2] is None:
            found.append(f"{match[0]} does not stand before what it groups")
            continue
        argument = inside(expression, match.end() - 1)
        for name, _ in SERIES.findall(argument):
            for label in match[1].replace(" ", "").split(","):
                if label not in there.labels.get(name, {label}) | OF_A_SCRAPE:
                    found.append(f"{name} has no label {label} to group by")
        if re.search(r"histogram_quantile\([^()]*$", expression[: match.start()]) and "le" not in match[1]:
            found.append("a quantile needs le")
    found += [f"{name} does not only grow" for name in RISING.findall(expression) if name not in there.rising]
    return found


def test_every_expression_names_series_labels_and_values_that_are_exposed(exposed: Exposed) -> None:
    assert {expression: said for expression in expressions() if (said := faults(expression, exposed))} == {}
    used = {name for expression in expressions() for name, _ in SERIES.findall(expression)}
    for name in ("requests_total", "seconds_bucket", "fallbacks_total", "waiting_requests", "swaps_total"):
        assert f"dspy_toolkit_serving_{name}" in used
    assert {pages.PREFIX + name for name in pages.GAUGES} <= exposed.labels.keys()
    for name, query in variables().items():
        series, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", query).groups()  # type: ignore[union-attr]
        assert label == name and label in exposed.labels[series]


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("dspy_toolkit_serving_request_total", "no series"),
        ('dspy_toolkit_serving_requests_total{project="x"}', "no label project"),
        ('dspy_toolkit_serving_requests_total{outcome=~"answered|fine"}', "is never fine"),
        ('dspy_toolkit_lm_requests_total{outcome!="answered"}', "is never answered"),
        ('dspy_toolkit_serving_swaps_total{outcome="promoted"}', "is never promoted"),
        ('dspy_toolkit_program_e_value{project="router"}', "is never router"),
        ('dspy_toolkit_program_e_value{project=~"$projects"}', "no variable"),
        ("dspy_toolkit_program_e_value{project=~$project}", "cannot be read"),
        ("sum by (model) (rate(dspy_toolkit_serving_requests_total[5m]))", "no label model to group by"),
        ("sum by (program) (dspy_toolkit:decode_tokens_per_second)", "no label program to group by"),
        ("sum(rate(dspy_toolkit_serving_requests_total[5m])) by (program)", "does not stand before"),
        (
            "histogram_quantile(0.95, sum by (program) (rate(dspy_toolkit_serving_seconds_bucket[5m])))",
            "a quantile needs le",
        ),
        ("rate(dspy_toolkit_serving_waiting_requests[5m])", "does not only grow"),
    ],
)
def test_an_expression_with_a_fault_is_seen(expression: str, said: str, exposed: Exposed) -> None:
    [fault] = faults(expression, exposed)
    assert said in fault


def test_lines_and_alerts_are_called_by_labels_that_there_are(exposed: Exposed) -> None:
    for expression, legend in shown():
        assert set(SHOWN.findall(legend)) <= shown_labels(expression, exposed), legend
    for rule in rules():
        if "alert" in rule:
            said = rule["annotations"]["summary"]
            assert re.search(r"[Tt]ype: |optimize anew", said), rule["alert"]
            assert set(SHOWN.findall(said)) <= shown_labels(rule["expr"], exposed), said


def test_what_is_not_answered_is_every_trouble_of_the_server_and_no_client_of_its_own() -> None:
    [rule] = [rule for rule in rules() if rule.get("record") == "dspy_toolkit:unanswered_requests:share"]
    unanswered, counted = (set(value.split("|")) for value in re.findall(r'outcome=~"([^"]*)"', rule["expr"]))
    troubles = {code for code, status in codes().items() if status >= 500 or status == 429} - CLIENTS_OWN
    assert codes().keys() >= CLIENTS_OWN
    assert unanswered == troubles and counted == troubles | {"answered"}
    [alert] = [rule for rule in rules() if rule.get("alert") == "RequestsAreNotAnswered"]
    assert alert["for"] == "10m"


def test_no_panel_covers_another() -> None:
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (panel["gridPos"]["x"] + across, panel["gridPos"]["y"] + down)
        for panel in panels
        for across in range(panel["gridPos"]["w"])
        for down in range(panel["gridPos"]["h"])
    ]
    assert len(set(taken)) == len(taken) and max(across for across, _ in taken) < 24


def promtool(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *words], cwd=folder, capture_output=True, text=True, check=False)


@needs_promtool
@pytest.mark.parametrize("what", [["rules", "rules.yaml"], ["config", "prometheus.yaml"]])
def test_promtool_accepts_them(what: list[str]) -> None:
    done = promtool(HERE, "check", *what)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_accepts_the_key_of_serving_too(tmp_path: Path) -> None:
    text = (HERE / "prometheus.yaml").read_text()
    lines = re.findall(r"^    # (authorization:\n)    # (  type: Bearer\n)    # (  credentials_file: .*\n)", text, re.M)
    [found] = lines
    key = tmp_path / "key"
    key.write_text("dtk_…")
    shutil.copy(HERE / "rules.yaml", tmp_path)
    uncommented = re.sub(r"^    # (authorization:|  type:|  credentials_file:)", r"    \1", text, flags=re.M)
    file = tmp_path / "prometheus.yaml"
    file.write_text(re.sub(r"(credentials_file: ).*", rf"\1{key}", uncommented))
    serving = yaml.safe_load(file.read_text())["scrape_configs"][1]
    assert serving["job_name"] == "serving" and len(found) == 3
    assert serving["authorization"] == {"type": "Bearer", "credentials_file": str(key)}
    done = promtool(tmp_path, "check", "config", "prometheus.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_every_expression_can_be_parsed(tmp_path: Path) -> None:
    groups = [{"name": "all", "rules": [{"record": f"x:{n}", "expr": each} for n, each in enumerate(expressions())]}]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"groups": groups}))
    done = promtool(tmp_path, "check", "rules", "all.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_a_unit_test_over_series_as_they_are_exposed(exposed: Exposed) -> None:
    read = yaml.safe_load((HERE / "rules_test.yaml").read_text())
    assert read["rule_files"] == ["rules.yaml"]
    cases = [case for test in read["tests"] for case in test.get("alert_rule_test", ())]
    asked = {case["expr"] for test in read["tests"] for case in test.get("promql_expr_test", ())}
    for rule in rules():
        if "record" in rule:
            assert rule["record"] in asked
        else:
            fires = {bool(case["exp_alerts"]) for case in cases if case["alertname"] == rule["alert"]}
            assert fires == {True, False}, rule["alert"]
    for given in (each["series"] for test in read["tests"] for each in test["input_series"]):
        [(name, labels)] = SERIES.findall(given)
        assert {label for label, _, _ in MATCHER.findall(labels)} == exposed.labels[name], given
        for label, _, value in MATCHER.findall(labels):
            assert value in exposed.values.get((name, label), {value}), given


@needs_promtool
def test_the_rules_pass_their_unit_tests() -> None:
    done = promtool(HERE, "test", "rules", "rules_test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("        for: 10m\n        labels: {severity: page}", "        labels: {severity: page}"),
        ("unanswered_requests:share > 0.05", "unanswered_requests:share > 0.5"),
        ('outcome=~"breaker_open|', 'outcome=~"client_gone|breaker_open|'),
        ('outcome=~"answered|breaker_open', 'outcome=~"breaker_open'),
        ("/ sum by (program)", "/ sum"),
        ('outcome="failed"', 'outcome="cancelled"'),
        ("failed_requests:share > 0.05", "failed_requests:share > 0.01"),
        ("queue_seconds:p95 > 10", "queue_seconds:p95 > 30"),
        ("(0.95,", "(0.5,"),
        ("e_value >= 100", "e_value > 100"),
        ("> 3 * 3600", "> 2 * 3600"),
        ("drifted_fields > 0", "drifted_fields >= 0"),
    ],
)
def test_the_unit_tests_see_a_rule_that_is_another(right: str, wrong: str, tmp_path: Path) -> None:
    text = (HERE / "rules.yaml").read_text()
    assert right in text
    (tmp_path / "rules.yaml").write_text(text.replace(right, wrong))
    shutil.copy(HERE / "rules_test.yaml", tmp_path)
    assert promtool(tmp_path, "check", "rules", "rules.yaml").returncode == 0, "it is a rule, and another one"
    done = promtool(tmp_path, "test", "rules", "rules_test.yaml")
    assert done.returncode == 1 and "FAILED" in done.stderr + done.stdout
