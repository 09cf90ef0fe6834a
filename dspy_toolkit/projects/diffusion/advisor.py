"""Advice on sampling, from small denoisers that were really sampled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dspy_toolkit.advising import Advisor, Columns, Facts, context_from
from dspy_toolkit.advising.rules import keyword_reader
from dspy_toolkit.errors import ProjectError
from dspy_toolkit.projects.diffusion import measure
from dspy_toolkit.projects.diffusion.situation import DiffusionConfiguration, DiffusionSituation

MOST = {"fast": 5, "balanced": 12, "quality": 40, "unknown": 12}
"""Evaluations of the denoiser for one image."""
WORST = 2.0
"""A distance beyond this is as bad as any: the samples are noise."""
PATTERNS = {
    "images": {
        "medical": r"retina|tissue|patholog|x-?ray|\bmri\b|\bct\b|medical|clinic|cells?\b|microscop|biops|histolog",
        "space": r"galax|stars?\b|moon|astronom|telescope|nebula|night sky|planet",
        "documents": r"digits?|document|handwrit|letters?\b|glyph|pages?\b|\btext|captcha|forms?\b|receipt",
        "textures": r"texture|fabric|brick|grass|gravel|wood|stone|pattern|tiles?\b|coins|marble|material",
        "photos": r"photo|portrait|faces?\b|landscape|selfie|street|product shot|people|cats?\b|cars?\b",
        "other": r"anime|cartoon|logo|icon|sprite|spectrogram|map|diagram",
    },
    "schedule": {"cosine": r"cosine|squaredcos|improved ddpm|nichol", "linear": r"linear"},
    "speed": {
        "fast": r"real-?time|instant|at once|milliseconds|interactive|as fast|fastest|phone|few(est)? steps|live|four steps|4 steps",
        "quality": r"best (possible|quality|there)|print|overnight|no matter how long|quality (first|over|above)|don'?t care how long|poster|time is no",
        "balanced": r"balanced|reasonable|decent|compromise|a (few|couple of) seconds|middle|some waiting|dozen",
    },
    "repeatable": {
        "no": r"random is fine|need not be (repeat|reprod|determin)|variety|(don'?t|do not) need .{0,20}(same|determin|reprod)|stochastic",
        "yes": r"reproduc|determinis|same seed|repeatab|identical|exactly the same|invert|audit",
    },
}


def objective(runs: Any, situation: DiffusionSituation) -> Any:
    """The energy distance to real patches, above its floor."""
    return (runs["distance"] - runs["floor"]).clip(lower=0, upper=WORST)


def allowed(situation: DiffusionSituation, configuration: Mapping[str, Any]) -> str:
    """An image may not cost more than there is time for, and what must be repeatable adds no noise on the way."""
    most = MOST[situation.speed]
    if configuration["evaluations"] > most:
        return f"{configuration['evaluations']} evaluations an image are more than the {most} that there is time for"
    if situation.repeatable == "yes" and configuration["sampler"] == "ddpm":
        return "ddpm adds noise on the way, so the same start does not give the same image"
    return ""


def configure(situation: DiffusionSituation, chosen: Mapping[str, Any], facts: Facts) -> DiffusionConfiguration:
    """The measured configuration."""
    return DiffusionConfiguration(
        sampler=chosen["sampler"],
        evaluations=int(chosen["evaluations"]),
        spacing=chosen["spacing"],
        beta_schedule="squaredcos_cap_v2" if situation.schedule == "cosine" else "linear",
    )


def facts(situation: DiffusionSituation, given: Mapping[str, str]) -> Facts:
    """Seconds an image, where the seconds of one evaluation are given: they are proportional."""
    if "seconds_per_step" not in given:
        return Facts()
    try:
        seconds = float(given["seconds_per_step"])
    except ValueError:
        raise ProjectError(f"seconds_per_step is {given['seconds_per_step']!r}. Give seconds, such as 0.8.") from None
    most = MOST[situation.speed]
    note = f"At {seconds:g} s a step an image takes at most {seconds * most:.3g} s: {most} evaluations."
    return Facts({"seconds_per_step": seconds, "seconds": seconds * most, "evaluations": most}, (note,))


def outside(situation: DiffusionSituation) -> list[str]:
    """Images of a kind that no denoiser was trained on."""
    return ["no denoiser was trained on images of this kind"] if situation.images == "other" else []


def cost(configuration: Mapping[str, Any]) -> float:
    """Evaluations an image."""
    return float(configuration["evaluations"])


advisor = Advisor(
    name="diffusion",
    situation=DiffusionSituation,
    columns=Columns(
        context=("images", "schedule"),
        configuration=("sampler", "evaluations", "spacing"),
        outcomes=("distance", "floor"),
        logarithmic=("evaluations",),
    ),
    runs_file=Path(__file__).parent / "runs.parquet",
    objective=objective,
    allowed=allowed,
    configure=configure,
    default={"sampler": "ddim", "evaluations": 40, "spacing": "uniform"},
    default_note="DDIM with 40 evaluations, the measured number nearest to the EfficientAI-MLX-Toolkit's 50",
    unit="of energy distance",
    describe=lambda loss: f"energy distance {loss:.3f} above that of two real samples (toy denoisers)",
    cost=cost,
    context_of=context_from(("images", "schedule")),
    outside=outside,
    cells=measure.cells,
    keywords=keyword_reader(DiffusionSituation, PATTERNS),
    facts=facts,
    given={"seconds_per_step": "of your model on your machine, for the waiting time"},
    loss_column="distance",
)
