"""A model by the specification's name of its provider: the same connection that programs run on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dspy_toolkit.compat.configuration import AppleSiliconConfig, DSPyConfig

if TYPE_CHECKING:
    from dspy_toolkit.lm import Connection


class MLXLLMProvider:
    """A connected model. MLX's is loaded by its first call; a model that LiteLLM reaches elsewhere is one here too.

    Raises:
        ModelError: the model cannot be had.
        SettingsError: the configuration does not fit.
    """

    def __init__(self, config: DSPyConfig, connection: Connection | None = None) -> None:
        """Args:
        connection: in place of the one that `config` describes.
        """
        from dspy_toolkit.lm import connect

        self.config = config
        self.connection = connection or connect(config.settings())
        self.lm = self.connection.lm
        """For DSPy: `with provider.connection.context(): …`."""

    @property
    def hardware_info(self) -> AppleSiliconConfig:
        """What this machine has, looked up now."""
        return AppleSiliconConfig.detect()

    def completion(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        """LiteLLM's reply to some messages.

        Args:
            messages: as OpenAI has them.
            options: of LiteLLM, such as `max_tokens` and `temperature`; what is not given is as the settings say.

        Raises:
            Exception: LiteLLM's, whose cause is the toolkit's own.
        """
        from dspy_toolkit.lm.litellm.provider import import_litellm

        given = {key: value for key, value in self.lm.kwargs.items() if value is not None}
        return import_litellm().completion(model=self.lm.model, messages=list(messages), **{**given, **options})
