"""A project from the test files of another tool: promptfoo's configuration (YAML or JSON), OpenAI Evals' samples (JSON Lines).

What has no counterpart is refused by its name and never dropped unsaid: templates of prompts become instructions, variables
inputs, expected values outputs. No code of such a file runs: promptfoo's `javascript` and `python` assertions, `file://` and
`exec:` are refused.

    promptfoo      its one prompt → instructions; tests[].vars, with those of defaultTest → inputs; one assertion each:
                   `equals` → exact_match, `similar` and `rouge-n` → token_f1
    OpenAI Evals   the system message → instructions; the user's → the input `input`; `ideal` → the output `answer`. Where a
                   sample accepts several answers, all of them → the output `accepted`, and the project is Python, whose
                   metric takes each
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dspy_toolkit.errors import ProjectError
from dspy_toolkit.scaffold.writing import NewProject, read_template, write_project

METRICS = {"equals": "exact_match", "similar": "token_f1", "rouge-n": "token_f1"}
"""promptfoo's assertion → the metric here."""
SETTINGS = (
    "$schema", "commandLineOptions", "description", "env", "evaluateOptions", "outputPath", "providers", "sharing",
    "tags", "targets", "prompts", "tests", "defaultTest",
)  # fmt: skip
"""What a configuration of promptfoo's may have: its tests, and what says nothing of them."""
TEST = ("assert", "description", "metadata", "vars")
ASSERTION = ("metric", "type", "value")
SAMPLE = ("id", "ideal", "input", "metadata")
LARGEST = 64 * 2**20
"""Bytes of a file that are read."""
MOST_LABELS = 12
"""Different expected values that still are a choice."""


def from_evals(name: str, file: Path, into: Path | None = None) -> NewProject:
    """Write a project with the rows of `file`.

    Raises:
        ProjectError: the file cannot be read, or holds what no project can have; it says what and where.
    """
    text = _text(file)
    if file.suffix in (".yaml", ".yml") or (file.suffix == ".json" and text.lstrip().startswith("{")):
        found = _promptfoo(_mapping(text, file), file)
    elif file.suffix == ".jsonl":
        found = _openai(text, file)
    else:
        raise ProjectError(f"{file} is neither promptfoo's (.yaml, .yml, .json) nor OpenAI Evals' samples (.jsonl).")
    if not found.rows:
        raise ProjectError(f"{file} holds no test with an expected answer. Add some hundred.")
    return write_project(name, _files(name, file, found), into)


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > LARGEST:
            raise ProjectError(f"{file} has more than {LARGEST:,} bytes. Take a part of it.")
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ProjectError(f"{file} cannot be read: {error}. Save it as UTF-8 text.") from error


def _mapping(text: str, file: Path) -> dict[str, Any]:
    import yaml

    try:
        # JSON is YAML too. The safe loader makes plain values alone.
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ProjectError(f"{file} is no YAML: {str(error).splitlines()[0]}. Correct it.") from error
    if not isinstance(value, dict):
        raise ProjectError(f"{file} holds no configuration of promptfoo's.")
    return value


class Row(NamedTuple):
    """A test: its inputs, and the answers that it accepts, the first of them before the others."""

    inputs: dict[str, str]
    accepted: tuple[str, ...]


class Tests(NamedTuple):
    """What a file holds of a project."""

    instructions: str
    rows: list[Row]
    metric: str


def _promptfoo(config: Mapping[str, Any], file: Path) -> Tests:
    prompt = _prompt(config.get("prompts"), file)
    tests = config.get("tests")
    if not isinstance(tests, list):
        raise ProjectError(f"{file}: tests is no list. Write the tests themselves into it.")
    _refuse_others(config, SETTINGS, f"{file}")
    defaults = config.get("defaultTest") or {}
    if not isinstance(defaults, dict):
        raise ProjectError(f"{file}: defaultTest is {str(defaults)[:80]!r}. Write its vars and assert into it.")
    _refuse_others(defaults, TEST, f"{file}, defaultTest")
    rows, metrics = [], set()
    for number, test in enumerate(tests, start=1):
        where = f"{file}, test {number}"
        row, metric = _test(test, defaults, where)
        rows.append(row)
        metrics.add(metric)
    if len(metrics) > 1:
        raise ProjectError(f"{file} asserts in several ways ({', '.join(sorted(metrics))}); a project has one metric.")
    return Tests(_instructions(prompt, file), rows, metrics.pop() if metrics else "exact_match")


def _prompt(prompts: Any, file: Path) -> str:
    if isinstance(prompts, list) and len(prompts) > 1:
        raise ProjectError(
            f"{file} has {len(prompts)} prompts; a project has one. Keep one, and let a run find better."
        )
    prompt = prompts[0] if isinstance(prompts, list) and prompts else prompts
    if not isinstance(prompt, str):
        raise ProjectError(f"{file}: prompts holds no text. Write the prompt itself into it.")
    if re.match(r"(file|exec|https?)://|exec:", prompt) or (
        "\n" not in prompt and prompt.endswith((".txt", ".py", ".js"))
    ):
        raise ProjectError(f"{file}: the prompt {prompt!r} is a file. Write the prompt itself into prompts.")
    return prompt


def _test(test: Any, defaults: Mapping[str, Any], where: str) -> tuple[Row, str]:
    """A test with what defaultTest adds, and the metric that it asks for."""
    if not isinstance(test, dict):
        raise ProjectError(f"{where} is {str(test)[:80]!r}. Write vars and assert into it.")
    _refuse_others(test, TEST, where)
    sides = [each.get("vars") or {} for each in (defaults, test)]
    if not any(sides) or not all(isinstance(side, dict) for side in sides):
        raise ProjectError(f"{where}: vars is no mapping of names to texts.")
    asserted = [one for each in (defaults, test) for one in each.get("assert") or []]
    if len(asserted) != 1 or not isinstance(asserted[0], dict):
        raise ProjectError(f"{where} has {len(asserted)} assertions; one with an expected value is taken.")
    kind = asserted[0].get("type")
    if not (metric := METRICS.get(str(kind))):
        known = ", ".join(METRICS)
        raise ProjectError(
            f"{where} asserts {kind!r}, which has no counterpart. Taken are {known}; write a metric for it."
        )
    _refuse_others(asserted[0], ASSERTION, f"{where}, the assertion {kind!r}")
    variables = {**sides[0], **sides[1]}
    inputs = {_name(key): _plain(each, f"{where}, {key}") for key, each in variables.items()}
    if len(inputs) < len(variables):
        raise ProjectError(f"{where}: two of {', '.join(map(str, variables))} are one name here. Rename one.")
    return Row(inputs, (_plain(asserted[0].get("value"), where),)), metric


def _refuse_others(given: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Refuse the first key that is not among `known` and says something."""
    if other := next((key for key, value in given.items() if key not in known and value not in (None, {}, [])), None):
        inner = given[other]
        name = f"{other}.{next(iter(inner))}" if isinstance(inner, dict) else str(other)
        raise ProjectError(
            f"{where} has {name}, which has no counterpart. Take it out, if the tests are right without it."
        )


def _openai(text: str, file: Path) -> Tests:
    rows: list[Row] = []
    systems: dict[str, None] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"{file}, line {number}"
        if not line.strip():
            continue
        try:
            sample = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ProjectError(f"{where} is no JSON: {error}. Correct it.") from None
        if not isinstance(sample, dict) or "input" not in sample or "ideal" not in sample:
            raise ProjectError(f"{where} has no input and ideal. Give one sample a line.")
        _refuse_others(sample, SAMPLE, where)
        system, asked = _messages(sample["input"], where)
        ideals = sample["ideal"] if isinstance(sample["ideal"], list) and sample["ideal"] else [sample["ideal"]]
        systems[system] = None
        rows.append(Row({"input": asked}, tuple(dict.fromkeys(_plain(ideal, where) for ideal in ideals))))
    if len(systems) > 1:
        raise ProjectError(f"{file} has {len(systems)} different system messages; a project has one. Split the file.")
    return Tests(next(iter(systems), ""), rows, "exact_match")


def _messages(given: Any, where: str) -> tuple[str, str]:
    """(the system message, what is asked) of a sample's input."""
    if isinstance(given, str):
        return "", given
    if not isinstance(given, list) or not all(isinstance(each, dict) and "content" in each for each in given):
        raise ProjectError(f"{where}: input is neither a text nor messages.")
    system = "\n\n".join(_plain(each["content"], where) for each in given if each.get("role") == "system")
    users = [_plain(each["content"], where) for each in given if each.get("role") != "system"]
    if len(users) != 1:
        raise ProjectError(f"{where} is a conversation of {len(users)} messages; one message of a user is taken.")
    return system, users[0]


def _plain(value: Any, where: str) -> str:
    if not isinstance(value, str | int | float | bool):
        raise ProjectError(f"{where}: {str(value)[:80]!r} is no text. Write one.")
    text = str(value)
    if re.match(r"(file|exec|https?)://", text):
        raise ProjectError(f"{where}: {text[:80]!r} stands for something elsewhere. Write the text itself.")
    return text


def _name(key: Any) -> str:
    """A field's name of a variable's."""
    name = re.sub(r"\W", "_", str(key)).strip("_").lower()
    return name if name.isidentifier() else f"field_{name}"


def _instructions(prompt: str, file: Path) -> str:
    """A prompt's template without the places of its variables, which are fields of the signature now."""
    text = re.sub(r"\s*\{\{-?\s*[\w.]+\s*-?\}\}", "", prompt).strip()
    if code := re.search(r"\{\{.*?\}\}|\{%.*?%\}", text, re.S):
        raise ProjectError(f"{file}: the prompt computes {code[0][:80]!r}. Write the text that it should have there.")
    return text


def _files(name: str, file: Path, found: Tests) -> dict[str, str]:
    """File name → text, of the project's folder."""
    rows, inputs = found.rows, list(dict.fromkeys(key for row in found.rows for key in row.inputs))
    if any(set(row.inputs) != set(inputs) for row in rows):
        raise ProjectError(f"{file}: not every test has all of {', '.join(inputs)}. Give each of them to every test.")
    output = next(
        free for free in ("answer", "ideal", *(f"answer_{n}" for n in range(len(inputs)))) if free not in inputs
    )
    labels = sorted({row.accepted[0] for row in rows})
    several = any(len(row.accepted) > 1 for row in rows)
    table = [{**{field: row.inputs[field] for field in inputs}, output: row.accepted[0]} for row in rows]
    if several:  # OpenAI Evals' alone
        table = [line | {"accepted": row.accepted} for line, row in zip(table, rows, strict=True)]
    choice = found.metric == "exact_match" and len(labels) <= MOST_LABELS and len(rows) >= 3 * len(labels)
    kind = f"Literal[{', '.join(repr(label) for label in labels)}]" if choice else "str"
    sides = ", ".join(f"{field}: str" for field in inputs)
    lines = [
        f"# From {file.name}.",
        f"name = {_toml(name)}",
        f"summary = {_toml(f'From {file.name}')}",
        f"signature = {_toml(f'{sides} -> {output}: {kind}')}",
        *([f"instructions = {_toml(found.instructions)}"] if found.instructions else []),
        f"metric = {_toml(found.metric)}",
        "",
        "[dataset]",
        'source = "rows.jsonl"',
        f"inputs = {_list(inputs)}",
        f"outputs = {_list([output])}",
    ]
    said = {"output": output, "project": "project.py" if several else "project.toml"}
    said |= {"instructions": repr(found.instructions or None), "summary": repr(f"From {file.name}")}
    texts = read_template("evals", name, said)
    if not several:
        texts["project.toml"] = "\n".join(lines) + "\n"
        del texts["project.py"]
    written = "\n".join(json.dumps(line, ensure_ascii=False) for line in table)
    return {**texts, "rows.jsonl": written + "\n"}


def _toml(text: str) -> str:
    """A TOML basic string, which is written as JSON's but for the delete character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _list(names: Iterable[str]) -> str:
    return f"[{', '.join(_toml(name) for name in names)}]"
