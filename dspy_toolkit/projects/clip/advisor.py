"""Advice on adapting an image-text model, from towers that were really tuned on glyphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dspy_toolkit.advising import Advisor, Columns, Facts, context_from
from dspy_toolkit.advising.rules import keyword_reader
from dspy_toolkit.projects.clip import measure
from dspy_toolkit.projects.clip.situation import CLIPConfiguration, CLIPSituation

KEEP = {"must": 1.0, "some": 0.5, "no": 0.0, "unknown": 0.5}
"""How many points of R@1 on the new pictures one lost point on the old ones is worth."""
PAIRS = {"dozens": 24, "hundreds": 160, "thousands": 2_000}
PATTERNS = {
    "keep": {
        "must": r"must (still|keep|not)|without (losing|breaking|forgetting)|can'?t (lose|break)|cannot (lose|break)|not forget|no forgetting|stay as good|everything else|preserve",
        "no": r"(don'?t|do not|doesn'?t) (care|matter|need).{0,40}(old|else|general|before)|only (these|this|the new)|forget the rest|nothing else",
        "some": r"ideally|some of|a bit of|nice to keep|rather keep|mostly keep|a little loss",
    },
    "content": {
        "new": r"never seen|wholly new|entirely new|unlike anything|rare|specialis|specializ|microscop|x-?ray|satellite|radar|defect|circuit",
        "familiar": r"ordinary|everyday|common (things|objects)|cats|dogs|furniture|clothes|shoes|food|cars|people|products",
    },
    "style": {
        "different": r"sketch|drawing|thermal|infrared|x-?ray|microscop|scan|black and white|grayscale|cartoon|night|fisheye|radar|painting|engraving",
        "same": r"photos? (like|from phones)|normal photo|ordinary photo|web photo|phone photo|product photo|same camera|same style",
    },
    "pairs": {
        "dozens": r"dozen|a handful|thirty|forty|fifty|very few|a few (pairs|examples|images)",
        "hundreds": r"hundred",
        "thousands": r"thousand|million|\d+\s?k\b",
    },
    "time": {
        "short": r"minutes|quick|fast|by tonight|lunch|right now|asap|hurry",
        "long": r"overnight|all night|weekend|days|take its time|no rush|no hurry|as long as",
    },
}
NUMBERS = {
    "pairs": r"(?<![\d,])(\d[\d,]{0,11}\s?k?)\s{0,3}(?:[a-z]{1,20}[\s-]){0,2}?(?:pairs|captions|captioned|images|photos|pictures|scans|sketches|drawings)"
}


def objective(runs: Any, situation: CLIPSituation) -> Any:
    """Points of R@1 missing on the new pictures, and what each lost point on the old ones is worth."""
    lost = (runs["base_old_r1"] - runs["old_r1"]).clip(lower=0)
    return 100.0 - runs["new_r1"] + KEEP[situation.keep] * lost


def allowed(situation: CLIPSituation, configuration: Mapping[str, Any]) -> str:
    """Many passes take long."""
    if situation.time == "short" and configuration["passes"] > min(measure.PASSES):
        return f"{configuration['passes']} passes take longer than there is time"
    return ""


def configure(situation: CLIPSituation, chosen: Mapping[str, Any], facts: Facts) -> CLIPConfiguration:
    """The measured configuration, with a batch that the pairs fill."""
    pairs = PAIRS.get(situation.pairs, 160)
    return CLIPConfiguration(
        learning_rate=float(chosen["learning_rate"]),
        epochs=int(chosen["passes"]),
        locked=chosen["locked"],
        weight=float(chosen["weight"]),
        batch_size=min(measure.BATCH, pairs),
        temperature=measure.TEMPERATURE,
        pairs=pairs,
    )


def outside(situation: CLIPSituation) -> list[str]:
    """More pairs than were measured."""
    return (
        ["at most hundreds of pairs were tuned on, and more were not measured"]
        if situation.pairs == "thousands"
        else []
    )


def cost(configuration: Mapping[str, Any]) -> float:
    """Passes; a locked tower is cheaper, and a smaller share of the tuned weights is safer."""
    return configuration["passes"] - 0.2 * (configuration["locked"] != "none") + 0.01 * configuration["weight"]


advisor = Advisor(
    name="clip",
    situation=CLIPSituation,
    columns=Columns(
        context=("content", "style", "pairs"),
        configuration=("learning_rate", "locked", "passes", "weight"),
        outcomes=("new_r1", "old_r1", "base_new_r1", "base_old_r1"),
        logarithmic=("learning_rate",),
    ),
    runs_file=Path(__file__).parent / "runs.parquet",
    objective=objective,
    allowed=allowed,
    configure=configure,
    default={"learning_rate": 1e-3, "locked": "none", "passes": 5, "weight": 1.0},
    default_note="rate 0.001, nothing locked, 5 passes, no mixing: open_clip's default rate is nearer to this than to any other",
    unit="points of R@1",
    describe=lambda loss: f"{100 - loss:.1f} points (R@1 on new pictures, less what lost old ones are worth; glyphs)",
    cost=cost,
    context_of=context_from(("content", "style", "pairs")),
    outside=outside,
    cells=measure.cells,
    keywords=keyword_reader(CLIPSituation, PATTERNS, NUMBERS),
    objective_fields=("keep",),
    loss_column="new_r1",
)
