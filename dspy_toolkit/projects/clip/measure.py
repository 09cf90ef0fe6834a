"""What adapting an image-text model really does: two small towers on the glyphs of the DejaVu fonts, in NumPy.

An image tower (16 x 16 pixels, 128 hidden units) and a text tower (hashed words and letter trigrams of a character's Unicode name)
are pretrained on Latin letters of the sans-serif face with CLIP's symmetric loss (Radford et al. 2021), then tuned on one family:
a Unicode block in one face. Measured are R@1 on the new family and on what the model knew before, since tuning may destroy it.
The weights between the pretrained and the tuned model (WiSE-FT, Wortsman et al. 2022) are scored too.

Glyphs are not photographs and Unicode names are not captions: the numbers order the choices, they do not carry over.
"""

from __future__ import annotations

import time
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dspy_toolkit.advising.cells import Cell

LATIN = (0x21, 0x250)
BLOCKS = {
    "greek": ("familiar", 0x370, 0x400),
    "cyrillic": ("familiar", 0x400, 0x500),
    "armenian": ("familiar", 0x530, 0x590),
    "georgian": ("familiar", 0x10A0, 0x1100),
    "latin additional": ("familiar", 0x1E00, 0x1F00),
    "arrows": ("new", 0x2190, 0x2200),
    "operators": ("new", 0x2200, 0x2300),
    "boxes": ("new", 0x2500, 0x25A0),
    "shapes": ("new", 0x25A0, 0x2600),
    "dingbats": ("new", 0x2700, 0x27C0),
    "braille": ("new", 0x2800, 0x2900),
}
"""Block: whether its characters are like those of the pretraining (letters), and its code points."""
FACES = {"same": "DejaVuSans.ttf", "different": "DejaVuSerif.ttf"}
PAIRS = {"dozens": 24, "hundreds": 160}
"""Characters to tune on; a block that has fewer gives all."""
SIZES = (12, 13, 14)
"""Each character is drawn in these sizes for training; the pictures of the test are drawn anew."""
POOL = 64
"""Candidates among which the right one is to be first; a quarter of them was never tuned on."""

RATES = (1e-4, 1e-3, 3e-3, 1e-2)
LOCKED = ("none", "image tower", "text tower")
PASSES = (5, 40)
WEIGHTS = (0.3, 0.6, 1.0)
"""WiSE-FT's share of the tuned weights; 1 is the tuned model itself."""

SEEDS = (0, 1, 2)
SIDE, HIDDEN, WIDTH, BUCKETS, BATCH, TEMPERATURE = 16, 128, 64, 512, 64, 0.07


def cells(grid: str = "full") -> tuple[Cell, ...]:
    """The cells of a grid: `full`, or `tiny` for a check in a minute."""
    from dspy_toolkit.advising.cells import Cell

    chosen = list(product(BLOCKS, FACES, PAIRS))
    seeds = SEEDS
    if grid == "tiny":
        chosen, seeds = [("greek", "same", "dozens"), ("arrows", "different", "dozens")], SEEDS[:2]
    configurations = tuple(
        {"learning_rate": rate, "locked": locked, "passes": passes, "weight": weight}
        for rate, locked, passes, weight in product(RATES, LOCKED, PASSES, WEIGHTS)
    )
    return tuple(
        Cell(
            project="clip",
            measure=f"{__name__}:measure",
            family=f"{block} / {face}",
            context={"block": block, "content": BLOCKS[block][0], "style": face, "pairs": pairs},
            configurations=configurations,
            seed=seed,
        )
        for block, face, pairs in chosen
        for seed in seeds
    )


def measure(context: Mapping[str, Any], configurations: Sequence[Mapping[str, Any]], seed: int) -> list[dict[str, Any]]:
    """One row for each configuration: R@1 (0 to 100, mean of both directions) on the new family and on the old, before and after."""
    random = np.random.default_rng(seed)
    base, old = _pretrained(seed)
    block, face = context["block"], context["style"]
    characters = [code for code in range(*BLOCKS[block][1:]) if _exists(FACES[face], code)]
    random.shuffle(characters)
    pool = characters[:POOL]
    unseen = set(pool[: len(pool) // 4])
    tuned_on = [code for code in characters if code not in unseen][: PAIRS[context["pairs"]]]
    images = np.concatenate([_render(FACES[face], tuned_on, size, random) for size in SIZES])
    texts = np.array([_hashed(code) for code in tuned_on * len(SIZES)])
    new = _render(FACES[face], pool, 12, random), np.array([_hashed(code) for code in pool])
    before = _recall(base, *new), _recall(base, *old)
    done: dict[tuple[Any, ...], tuple[list[np.ndarray], float]] = {}
    rows = []
    for configuration in configurations:
        rate, locked, passes = configuration["learning_rate"], configuration["locked"], configuration["passes"]
        if (rate, locked, passes) not in done:
            wanted = sorted({each["passes"] for each in configurations})
            started = time.process_time()
            reached = _tune(base, images, texts, rate, locked, wanted, np.random.default_rng(100 + seed))
            for number, weights in reached:
                done[rate, locked, number] = weights, time.process_time() - started
        tuned, seconds = done[rate, locked, passes]
        share = configuration["weight"]
        mixed = [(1 - share) * start + share * end for start, end in zip(base, tuned, strict=True)]
        outcome = {
            "new_r1": _recall(mixed, *new),
            "old_r1": _recall(mixed, *old),
            "base_new_r1": before[0],
            "base_old_r1": before[1],
            "cpu_seconds": round(seconds, 4),
        }
        rows.append(dict(configuration) | outcome)
    return rows


@cache
def _font(face: str, size: int) -> Any:
    from PIL import ImageFont

    found = find_spec("matplotlib")
    assert found is not None and found.origin is not None  # a dependency of this package, which brings the fonts
    return ImageFont.truetype(str(Path(found.origin).parent / "mpl-data/fonts/ttf" / face), size)


def _mask(font: Any, code: int) -> np.ndarray:
    from PIL import Image, ImageDraw

    image = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(image).text((SIDE / 2, SIDE / 2), chr(code), fill=255, font=font, anchor="mm")
    return np.asarray(image, dtype=np.float64).ravel() / 255


def _exists(face: str, code: int) -> bool:
    """Whether the face draws the character, and not the box that stands for a missing one."""
    if not unicodedata.name(chr(code), "") or unicodedata.category(chr(code)) in ("Mn", "Cf", "Zs"):
        return False
    font = _font(face, 13)
    mask = _mask(font, code)
    return bool(mask.any()) and not np.array_equal(mask, _mask(font, 0x10FFFF))


def _render(face: str, codes: Sequence[int], size: int, random: np.random.Generator) -> np.ndarray:
    """The characters' pictures, each moved by up to a pixel, with noise."""
    font = _font(face, size)
    pictures = []
    for code in codes:
        picture = _mask(font, code).reshape(SIDE, SIDE)
        pictures.append(np.roll(picture, random.integers(-1, 2, 2), axis=(0, 1)).ravel())
    return np.array(pictures) + random.normal(0, 0.05, (len(codes), SIDE * SIDE))


def _hashed(code: int) -> np.ndarray:
    name = unicodedata.name(chr(code))
    parts = name.split() + [name[at : at + 3] for at in range(len(name) - 2)]
    bag = np.zeros(BUCKETS)
    for part in parts:
        bag[zlib.crc32(part.encode()) % BUCKETS] += 1 + 2 * (len(part) != 3)
    return bag / np.linalg.norm(bag)


def _pretrained(seed: int) -> tuple[list[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The pretrained towers, and the pictures and texts by which it is seen whether they still know what they knew."""
    random = np.random.default_rng(500 + seed)
    codes = [code for code in range(*LATIN) if _exists(FACES["same"], code)]
    texts = np.array([_hashed(code) for code in codes])
    copies = [_render(FACES["same"], codes, size, random) for size in SIZES]
    weights = [
        random.normal(0, np.sqrt(2 / SIDE**2), (SIDE**2, HIDDEN)),
        random.normal(0, np.sqrt(1 / HIDDEN), (HIDDEN, WIDTH)),
        random.normal(0, np.sqrt(1 / BUCKETS), (BUCKETS, WIDTH)),
    ]
    [(_, weights)] = _tune(
        weights, np.concatenate(copies), np.concatenate([texts] * len(SIZES)), 2e-3, "none", [40], random
    )
    chosen = random.choice(len(codes), POOL, replace=False)
    return weights, (_render(FACES["same"], [codes[at] for at in chosen], 12, random), texts[chosen])


def _tune(
    start: list[np.ndarray],
    images: np.ndarray,
    texts: np.ndarray,
    rate: float,
    locked: str,
    passes: Sequence[int],
    random: np.random.Generator,
) -> list[tuple[int, list[np.ndarray]]]:
    """Adam with CLIP's loss; the weights after each of the numbers of passes."""
    weights: list[np.ndarray]
    weights, images, texts = (
        [part.astype(np.float32) for part in start],
        images.astype(np.float32),
        texts.astype(np.float32),
    )
    free = {"none": (0, 1, 2), "image tower": (2,), "text tower": (0, 1)}[locked]
    first: list[Any] = [np.zeros_like(part) for part in weights]
    second: list[Any] = [np.zeros_like(part) for part in weights]
    reached, step = [], 0
    for number in range(1, max(passes) + 1):
        order = random.permutation(len(images))
        for at in range(0, len(order), BATCH):
            rows = order[at : at + BATCH]
            if len(rows) < 8:
                continue  # too few to tell apart
            step += 1
            for index, gradient in zip(range(3), _gradients(weights, images[rows], texts[rows]), strict=True):
                if index not in free:
                    continue
                first[index] = 0.9 * first[index] + 0.1 * gradient
                second[index] = 0.98 * second[index] + 0.02 * gradient**2
                scale = np.sqrt(second[index] / (1 - 0.98**step)) + 1e-8
                weights[index] = weights[index] - rate * first[index] / (1 - 0.9**step) / scale
        if number in passes:
            reached.append((number, [part.copy() for part in weights]))
    return reached


def _embed(weights: list[np.ndarray], images: np.ndarray, texts: np.ndarray):
    hidden = np.maximum(images @ weights[0], 0)
    seen, read = hidden @ weights[1], texts @ weights[2]
    return hidden, seen, read


def _unit(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9
    return vectors / lengths, lengths


def _gradients(weights: list[np.ndarray], images: np.ndarray, texts: np.ndarray) -> list[np.ndarray]:
    hidden, seen, read = _embed(weights, images, texts)
    (pictures, picture_lengths), (words, word_lengths) = _unit(seen), _unit(read)
    logits = pictures @ words.T / TEMPERATURE
    error = np.zeros_like(logits)
    for axis in (1, 0):
        shares = np.exp(logits - logits.max(axis=axis, keepdims=True))
        error += shares / shares.sum(axis=axis, keepdims=True)
    error = (error - 2 * np.eye(len(logits), dtype=np.float32)) / (2 * len(logits) * TEMPERATURE)
    to_pictures, to_words = error @ words, error.T @ pictures
    to_seen = (to_pictures - pictures * (to_pictures * pictures).sum(1, keepdims=True)) / picture_lengths
    to_read = (to_words - words * (to_words * words).sum(1, keepdims=True)) / word_lengths
    back = (to_seen @ weights[1].T) * (hidden > 0)
    return [images.T @ back, hidden.T @ to_seen, texts.T @ to_read]


def _recall(weights: list[np.ndarray], images: np.ndarray, texts: np.ndarray) -> float:
    """R@1 in points, the mean of pictures by text and texts by picture."""
    _, seen, read = _embed(weights, images, texts)
    scores = _unit(seen)[0] @ _unit(read)[0].T
    right = np.arange(len(scores))
    return round(50 * float((scores.argmax(0) == right).mean() + (scores.argmax(1) == right).mean()), 3)
