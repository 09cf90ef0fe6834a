"""Simple rules for the router's rows, without a language model: reference scores for the programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import dspy

Rule = Callable[[dspy.Example], dspy.Prediction]

KEYWORDS: dict[str, tuple[str, ...]] = {
    "lora": ("lora", "adapter", "rank", "fine-tun", "finetun", "fine tun", "alpha", "q_proj", "sft", "tone", "style"),
    "diffusion": ("diffusion", "sampler", "scheduler", "steps", "guidance", "inpaint", "noise", "prompt", "render"),
    "clip": ("clip", "image search", "caption", "photo", "embedding", "zero-shot", "contrastive", "recall@", "match"),
    "federated": ("federated", "fedavg", "client", "privacy", "hospital", "round", "aggregat", "server", "sites"),
    "compression": (
        "compress",
        "quantiz",
        "quantis",
        "prun",
        "distil",
        "bit",
        "smaller",
        "faster",
        "latency",
        "memory",
    ),
    "meta-learning": (
        "meta",
        "maml",
        "reptile",
        "few-shot",
        "few shot",
        "episode",
        "prototyp",
        "support set",
        "new task",
    ),
}
"""Words chosen in five minutes, before any row was seen."""
GRAM = 4
"""Characters of the n-grams that the nearest neighbour compares; chosen beforehand, not tuned."""


def keyword_rule(train: list[dspy.Example]) -> Rule:
    """The project with the most of its keywords in the request; the most frequent one where none occurs or two tie."""
    frequent = Counter(case.project for case in train).most_common(1)[0][0]

    def answer(case: dspy.Example) -> dspy.Prediction:
        text = case.request.lower()
        hits = Counter({label: sum(word in text for word in words) for label, words in KEYWORDS.items()})
        (best, most), (_, second) = hits.most_common(2)
        return dspy.Prediction(project=best if most > second else frequent)

    return answer


def nearest_neighbour(train: list[dspy.Example]) -> Rule:
    """The project of the training request that shares most of its character 4-grams (Jaccard)."""
    known = [(_grams(case.request), case.project) for case in train]

    def answer(case: dspy.Example) -> dspy.Prediction:
        grams = _grams(case.request)
        return dspy.Prediction(project=max(known, key=lambda entry: _jaccard(grams, entry[0]))[1])

    return answer


def logistic_regression(train: list[dspy.Example]) -> Rule:
    """Logistic regression on TF-IDF of the words' character 2- to 5-grams: what ten lines reach without any language model."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    model = make_pipeline(vectors, LogisticRegression(C=10, max_iter=1_000))
    model.fit([case.request for case in train], [case.project for case in train])
    return lambda case: dspy.Prediction(project=str(model.predict([case.request])[0]))


def _grams(text: str) -> frozenset[str]:
    text = " ".join(text.lower().split())
    return frozenset(text[start : start + GRAM] for start in range(max(len(text) - GRAM + 1, 1)))


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)
