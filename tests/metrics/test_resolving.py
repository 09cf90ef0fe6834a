"""Finding metrics by name and by table; their names and their sources."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_toolkit.errors import ProjectError
from dspy_toolkit.metrics import (
    BUILT_IN,
    exact_match,
    judge,
    models_of,
    name_of,
    numeric_closeness,
    outputs_needed,
    resolve_metric,
    source_of,
    token_f1,
    weighted,
    with_options,
)


def test_resolve_finds_built_ins_callables_and_functions() -> None:
    assert resolve_metric("exact_match", None) is exact_match
    assert resolve_metric(len, None) is len
    assert resolve_metric("dspy_toolkit.metrics:exact_match", None) is exact_match
    assert name_of(exact_match) == "exact_match"


def test_two_folders_may_hold_metrics_of_one_name(tmp_path: Path) -> None:
    for value in (0.25, 0.75):
        folder = tmp_path / str(value)
        folder.mkdir()
        (folder / "my_metric.py").write_text(f"def close(example, prediction):\n    return {value}\n")
    first, second = (resolve_metric("my_metric:close", tmp_path / str(value)) for value in (0.25, 0.75))
    assert (first(None, None), second(None, None)) == (0.25, 0.75)
    assert name_of(first) == "my_metric:close"


def test_a_package_beside_the_project_may_import_within_itself(tmp_path: Path) -> None:
    package = tmp_path / "scoring"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "parts.py").write_text("WEIGHT = 0.5\n")
    (package / "main.py").write_text("from .parts import WEIGHT\ndef f(example, prediction):\n    return WEIGHT\n")
    metric = resolve_metric("scoring.main:f", tmp_path)
    assert metric(None, None) == 0.5
    assert "WEIGHT = 0.5" in source_of(metric)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("exact_mach", "Did you mean exact_match?"),
        ("good:closs", "good has no function closs. Did you mean close?"),
        ("good:LIMIT", "good has 3, not a function"),
        ("gooood:close", "There is no module gooood"),
        ("gooood:close", "Did you mean good?"),
        (":close", "module:function"),
        ("broken:f", "NameError: name 'undefined' is not defined (broken.py, line 2)"),
        ("unparsed:f", "SyntaxError: '(' was never closed (unparsed.py, line 1)"),
        ("exits:f", "SystemExit: 3 (exits.py, line 2)"),
        ("needs:f", "ModuleNotFoundError: No module named 'not_installed' (needs.py, line 1)"),
    ],
)
def test_a_metric_that_cannot_be_had_is_explained(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "good.py").write_text("LIMIT = 3\ndef close(example, prediction):\n    return 1\n")
    (tmp_path / "broken.py").write_text("x = 1\nundefined\n")
    (tmp_path / "unparsed.py").write_text("f(\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "needs.py").write_text("import not_installed\n")
    with pytest.raises(ProjectError) as caught:
        resolve_metric(name, tmp_path)
    assert says in str(caught.value)


def test_the_source_changes_with_the_file_and_with_what_it_imports_from_beside_it(tmp_path: Path) -> None:
    def source(main: str, beside: str, folder: str) -> str:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        (place / "beside_metric.py").write_text(beside)
        (place / "main_metric.py").write_text(main)
        return source_of(resolve_metric("main_metric:f", place))

    main = "import beside_metric\ndef f(example, prediction):\n    return 1\n"
    first = source(main, "A = 1\n", "one")
    assert source(main, "A = 1\n", "two") == first  # the folder is not in it
    assert source(main, "A = 2\n", "one") != first
    assert source(main, "A = 1\n", "one") == first
    assert source(main.replace("return 1", "return 0"), "A = 1\n", "one") != first
    assert str(tmp_path) not in first


def test_the_library_is_never_imported_a_second_time() -> None:
    repository = Path(__file__).parents[2]
    assert resolve_metric("dspy_toolkit.metrics:exact_match", repository) is exact_match


def test_an_edited_file_is_imported_again(tmp_path: Path) -> None:
    file = tmp_path / "edited.py"
    file.write_text("def f(example, prediction):\n    return 0\n")
    assert resolve_metric("edited:f", tmp_path)(None, None) == 0
    file.write_text("def f(example, prediction):\n    return 1\n")
    assert resolve_metric("edited:f", tmp_path)(None, None) == 1


def test_the_source_is_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def f(example, prediction, limit=1):\n    return limit\n")
    program = (
        "import functools, json; from pathlib import Path; from dspy_toolkit.metrics import *\n"
        f"f = resolve_metric('m:f', Path({str(tmp_path)!r}))\n"
        'typed = eval(\'lambda example, prediction: (example in {"a", "b", "c"}, lambda: 3)\')\n'
        "print(json.dumps([source_of(g) for g in (f, exact_match, functools.partial(f, limit=0.5), typed)]))\n"
    )
    runs = {subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout for _ in range(2)}
    assert len(runs) == 1
    assert len(set(json.loads(runs.pop()))) == 4


def test_bound_arguments_and_attributes_are_in_the_source() -> None:
    class Close:
        def __init__(self, limit: float) -> None:
            self.limit = limit

        def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> float:
            return self.limit

    assert source_of(Close(0.1)) == source_of(Close(0.1)) != source_of(Close(0.2))
    bound = functools.partial(exact_match, example=1)
    assert source_of(bound) == source_of(functools.partial(exact_match, example=1)) != source_of(exact_match)
    assert name_of(bound) == "exact_match(example=1)"
    assert name_of(Close(1)).endswith("Close")


def test_every_built_in_metric_is_found_by_its_name() -> None:
    for name, metric in BUILT_IN.items():
        assert resolve_metric(name, None) is metric
        assert name_of(metric) == name
        assert outputs_needed(metric) == {name: ()}
    assert list(BUILT_IN) == sorted(BUILT_IN)


def test_a_table_binds_options() -> None:
    metric = resolve_metric({"name": "numeric_closeness", "tolerance": 1, "fields": ["price"]}, None)
    assert metric(dspy.Example(price=1, tax=2).with_inputs(), dspy.Prediction(price=5)).value == 1
    assert name_of(metric) == "numeric_closeness(tolerance=1.0, fields=('price',))"
    assert outputs_needed(metric) == {"numeric_closeness": ("price",)}
    assert resolve_metric({"name": "token_f1"}, None) is token_f1


def test_options_make_another_source() -> None:
    bound = [with_options(numeric_closeness, tolerance=value) for value in (0.1, 0.1, 0.2)]
    sources = [source_of(metric) for metric in (*bound, numeric_closeness)]
    assert sources[0] == sources[1]
    assert len(set(sources)) == 3


def test_a_users_function_or_class_takes_options_too(tmp_path: Path) -> None:
    (tmp_path / "optional.py").write_text(
        "def near(example, prediction, trace=None, limit=1):\n    return limit\n"
        "def free(example, prediction, **options):\n    return options['x']\n"
        "class Near:\n"
        "    def __init__(self, limit):\n        self.limit = limit + 0\n"
        "    def __call__(self, example, prediction):\n        return self.limit\n"
    )

    def value(**table: Any) -> Any:
        return resolve_metric(table, tmp_path)(None, None)

    assert value(name="optional:near", limit=0.25) == 0.25
    assert value(name="optional:near") == 1
    assert value(name="optional:free", x=0.5) == 0.5
    assert value(name="optional:Near", limit=0.75) == 0.75
    assert name_of(resolve_metric({"name": "optional:near", "limit": 0.25}, tmp_path)) == "optional:near(limit=0.25)"


def test_a_composite_is_made_from_tables(tmp_path: Path) -> None:
    (tmp_path / "own_part.py").write_text("def f(example, prediction, limit=1):\n    return limit\n")
    table = {
        "name": "weighted",
        "of": [
            {"name": "token_f1", "weight": 0.7},
            {"name": "judge", "rubric": "Polite?", "model": "openai/x", "scale": 3, "weight": 0.2},
            {"name": "weighted", "of": ["exact_match"], "weight": 0.1},
            "own_part:f",
        ],
        "require": ["own_part:f", {"name": "own_part:f", "limit": 0.5, "at_least": 0.5}],
    }
    metric = resolve_metric(table, tmp_path)
    assert name_of(metric) == (
        "weighted(0.7 token_f1, 0.2 judge('Polite?', model='openai/x', scale=3), 0.1 weighted(1 exact_match), "
        "1 own_part:f; requires own_part:f, own_part:f(limit=0.5) >= 0.5)"
    )
    assert source_of(metric) == source_of(resolve_metric(table, tmp_path))
    assert models_of(metric) == ("openai/x",)
    assert metric.of[1][0] == judge("Polite?", model="openai/x", scale=3)
    assert source_of(metric) == source_of(weighted(metric.of, metric.require))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({}, "has no name. Known: exact_match, json_fields, judge"),
        ({"name": 3}, "has no name"),
        ({"name": "token_f2"}, "'token_f2' is not built in. Did you mean token_f1?"),
        ({"name": "token_f1", "feilds": ["a"]}, "metric token_f1 has no option 'feilds'. Did you mean fields?"),
        ({"name": "token_f1", "example": 1}, "has no option 'example'"),
        ({"name": "token_f1", "fields": "a"}, "fields is 'a'. Write a list"),
        ({"name": "token_f1", "fields": [1]}, "fields is [1]. Input should be a valid string."),
        (
            {"name": "numeric_closeness", "tolerance": -1},
            "tolerance is -1. Input should be greater than or equal to 0.",
        ),
        ({"name": "numeric_closeness", "tolerance": "much"}, "tolerance is 'much'"),
        ({"name": "set_overlap", "separators": ""}, "separators is ''"),
        ({"name": "judge"}, "rubric is None"),
        ({"name": "judge", "rubrik": "x"}, "metric judge has no option 'rubrik'. Did you mean rubric?"),
        ({"name": "judge", "rubric": "x", "model": "x"}, "model is 'x'"),
        ({"name": "weighted"}, "of is empty"),
        ({"name": "weighted", "off": []}, "metric weighted has no option 'off'. Did you mean of?"),
        ({"name": "weighted", "of": "token_f1"}, "of is 'token_f1'. Write a list"),
        (
            {"name": "weighted", "of": ["exact_mach"]},
            "metric weighted, of, entry 1: metric 'exact_mach' is not built in",
        ),
        ({"name": "weighted", "of": [{"name": "token_f1", "wieght": 1}]}, "has no option 'wieght'"),
        ({"name": "weighted", "of": [3]}, "3 is no metric"),
        ({"name": "weighted", "of": [{"name": "token_f1", "weight": 0}]}, "weight of token_f1 is 0"),
        ({"name": "weighted", "of": ["token_f1"], "require": [{"name": "token_f1", "at_least": 2}]}, "at_least"),
        ({"name": "simple:f", "x": 1}, "metric simple:f has no option 'x'. It takes none."),
        ({"name": "simple:Made", "x": 1}, "cannot be made: TypeError"),
    ],
)
def test_a_table_that_cannot_be_used_is_explained(tmp_path: Path, table: dict[str, Any], says: str) -> None:
    (tmp_path / "simple.py").write_text(
        "def f(example, prediction, trace=None):\n    return 1\nclass Made:\n    def __call__(self, e, p):\n        return 1\n"
    )
    with pytest.raises(ProjectError) as caught:
        resolve_metric(table, tmp_path)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["judge", "weighted"])
def test_a_metric_that_is_nothing_without_options_says_how_to_give_them(name: str) -> None:
    with pytest.raises(ProjectError, match=rf'needs options\. Write a table: metric = {{ name = "{name}"'):
        resolve_metric(name, None)


def test_the_tables_of_the_documentation_are_metrics(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    blocks = re.findall(r"```(\w+)\n(.*?)```", page, re.S)
    [own] = [text for kind, text in blocks if kind == "python" and "def short_enough" in text]
    (tmp_path / "own.py").write_text(own)
    names = {
        name_of(resolve_metric(tomllib.loads(text)["metric"], tmp_path)).partition("(")[0]
        for kind, text in blocks
        if kind == "toml"
    }
    assert names == {"numeric_closeness", "judge", "weighted", "own:short_enough"}
