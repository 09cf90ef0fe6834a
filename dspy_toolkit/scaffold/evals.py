"""A project from the test files of another tool: promptfoo's configuration (YAML or JSON), OpenAI Evals' samples (JSON Lines).

What has no counterpart is refused by its name and never dropped unsaid: templates of prompts become instructions, variables
inputs, expected values outputs. No code of such a file runs: promptfoo's `javascript` and `python` assertions, `file://` and
`exec:` are refused.

    promptfoo      the first of prompts → instructions; tests[].vars → inputs; one assertion each: `equals` → exact_match,
                   `similar` and `rouge-n` → token_f1
    OpenAI Evals   the system message → instructions; the user's → the input `input`; `ideal` → the output `answer`
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dspy_toolkit.errors import ProjectError
from dspy_toolkit.scaffold.writing import NewProject, write_project

METRICS = {"equals": "exact_match", "similar": "token_f1", "rouge-n": "token_f1"}
"""promptfoo's assertion → the metric here."""
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
        instructions, rows, metric = _promptfoo(_mapping(text, file), file)
    elif file.suffix == ".jsonl":
        instructions, rows, metric = _openai(text, file)
    else:
        raise ProjectError(f"{file} is neither promptfoo's (.yaml, .yml, .json) nor OpenAI Evals' samples (.jsonl).")
    if not rows:
        raise ProjectError(f"{file} holds no test with an expected answer. Add some hundred.")
    output = "answer" if "answer" not in rows[0] else "ideal"
    return write_project(name, _files(name, file.name, instructions, rows, metric, output), into)


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


Row = dict[str, str]
EXPECTED = "\0expected"
"""Key of the expected answer among a row's inputs, which no variable has."""


def _promptfoo(config: Mapping[str, Any], file: Path) -> tuple[str, list[Row], str]:
    prompts = config.get("prompts")
    first = prompts[0] if isinstance(prompts, list) and prompts else prompts
    if not isinstance(first, str):
        raise ProjectError(f"{file}: prompts holds no text. Write the prompt itself into it.")
    if re.match(r"(file|exec|https?)://|exec:", first) or (
        "\n" not in first and first.endswith((".txt", ".py", ".js"))
    ):
        raise ProjectError(f"{file}: the prompt {first!r} is a file. Write the prompt itself into prompts.")
    tests = config.get("tests")
    if not isinstance(tests, list):
        raise ProjectError(f"{file}: tests is no list. Write the tests themselves into it.")
    defaults = config.get("defaultTest") if isinstance(config.get("defaultTest"), dict) else {}
    rows, metrics = [], set()
    for number, test in enumerate(tests, start=1):
        where = f"{file}, test {number}"
        if not isinstance(test, dict) or not isinstance(variables := test.get("vars"), dict):
            raise ProjectError(f"{where}: vars is no mapping of names to texts.")
        asserted = [*(defaults or {}).get("assert", []), *(test.get("assert") or [])]
        if len(asserted) != 1 or not isinstance(asserted[0], dict):
            raise ProjectError(f"{where} has {len(asserted)} assertions; one with an expected value is taken.")
        kind, value = asserted[0].get("type"), asserted[0].get("value")
        if not (metric := METRICS.get(str(kind))):
            known = ", ".join(METRICS)
            raise ProjectError(
                f"{where} asserts {kind!r}, which has no counterpart. Taken are {known}; write a metric for it."
            )
        metrics.add(metric)
        row = {_name(key): _plain(each, f"{where}, {key}") for key, each in variables.items()}
        rows.append(row | {EXPECTED: _plain(value, where)})
    if len(metrics) > 1:
        raise ProjectError(f"{file} asserts in several ways ({', '.join(sorted(metrics))}); a project has one metric.")
    return _instructions(first), rows, metrics.pop() if metrics else "exact_match"


def _openai(text: str, file: Path) -> tuple[str, list[Row], str]:
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
        system, asked = _messages(sample["input"], where)
        ideal = sample["ideal"][0] if isinstance(sample["ideal"], list) and sample["ideal"] else sample["ideal"]
        systems[system] = None
        rows.append({"input": asked, EXPECTED: _plain(ideal, where)})
    if len(systems) > 1:
        raise ProjectError(f"{file} has {len(systems)} different system messages; a project has one. Split the file.")
    return next(iter(systems), ""), rows, "exact_match"


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


def _instructions(prompt: str) -> str:
    """A prompt's template without the places of its variables, which are fields of the signature now."""
    return re.sub(r"\s*\{\{-?\s*[\w.]+\s*-?\}\}", "", prompt).strip()


def _files(name: str, source: str, instructions: str, rows: list[Row], metric: str, output: str) -> dict[str, str]:
    inputs = list(dict.fromkeys(key for row in rows for key in row if key != EXPECTED))
    lacking = [row for row in rows if set(row) - {EXPECTED} != set(inputs)]
    if lacking:
        raise ProjectError(f"{source}: not every test has all of {', '.join(inputs)}. Give each of them to every test.")
    labels = sorted({row[EXPECTED] for row in rows})
    choice = metric == "exact_match" and len(labels) <= MOST_LABELS and len(rows) >= 3 * len(labels)
    kind = f"Literal[{', '.join(repr(label) for label in labels)}]" if choice else "str"
    sides = ", ".join(f"{field}: str" for field in inputs)
    lines = [
        f"# From {source}.",
        f"name = {_toml(name)}",
        f"summary = {_toml(f'From {source}')}",
        f"signature = {_toml(f'{sides} -> {output}: {kind}')}",
        *([f"instructions = {_toml(instructions)}"] if instructions else []),
        f"metric = {_toml(metric)}",
        "",
        "[dataset]",
        'source = "rows.jsonl"',
        f"inputs = {_list(inputs)}",
        f"outputs = {_list([output])}",
    ]
    table = [{**{field: row[field] for field in inputs}, output: row[EXPECTED]} for row in rows]
    written = "\n".join(json.dumps(row, ensure_ascii=False) for row in table)
    return {"project.toml": "\n".join(lines) + "\n", "rows.jsonl": written + "\n"}


def _toml(text: str) -> str:
    """A TOML basic string, which is written as JSON's but for the delete character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _list(names: Iterable[str]) -> str:
    return f"[{', '.join(_toml(name) for name in names)}]"
