"""The messages that a program sends, as the model gets them: written by the program's own adapter, and caught before they leave.

For an MLX model its tokenizer's chat template goes around them. Inputs that are not given stand as `{{name}}`, which MLflow's
prompts and most template languages call a variable.

Not covered: what a program's own code does before and between its predictors; each predictor is asked by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import ProgramError
from dspy_toolkit.store import Frozen

if TYPE_CHECKING:
    import dspy

    from dspy_toolkit.settings import Settings

SHOWN_OPTIONS = ("guided_grammar", "response_format", "label_scores", "adapter", "temperature", "max_tokens")
"""Of a call, beside the messages."""


class SentPrompt(Frozen):
    """What one predictor sends."""

    predictor: str
    """Its name; empty where it is the whole program."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    messages: tuple[dict[str, Any], ...]
    """`role` and `content`, in order: instructions, demonstrations as turns, the input."""
    options: dict[str, Any]
    """What goes beside the messages: the grammar or schema of the reply, label scores, an adapter."""


class _Caught(BaseException):
    """Ends a call. Not an Exception: DSPy's adapters answer those by asking again in another format."""


def messages_of(
    program: dspy.Module, settings: Settings, inputs: Mapping[str, Any] | None = None
) -> tuple[SentPrompt, ...]:
    """What each predictor of a program sends to the model that the settings name. No model is loaded or asked.

    Args:
        program: with its state loaded.
        settings: whose `lm.model` decides between the adapters.
        inputs: field → value; one that is missing stands as `{{name}}`.

    Raises:
        ProgramError: a predictor cannot be asked.
    """
    import dspy

    from dspy_toolkit.lm.adapter import adapter_for
    from dspy_toolkit.lm.litellm.provider import import_litellm

    import_litellm()  # its settings must be made before DSPy's LM looks at it
    lm = _catching(settings)
    found = []
    # A variable in place of a list or a number is meant.
    quiet = {"disable_history": True, "trace": None, "warn_on_type_mismatch": False}
    with dspy.context(lm=lm, adapter=adapter_for(lm), cache=False, **quiet):
        for name, predictor in program.named_predictors():
            signature: Any = predictor.signature
            given = {field: (inputs or {}).get(field, f"{{{{{field}}}}}") for field in signature.input_fields}
            before = predictor.lm
            predictor.lm = None  # the program's own, if it has one, would be asked
            try:
                predictor(**given)
            except _Caught as caught:
                messages, options = caught.args
            else:
                raise ProgramError(f"The predictor {name} answered without asking a model. Show another program.")
            finally:
                predictor.lm = before
            found.append(
                SentPrompt(
                    predictor="" if predictor is program else name,
                    inputs=tuple(signature.input_fields),
                    outputs=tuple(signature.output_fields),
                    messages=tuple(messages),
                    options=options,
                )
            )
    return tuple(found)


def _catching(settings: Settings) -> Any:
    import dspy
    from pydantic_core import to_jsonable_python

    class Catching(dspy.LM):
        def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
            options = {key: kwargs[key] for key in SHOWN_OPTIONS if kwargs.get(key) is not None}
            raise _Caught([dict(each) for each in messages], to_jsonable_python(options, fallback=_schema))

    return Catching(settings.lm.model, engine="litellm", cache=False)


def _schema(value: Any) -> Any:
    return value.model_json_schema() if hasattr(value, "model_json_schema") else str(value)
