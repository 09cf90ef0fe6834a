"""Chat templates that refuse what others take."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest

from dspy_toolkit.errors import RequestRefused
from dspy_toolkit.lm.models.turns import Turns
from dspy_toolkit.lm.protocol import Message, ToolCall

ALTERNATING = """{%- if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{%- endif %}
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('take turns') }}{%- endif %}
{{- '[' + message.role + '] ' + message.content + '\n' }}{%- endfor %}"""
SILENT = "{%- for message in messages if message.role != 'system' %}{{- message.content + '\n' }}{%- endfor %}"
NINE = """{%- for message in messages %}{%- for call in message.tool_calls or [] %}
{%- if call.id|length != 9 %}{{ raise_exception('ids have 9 characters') }}{%- endif %}{{- call.id }}{%- endfor %}
{{- message.content }}{%- endfor %}"""


def turns(template: str) -> tuple[Turns, Any]:
    def refuse(message: str) -> str:
        raise jinja2.TemplateError(message)

    made = jinja2.Environment().from_string(template)

    def render(messages: list[dict[str, Any]]) -> str:
        try:
            return made.render(messages=messages, raise_exception=refuse)
        except jinja2.TemplateError as error:
            raise RequestRefused(str(error)) from error

    return Turns(template, render), render


def say(*said: tuple[str, str]) -> list[Message]:
    return [Message(role=role, content=content) for role, content in said]  # type: ignore[arg-type]


@pytest.mark.parametrize("template", [ALTERNATING, SILENT])
@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_turn_goes_into_the_users(template: str, role: str) -> None:
    fit, render = turns(template)
    made = fit.of(say((role, "Be kind."), ("user", "Hello"), ("assistant", "Hi"), ("user", "Bye")))
    assert [turn["role"] for turn in made] == ["user", "assistant", "user"]
    assert made[0]["content"] == "Be kind.\n\nHello"
    assert "Be kind." in render(made)


def test_nothing_of_the_conversation_is_lost_when_turns_are_folded_and_joined() -> None:
    fit, render = turns(ALTERNATING)
    text = render(fit.of(say(("system", "S1"), ("system", "S2"), ("user", "U1"), ("user", "U2"), ("system", "S3"))))
    assert [word for word in text.split() if word[1].isdigit()] == ["S1", "S2", "U1", "U2", "S3"]


def test_a_template_that_takes_them_gets_the_turns_as_they_are() -> None:
    fit, _ = turns("{% for message in messages %}{{ message.role + message.content }}{% endfor %}")
    said = say(("system", "S"), ("user", "A"), ("user", "B"))
    assert fit.of(said) == [{"role": each.role, "content": each.content} for each in said]
    knows = turns("{% for message in messages %}{{ message.role }}{# developer #}{% endfor %}")[0]
    assert knows.of(say(("developer", "S"), ("user", "A")))[0]["role"] == "developer"


def test_ids_of_calls_and_names_of_tools() -> None:
    call = ToolCall(id="call_0123456789abcdef", name="add", arguments='{"a": 1}')
    said = [
        Message(role="user", content="Add."),
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content="1", tool_call_id=call.id),
    ]
    fit, render = turns(NINE)
    made = fit.of(said)
    assert made[1]["tool_calls"][0]["id"] == made[2]["tool_call_id"]
    assert made[2]["name"] == "add"
    assert len(made[2]["tool_call_id"]) == 9
    render(made)
    assert turns(SILENT)[0].of(said)[2]["tool_call_id"] == call.id
    short = [said[0], said[1].model_copy(update={"tool_calls": (call.model_copy(update={"id": "abcdefghi"}),)})]
    assert fit.of(short)[1]["tool_calls"][0]["id"] == "abcdefghi"
