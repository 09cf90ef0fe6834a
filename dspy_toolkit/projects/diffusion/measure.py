"""What samplers really do: small denoisers in MLX, one for each image domain, sampled with many settings.

A denoiser (three layers, 8 x 8 grey pixels, noise predicted) is trained on patches of one domain: images that scikit-image
and scikit-learn carry in their wheels. It is then sampled by DDIM (Song et al. 2021), DDPM's ancestral steps (Ho et al. 2020), Heun
in sigma space (Karras et al. 2022) and DPM-Solver++ 2M (Lu et al. 2022), at several numbers of evaluations of the denoiser and two spacings
of the steps. Measured is the energy distance of 256 samples to 256 held-out patches (Szekely and Rizzo 2013; 0 is equal), beside its
floor, the same distance between two sets of real patches.

A toy: comparisons hold within one denoiser. Nothing here says how a text-to-image model of today looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dspy_toolkit.advising.cells import Cell

DOMAINS = {
    "astronaut": "photos",
    "camera": "photos",
    "cat": "photos",
    "coffee": "photos",
    "motorcycle": "photos",
    "rocket": "photos",
    "faces": "photos",
    "brick": "textures",
    "grass": "textures",
    "gravel": "textures",
    "coins": "textures",
    "page": "documents",
    "text": "documents",
    "digits 0-4": "documents",
    "digits 5-9": "documents",
    "retina": "medical",
    "tissue": "medical",
    "cell": "medical",
    "moon": "space",
    "galaxies": "space",
}
FILES = {"cat": "chelsea.png", "motorcycle": "motorcycle_left.png", "rocket": "rocket.jpg", "tissue": "ihc.png"} | {
    "retina": "retina.jpg",
    "galaxies": "hubble_deep_field.jpg",
}
SCHEDULES = ("linear", "cosine")
"""How noise was added in training: Ho et al. 2020, or Nichol and Dhariwal 2021."""

SAMPLERS = ("ddim", "ddpm", "heun", "dpmpp_2m")
SPACINGS = ("uniform", "karras")
EVALUATIONS = (3, 5, 8, 12, 20, 40)
"""Of the denoiser, for one image: what an image costs."""

SEEDS = (0, 1, 2)
SIDE, HIDDEN, TIMES, BATCH, TRAIN_STEPS, SAMPLES = 8, 160, 1_000, 256, 1_200, 256


def cells(grid: str = "full") -> tuple[Cell, ...]:
    """The cells of a grid: `full`, or `tiny` for a check in two minutes."""
    from dspy_toolkit.advising.cells import Cell

    chosen, seeds = list(product(DOMAINS, SCHEDULES)), SEEDS
    if grid == "tiny":
        chosen, seeds = [("digits 0-4", "linear"), ("brick", "cosine")], SEEDS[:2]
    configurations = tuple(
        {"sampler": sampler, "evaluations": evaluations, "spacing": spacing}
        for sampler, evaluations, spacing in product(SAMPLERS, EVALUATIONS, SPACINGS)
    )
    return tuple(
        Cell(
            project="diffusion",
            measure=f"{__name__}:measure",
            family=domain,
            context={"domain": domain, "images": DOMAINS[domain], "schedule": schedule},
            configurations=configurations,
            seed=seed,
        )
        for seed in seeds  # the first seed of all contexts comes first: an interrupted grid has all of them
        for domain, schedule in chosen
    )


def measure(context: Mapping[str, Any], configurations: Sequence[Mapping[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Train the context's denoiser, then one row for each configuration."""
    random = np.random.default_rng(seed)
    patches = _patches(context["domain"], random)
    held, other, train = patches[:SAMPLES], patches[SAMPLES : 2 * SAMPLES], patches[2 * SAMPLES :]
    started = time.process_time()
    denoiser = train_denoiser(train, context["schedule"], seed)
    trained = round(time.process_time() - started, 3)
    floor = round(energy_distance(other, held), 5)
    rows = []
    for configuration in configurations:
        started = time.process_time()
        found = sample(denoiser, noise_levels(context["schedule"]), configuration, seed)
        outcome = {
            "distance": round(min(energy_distance(found, held), 99.0), 5),
            "floor": floor,
            "cpu_seconds": round(time.process_time() - started, 4),
            "train_cpu_seconds": trained,
        }
        rows.append(dict(configuration) | outcome)
    return rows


def _patches(domain: str, random: np.random.Generator) -> np.ndarray:
    """2048 patches of a domain, (n, 64), with mean 0 and standard deviation 0.5."""
    if domain.startswith("digits"):
        folder = _folder("sklearn") / "datasets/data"
        rows = np.loadtxt(folder / "digits.csv.gz", delimiter=",")
        patches = rows[(rows[:, 64] < 5) == (domain == "digits 0-4"), :64]
    else:
        patches = _cut(_picture(domain), random)
    patches = patches[random.permutation(len(patches))].astype(np.float64)
    patches += random.normal(0, 1e-3, patches.shape)
    return 0.5 * (patches - patches.mean()) / patches.std()


def _folder(package: str) -> Path:
    found = find_spec(package)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed: pip install dspy-toolkit[landscapes]")
    return Path(found.origin).parent


def _picture(domain: str) -> list[np.ndarray]:
    from PIL import Image

    folder = _folder("skimage") / "data"
    if domain == "faces":
        return list(np.load(folder / "lfw_subset.npy")[:100])
    with Image.open(folder / FILES.get(domain, f"{domain}.png")) as image:
        return [np.asarray(image.convert("L").reduce(2), dtype=np.float64)]


def _cut(pictures: list[np.ndarray], random: np.random.Generator, number: int = 2_048) -> np.ndarray:
    patches = []
    for _ in range(number):
        picture = pictures[random.integers(len(pictures))]
        top, left = (random.integers(side - SIDE + 1) for side in picture.shape)
        patches.append(picture[top : top + SIDE, left : left + SIDE].ravel())
    return np.array(patches)


def noise_levels(schedule: str) -> np.ndarray:
    """Each time's share of signal (alpha bar), (1000,), falling from nearly 1."""
    if schedule == "linear":
        return np.cumprod(1 - np.linspace(1e-4, 0.02, TIMES))
    times = np.linspace(0, 1, TIMES + 1)
    shares = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1 - np.clip(1 - shares[1:] / shares[:-1], 0, 0.999))


def train_denoiser(patches: np.ndarray, schedule: str, seed: int) -> Callable[[np.ndarray, float], np.ndarray]:
    """A denoiser: noisy patches (n, 64) and a time in [0, 999] → the noise in them."""
    from dspy_toolkit.lm.models.blas import preload

    preload()
    import mlx.core as mx
    from mlx import nn, optimizers
    from mlx.nn.utils import value_and_grad

    mx.set_default_device(mx.cpu)
    mx.random.seed(seed)
    random = np.random.default_rng(10_000 + seed)
    levels = noise_levels(schedule)
    model = nn.Sequential(
        nn.Linear(SIDE**2 + 16, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, SIDE**2)
    )
    optimizer = optimizers.Adam(learning_rate=2e-3)

    def loss(model: nn.Module, given: mx.array, noise: mx.array) -> mx.array:
        return ((model(given) - noise) ** 2).mean()

    gradients = value_and_grad(model, loss)
    state = [model.state, optimizer.state]

    def step(given: mx.array, noise: mx.array) -> mx.array:
        value, found = gradients(model, given, noise)
        optimizer.update(model, found)
        return value

    compiled = mx.compile(step, inputs=state, outputs=state)
    for number in range(TRAIN_STEPS):
        if number == TRAIN_STEPS * 2 // 3:
            optimizer.learning_rate = 5e-4
        times = random.integers(0, TIMES, BATCH)
        clean, noise = patches[random.integers(0, len(patches), BATCH)], random.normal(size=(BATCH, SIDE**2))
        share = levels[times][:, None]
        noisy = np.sqrt(share) * clean + np.sqrt(1 - share) * noise
        given = np.concatenate([noisy, _embedded(times)], axis=1).astype(np.float32)
        value = compiled(mx.array(given), mx.array(noise.astype(np.float32)))
        if number % 25 == 24:  # to wait for MLX's thread at every step costs more than the step
            mx.eval(value, state)

    def denoise(noisy: np.ndarray, at: float) -> np.ndarray:
        given = np.concatenate([noisy, _embedded(np.full(len(noisy), at))], axis=1).astype(np.float32)
        return np.array(model(mx.array(given)), dtype=np.float64)

    return denoise


def _embedded(times: np.ndarray) -> np.ndarray:
    angles = np.asarray(times)[:, None] / TIMES * np.pi * 2.0 ** np.arange(8) / 2
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sample(
    denoise: Callable[[np.ndarray, float], np.ndarray], levels: np.ndarray, configuration: Mapping[str, Any], seed: int
) -> np.ndarray:
    """Samples (256, 64). In sigma space: x is a patch plus sigma times noise."""
    random = np.random.default_rng(20_000 + seed)
    sampler, evaluations = configuration["sampler"], int(configuration["evaluations"])
    all_sigmas = np.sqrt((1 - levels) / levels)
    steps = (evaluations + 1) // 2 if sampler == "heun" else evaluations
    top, low = all_sigmas[-1], all_sigmas[0]
    if configuration["spacing"] == "uniform":
        times = np.linspace(TIMES - 1, 0, steps + 1)[:-1] if steps > 1 else np.array([TIMES - 1.0])
        sigmas = np.exp(np.interp(times, np.arange(TIMES), np.log(all_sigmas)))
    else:
        # Karras et al. 2022, equation 5, from at most 80, as there.
        ramp, top = np.linspace(0, 1, steps), min(top, 80.0)
        sigmas = (top ** (1 / 7) + ramp * (low ** (1 / 7) - top ** (1 / 7))) ** 7
    sigmas = np.append(sigmas, 0.0)

    def clean(x: np.ndarray, sigma: float) -> np.ndarray:
        at = float(np.interp(np.log(sigma), np.log(all_sigmas), np.arange(TIMES)))
        return np.clip(x - sigma * denoise(x / np.sqrt(1 + sigma**2), at), -4, 4)

    x = random.normal(size=(SAMPLES, SIDE**2)) * np.sqrt(sigmas[0] ** 2 + 0.25)
    return SAMPLER[sampler](clean, x, sigmas, random)


def _ddim(clean: Any, x: np.ndarray, sigmas: np.ndarray, random: np.random.Generator) -> np.ndarray:
    for sigma, after in pairwise(sigmas):
        found = clean(x, sigma)
        x = found + after / sigma * (x - found)
    return x


def _ddpm(clean: Any, x: np.ndarray, sigmas: np.ndarray, random: np.random.Generator) -> np.ndarray:
    for sigma, after in pairwise(sigmas):
        found = clean(x, sigma)
        up = np.sqrt(after**2 * (sigma**2 - after**2) / sigma**2)
        down = np.sqrt(after**2 - up**2)
        x = found + down / sigma * (x - found) + up * random.normal(size=x.shape)
    return x


def _heun(clean: Any, x: np.ndarray, sigmas: np.ndarray, random: np.random.Generator) -> np.ndarray:
    for sigma, after in pairwise(sigmas):
        slope = (x - clean(x, sigma)) / sigma
        ahead = x + (after - sigma) * slope
        if after > 0:
            slope = (slope + (ahead - clean(ahead, after)) / after) / 2
            ahead = x + (after - sigma) * slope
        x = ahead
    return x


def _dpmpp_2m(clean: Any, x: np.ndarray, sigmas: np.ndarray, random: np.random.Generator) -> np.ndarray:
    before, width_before = None, 1.0
    for sigma, after in pairwise(sigmas):
        found = clean(x, sigma)
        if after == 0:
            return found
        width = np.log(sigma / after)
        aim = found if before is None else found + width / width_before / 2 * (found - before)
        x = after / sigma * x - np.expm1(-width) * aim
        before, width_before = found, width
    return x


SAMPLER = {"ddim": _ddim, "ddpm": _ddpm, "heun": _heun, "dpmpp_2m": _dpmpp_2m}


def energy_distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Twice the mean distance across minus the mean distances within; 0 where both are drawn alike."""
    return 2 * _mean_distance(ours, theirs) - _mean_distance(ours, ours) - _mean_distance(theirs, theirs)


def _mean_distance(a: np.ndarray, b: np.ndarray) -> float:
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    distances = np.sqrt(np.maximum(squares, 0))
    # Of a set with itself, no point with itself.
    return float(distances.sum() / (len(a) * (len(a) - 1)) if a is b else distances.mean())
