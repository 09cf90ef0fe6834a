"""Advice on fine-tuning adapters, from trainings that mlx_lm really ran."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dspy_toolkit.advising import Advisor, Columns, Facts
from dspy_toolkit.advising.rules import keyword_reader
from dspy_toolkit.projects.lora import measure
from dspy_toolkit.projects.lora.facts import SIZES, USABLE, Model, memory_bytes, read_model, row_lengths
from dspy_toolkit.projects.lora.situation import LoRAConfiguration, LoRASituation

ROWS = {"dozens": 60, "hundreds": 400, "thousands": 3_000, "more": 20_000, "unknown": 400}
LENGTH = {"short": 256, "long": 1_024, "unknown": 512}
MEMORY = {"8GB": 8, "16GB": 16, "32GB": 32, "64GB or more": 64}
MOST_ITERATIONS = {"minutes": 100, "hours": 1_000, "unknown": 300}
CHARACTERS_PER_TOKEN = 3.5
"""Where no tokenizer is asked; English text in models of today has 3 to 5."""
PATTERNS = {
    "text": {
        "legal": r"legal|contract|law(yer)?s?\b|clause|court|licen[cs]e|terms of service|statute",
        "code": r"\bcode|python|java\b|javascript|rust|functions|repositor|pull request|sql|commit|unit tests",
        "chat": r"chat|dialog|conversation|support|customer|assistant|q&a|faq|tickets?\b|e-?mails?|instruct",
        "records": r"csv|json|records?\b|tables?\b|rows of|fields|invoice|form entries|sensor|log lines|structured",
        "terms": r"glossar|terminolog|dictionar|names of|vocabular|ontolog|definitions|nomenclature",
        "prose": r"novel|stor(y|ies)|article|essay|blog|news|poem|book|documentation|manual|prose|wiki|report",
        "other": r"music|chess|dna|protein|midi|molecule",
    },
    "memory": {
        "8GB": r"\b8\s?gb?\b",
        "16GB": r"\b16\s?gb?\b",
        "32GB": r"\b(24|32|36)\s?gb?\b",
        "64GB or more": r"\b(48|64|96|128|192)\s?gb?\b",
    },
    "model": {
        "under 1B": r"\b\d{2,3}\s?m\b|smollm|0\.[5-9]\s?b|tiny model|small(est)? model",
        "1-4B": r"\b(1|1\.[0-9]|2|3|3\.[0-9]|4)\s?b\b",
        "7-8B": r"\b(7|8)\s?b\b|mistral",
        "larger": r"\b(1[0-9]|2[0-9]|3[0-9]|70|72)\s?b\b",
    },
    "time": {
        "minutes": r"minute|half an hour|an hour|one hour|quick|lunch|before the meeting|right now",
        "hours": r"overnight|night|hours|weekend|all day|tomorrow|no (rush|hurry)",
    },
    "length": {
        "short": r"short|one-?liner|tweets?|sentence|a line each|few words|titles",
        "long": r"long|pages|chapters|whole (file|document|conversation)|thousands of (words|tokens)",
    },
    "rows": {
        "more": r"million|hundred thousand|tens of thousands|\d{2,3}\s?k\b",
        "thousands": r"thousand|\b\d\s?k\b",
        "hundreds": r"hundred",
        "dozens": r"dozen|a handful|few examples|fifty|forty|thirty",
    },
}
NUMBERS = {
    "rows": r"(?<![\d,])(\d[\d,.]{0,11}\s?k?)\s{0,3}(?:[a-z]{1,20}[\s-]){0,2}?(?:rows|examples|samples|chats?|tickets|conversations|pairs|documents|files|contracts|e?mails|records|lines|functions|stories|articles|entries|dialogues|messages|notes|questions|terms)\b"
}


def objective(runs: Any, situation: LoRASituation) -> Any:
    """Validation loss in nats a token, less the loss before training: texts differ in how hard they are."""
    return (runs["loss"] - runs["start_loss"]).clip(upper=2.0)


def allowed(situation: LoRASituation, configuration: Mapping[str, Any]) -> str:
    """What does not fit in the memory with the smallest batch and checkpointing."""
    if situation.memory not in MEMORY or situation.model not in SIZES:
        return ""
    needed = sum(
        memory_bytes(
            SIZES[situation.model], int(configuration["rank"]), int(configuration["layers"]), 1,
            LENGTH[situation.length], checkpoint=True,
        ).values()
    )  # fmt: skip
    have = USABLE * MEMORY[situation.memory] * 1e9
    if needed > have:
        return f"a model of {situation.model} needs {needed / 1e9:.1f} GB of the {have / 1e9:.1f} GB that {situation.memory} leave"
    return ""


def model_of(situation: LoRASituation, given: Mapping[str, str]) -> Model | None:
    """The model's sizes: of its folder, else of a stand-in for its level; None where nothing is known."""
    if "model_folder" in given:
        return read_model(given["model_folder"])
    return SIZES.get(situation.model)


def facts(situation: LoRASituation, given: Mapping[str, str]) -> Facts:
    """The model's sizes, the rows' number and length, and what is in the data file."""
    values: dict[str, float] = {}
    notes = []
    if (model := model_of(situation, given)) is not None:
        values |= {"parameters": model.parameters, "bits": model.bits, "model_layers": model.layers}
        notes.append(
            f"The model has {model.parameters / 1e9:.3g} billion parameters in {model.bits:g} bits ({model.origin})."
        )
        values["billions"] = model.parameters / 1e9
    if "data_file" in given:
        rows, characters = row_lengths(given["data_file"])
        values |= {"rows": rows, "tokens": characters / CHARACTERS_PER_TOKEN, "characters": characters}
        notes.append(
            f"The data has {rows} rows of {characters:.0f} characters on average, some {values['tokens']:.0f} tokens."
        )
    notes.append(
        f"Losses were measured over at most {max(measure.ITERATIONS.values())} iterations on a model of 135 million parameters: "
        "with longer training, stop when the validation loss rises."
    )
    return Facts(values, tuple(notes))


def configure(situation: LoRASituation, chosen: Mapping[str, Any], facts: Facts) -> LoRAConfiguration:
    """The measured rate, rank and layers, with the largest batch that fits, and iterations for the rows and the time."""
    rows = int(facts.values.get("rows", ROWS[situation.rows]))
    length = LENGTH[situation.length]
    if "tokens" in facts.values:
        # Twice the mean covers most rows; the padding is to 32.
        length = max(64, min(4_096, 32 * round(facts.values["tokens"] * 2 / 32)))
    batch, checkpoint = _fitting(situation, chosen, length)
    epochs = 3 if rows < 1_000 else 1
    batch = min(batch, max(rows // 4, 1))
    iterations = min(max(epochs * (rows // batch), 1), MOST_ITERATIONS[situation.time])
    return LoRAConfiguration(
        rank=int(chosen["rank"]),
        scale=float(measure.ALPHA),
        layers=int(chosen["layers"]),
        learning_rate=float(chosen["learning_rate"]),
        batch_size=batch,
        iterations=iterations,
        epochs=epochs,
        warmup=iterations // 10 if iterations >= 100 else 0,
        max_length=length,
        checkpoint=checkpoint,
    )


def _fitting(situation: LoRASituation, chosen: Mapping[str, Any], length: int) -> tuple[int, bool]:
    """(batch, checkpointing): the fastest that the memory has room for."""
    model, memory = SIZES.get(situation.model), MEMORY.get(situation.memory)
    if model is None or memory is None:
        return 4, False
    for checkpoint in (False, True):
        for batch in (4, 2, 1):
            parts = memory_bytes(
                model, int(chosen["rank"]), int(chosen["layers"]), batch, length, checkpoint=checkpoint
            )
            if sum(parts.values()) <= USABLE * memory * 1e9:
                return batch, checkpoint
    return 1, True


def context_of(situation: LoRASituation) -> dict[str, str]:
    """The text, where it was measured, and how many iterations the time is worth."""
    context = {}
    if situation.text in measure.TEXTS:
        context["text"] = situation.text
    if situation.time != "unknown":
        context["iterations"] = {"minutes": "few", "hours": "many"}[situation.time]
    return context


def outside(situation: LoRASituation) -> list[str]:
    """Other texts, and other sizes."""
    reasons = []
    if situation.text == "other":
        reasons.append("no text of this kind was trained on")
    if situation.model not in ("under 1B", "unknown"):
        reasons.append(
            "only a model of 135 million parameters was trained: the order of rates may carry over, the losses do not"
        )
    return reasons


def cost(configuration: Mapping[str, Any]) -> float:
    """Layers that gradients go through, then the rank."""
    return configuration["layers"] + configuration["rank"] / 1_000


advisor = Advisor(
    name="lora",
    situation=LoRASituation,
    columns=Columns(
        context=("text", "iterations"),
        configuration=("learning_rate", "rank", "layers"),
        outcomes=("loss", "start_loss"),
        logarithmic=("learning_rate",),
    ),
    runs_file=Path(__file__).parent / "runs.parquet",
    objective=objective,
    allowed=allowed,
    configure=configure,
    default={"learning_rate": 1e-4, "rank": 4, "layers": 4},
    default_note="rate 0.0001, the measured one nearest to mlx_lm's 0.00001",
    unit="nats a token",
    describe=lambda loss: (
        f"validation loss {abs(loss):.2f} nats a token {'below' if loss < 0 else 'above'} the untrained model's"
    ),
    cost=cost,
    context_of=context_of,
    outside=outside,
    cells=measure.cells,
    keywords=keyword_reader(LoRASituation, PATTERNS, NUMBERS),
    facts=facts,
    given={
        "model_folder": "of a model in mlx_lm's format, for its sizes",
        "data_file": "rows as mlx_lm reads them, for their lengths",
    },
    loss_column="loss",
)
