"""A vision model's tokenizer: messages with images become the model's input.

Text is templated, quoted and encoded as in `models.tokenizer`, with mlx-vlm's way of writing an image into a prompt of each
architecture. The processor of the model then puts as many tokens as an image takes in its place, and makes its pixels an array.

Covered: images anywhere in the user's messages, demonstrations included; grammars as in text; texts that spell a control
token, `<image>` in XML for one. Not covered: such a text beside an image, where the processor does not leave its text to a
tokenizer of its own, is refused; tools and thinking, where the chat template lies beside the tokenizer's files
(`chat_template.json`); an image counts as the tokens of its mark until the request is answered.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from dspy_toolkit.errors import RequestRefused
from dspy_toolkit.lm.models.control_tokens import ControlTokens
from dspy_toolkit.lm.models.tokenizer import Tokenizer
from dspy_toolkit.lm.models.turns import Turns
from dspy_toolkit.lm.protocol import GenerationRequest, Message
from dspy_toolkit.lm.vision.images import open_images
from dspy_toolkit.lm.vision.weights import read_config


class VisionTokenizer(Tokenizer):
    """The tokenizer of one vision model. Safe from any thread, but for `prepare`."""

    def __init__(self, folder: Path, processor: Any) -> None:
        """Args: folder: holds config.json and the tokenizer's files; processor: the model's own.

        Raises:
            ModelError: they cannot be read.
        """
        super().__init__(folder)
        self._processor, self._config = processor, read_config(folder)
        # Nobody can write it, and no template changes it: an image's place in a text, through joining and folding of turns.
        self._place = secrets.token_hex(16)
        template = getattr(processor, "chat_template", None) or getattr(self._tokenizer, "chat_template", None)
        if isinstance(template, str) and template != self._tokenizer.chat_template:  # some have it beside the tokenizer
            self._tokenizer._tokenizer.chat_template = template
            self._control = ControlTokens(self._tokenizer)
            self._knows_effort = "reasoning_effort" in template
            self._turns = Turns(template, lambda turns: self._render(turns, reply=False))

    def encode_request(self, request: GenerationRequest) -> list[int]:
        """As of every tokenizer; of images their marks alone, which `prepare` replaces.

        Raises:
            RequestRefused: also where an image is damaged or too large, or this model takes none.
        """
        if images := images_of(request.messages):
            self._check(request)
            open_images(images)  # and once more when it is answered: a queue of files is smaller than one of pixels
        return super().encode_request(request)

    def prepare(self, request: GenerationRequest, image_token: int | None = None) -> dict[str, Any]:
        """The model's input for a request with images: `input_ids` of shape (1, tokens), and what goes with them.

        For one thread at a time, the one that computes.

        Args:
            image_token: the model's own, for processors that do not know it.

        Raises:
            RequestRefused: the processor refuses it.
        """
        from mlx_vlm.utils import prepare_inputs, should_add_special_tokens  # pyright: ignore[reportMissingImports]

        processor = self._processor
        own = getattr(processor, "tokenizer", None)
        if self._spells(request):
            processor.tokenizer = _Quoted(own, self._control)
        try:
            return prepare_inputs(
                processor,
                images=open_images(images_of(request.messages)),
                prompts=self._text(request),
                image_token_index=image_token,
                add_special_tokens=should_add_special_tokens(self._config["model_type"], processor),
            )
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise RequestRefused(f"The model's processor refuses this request: {error}.") from error
        finally:
            if own is not None:
                processor.tokenizer = own

    def _check(self, request: GenerationRequest) -> None:
        from mlx_vlm.prompt_utils import MODEL_CONFIG  # pyright: ignore[reportMissingImports]

        if (kind := str(self._config["model_type"])).lower() not in MODEL_CONFIG:
            raise RequestRefused(
                f"mlx-vlm knows no prompt with an image for models of the type {kind}. Send text alone."
            )
        if any(message.images and message.role != "user" for message in request.messages):
            raise RequestRefused("An image stands in a message that is not the user's. Put it into one of the user's.")
        if self._spells(request) and not self._quotes():
            raise RequestRefused(
                "A text beside an image spells a control token of this model, which its processor would take for one. Leave it "
                "out."
            )

    def _spells(self, request: GenerationRequest) -> bool:
        """Whether a text of the request spells a control token."""
        said = [*(message.content for message in request.messages), list(request.tools)]
        return self._control.quote(said) != said

    def _quotes(self) -> bool:
        """Whether the processor hands its text to a tokenizer that can be told of quoted ones."""
        from mlx_vlm.models.base import BaseImageProcessor  # pyright: ignore[reportMissingImports]

        own = getattr(self._processor, "image_processor", None)
        return hasattr(self._processor, "tokenizer") and not isinstance(own, BaseImageProcessor)

    def _text(self, request: GenerationRequest) -> str:
        """The prompt as text, its end as in `encode_request` and `encode_chat`."""
        options = self._template_options(request)
        text = self._template(request.messages, **options, reply=True)
        opened = self._is_open(self._control.encode(text))
        if request.thinking_budget is not None:
            return text if opened else f"{text}{self._tokenizer.think_start}\n"
        if opened and options["thinking"] is False:
            return text.rstrip() + f"\n\n{self._tokenizer.think_end}\n\n"
        return text

    def _template(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        thinking: bool | None,
        effort: str | None = None,
        *,
        reply: bool,
    ) -> str:
        return super()._template([self._placed(each) for each in messages], tools, thinking, effort, reply=reply)

    def _placed(self, message: Message) -> Message:
        """The message with the images' places in its text."""
        if not message.images:
            return message
        ends = [0, *(image.at for image in message.images), len(message.content)]
        text = self._place.join(message.content[begin:end] for begin, end in pairwise(ends))
        return message.model_copy(update={"content": text, "images": ()})

    def _render(self, turns: list[dict[str, Any]], *, reply: bool, **options: Any) -> str:
        from jinja2 import TemplateError
        from mlx_vlm.prompt_utils import apply_chat_template  # pyright: ignore[reportMissingImports]

        said = [turn | {"content": self._parts(turn["content"])} for turn in self._control.quote(turns)]
        count = sum(
            part["type"] == "image" for turn in said if isinstance(turn["content"], list) for part in turn["content"]
        )
        try:
            return apply_chat_template(
                self._processor,
                self._config,
                said,
                add_generation_prompt=reply,
                num_images=count,
                **{"enable_thinking": self.has_thinking, **options},
            )
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise RequestRefused(f"The model's chat template refuses these messages: {error}.") from error

    def _parts(self, text: str) -> str | list[dict[str, str]]:
        """A text as it is, or the texts and images that its places divide it into."""
        if self._place not in text:
            return text
        pieces = re.split(f"({self._place})", text)
        return [
            {"type": "image"} if piece == self._place else {"type": "text", "text": piece} for piece in pieces if piece
        ]


def images_of(messages: Sequence[Message]) -> list[Any]:
    """The images of some messages, in their order."""
    return [image for message in messages for image in message.images]


class _Quoted:
    """A processor's tokenizer that reads what the template made of quoted texts, without padding."""

    def __init__(self, tokenizer: Any, control: ControlTokens) -> None:
        self._tokenizer, self._control = tokenizer, control

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str | list[str], *, add_special_tokens: bool = True, **options: Any) -> Any:
        from transformers import BatchEncoding

        before, after = self._around() if add_special_tokens else ([], [])
        rows = [[*before, *self._control.encode(each), *after] for each in ([text] if isinstance(text, str) else text)]
        made = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
        return BatchEncoding(made, tensor_type=options.get("return_tensors"))

    def _around(self) -> tuple[list[int], list[int]]:
        """The tokens that it puts before and after every text."""
        whole, bare = (list(self._tokenizer("a", add_special_tokens=added).input_ids) for added in (True, False))
        at = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
        return whole[:at], whole[at + len(bare) :]
