"""What somebody knows before sampling a diffusion model, and the configuration that comes out."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from dspy_toolkit.advising.situation import Situation
from dspy_toolkit.advising.writing import arguments_text, yaml_text
from dspy_toolkit.errors import ProjectError, nearest
from dspy_toolkit.store import Frozen

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}
"""Sampler → the class name in diffusers."""


class DiffusionSituation(Situation):
    """The images, how the model was trained, and what an image may cost."""

    images: Literal["photos", "textures", "documents", "medical", "space", "other", "unknown"] = Field(
        default="unknown",
        description="what the images show; documents are text, digits and pages, space is the night sky",
    )
    schedule: Literal["linear", "cosine", "unknown"] = Field(
        default="unknown", description="the noise schedule that the model was trained with"
    )
    speed: Literal["fast", "balanced", "quality", "unknown"] = Field(
        default="unknown", description="at once (5 steps or fewer), some waiting (about a dozen), or the best there is"
    )
    repeatable: Literal["yes", "no", "unknown"] = Field(
        default="unknown", description="whether the same start must give the same image, with no noise added on the way"
    )


class DiffusionConfiguration(Frozen):
    """How to sample."""

    tools: ClassVar[tuple[str, ...]] = ("mflux", "diffusers", "toolkit")

    sampler: Literal["ddim", "ddpm", "heun", "dpmpp_2m"]
    evaluations: int = Field(ge=1, le=1_000, description="of the denoiser, for one image")
    spacing: Literal["uniform", "karras"] = "uniform"
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.sampler == "ddim" and self.spacing == "karras" and self.evaluations > 500:
            raise ValueError(
                f"{self.evaluations} evaluations by DDIM on Karras' spacing: past some dozens nothing is gained. Lower it."
            )
        if self.sampler == "heun" and self.evaluations < 3:
            raise ValueError(
                f"Heun with {self.evaluations} evaluations makes no second-order step: each takes two. Give 3 or more, or take ddim."
            )
        return self

    @property
    def steps(self) -> int:
        """Steps of the sampler: Heun evaluates twice in each but the last."""
        return (self.evaluations + 1) // 2 if self.sampler == "heun" else self.evaluations

    def to_yaml(self, tool: str = "mflux") -> str:
        """The configuration as a tool reads it.

        Args:
            tool: `mflux` (arguments of `mflux-generate`, which has a flow sampler of its own: the steps carry over, the sampler does
                not), `diffusers` (a scheduler_config as YAML), or `toolkit`.

        Raises:
            ProjectError: no such tool.
        """
        if tool in ("mflux", ""):
            return arguments_text("mflux-generate", {"steps": self.steps})
        if tool == "diffusers":
            values = {
                "_class_name": SCHEDULERS[self.sampler],
                "num_train_timesteps": 1_000,
                "beta_schedule": self.beta_schedule,
                "num_inference_steps": self.steps,
            }
            if self.spacing == "karras" and self.sampler in ("heun", "dpmpp_2m"):
                values["use_karras_sigmas"] = True
            return yaml_text(values)
        if tool == "toolkit":
            section = {
                "scheduler": SCHEDULERS[self.sampler],
                # Its range begins at 10.
                "num_steps": min(max(self.steps, 10), 100),
                "beta_schedule": self.beta_schedule,
            }
            return yaml_text({"diffusion": section})
        raise ProjectError(f"There is no export for {tool!r}.{nearest(tool, self.tools)}")
