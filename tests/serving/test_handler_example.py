"""The example of docs/serving.md: `ProductionDSPyHandler.execute_with_fallback`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from dspy_toolkit.registry import promote
from dspy_toolkit.settings import Settings
from tests.documentation.shell import all_sections
from tests.serving.conftest import fake


def test_the_documented_handler_falls_back(promoted: Settings, save_questions: Callable[..., int]) -> None:
    (section,) = [each for each in all_sections() if each.key == ("docs/serving.md", "ProductionDSPyHandler")]
    names: dict[str, Any] = {}
    exec("\n".join(section.python), names)
    promote(promoted, "questions", save_questions("This one is broken."))

    def reply(request: Any) -> Any:
        if "everything" in request.messages[-1].content:
            return "cut [["
        return "cut [[" if "broken" in request.messages[0].content else {"label": "person"}

    settings, _ = fake(promoted, reply, check_grammar=False)

    async def ask() -> list[dict[str, Any]]:
        async with names["ProductionDSPyHandler"](settings) as handler:
            return [
                await handler.execute_with_fallback("questions", {"text": "Who?"}),
                await handler.execute_with_fallback(
                    "questions", {"text": "everything fails"}, default={"label": "person"}
                ),
            ]

    first, second = asyncio.run(ask())
    assert first["prediction"] == {"label": "person"} and first["answered_by"] == "questions@1"
    assert first["why"] == [f"questions@2 on {settings.lm.model}: unreadable_reply"]
    assert second == {"prediction": {"label": "person"}, "answered_by": None, "why": ["unreadable_reply"]}
