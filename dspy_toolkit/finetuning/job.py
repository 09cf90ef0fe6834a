"""What the training process is told: `job.json` in a folder of its own.

    home/checkpoints/finetuning/KEY/job.json             what to train
                                    state.safetensors    how far it is; gone when it is finished
                                    trained.json         what came of it; only once it is finished
                                    log.txt              what the process wrote to stderr

KEY covers all that decides over the result: another row or setting, or another version of what computes, is another job.
"""

from __future__ import annotations

from pathlib import Path

from dspy_toolkit.code_version import LIBRARY, sources_sha256, versions
from dspy_toolkit.finetuning.values import TrainingRow, TrainSettings
from dspy_toolkit.lm.models.weights import Weights
from dspy_toolkit.store import Frozen, digest

PACKAGES = ("mlx", "mlx-lm", "numpy", "tokenizers", "transformers")
SAVE_SECONDS = 30.0
"""Between two checkpoints: so much work at most is lost."""


class Job(Frozen):
    """One training."""

    name: str
    """Of the model."""
    folder: str
    """Of its weights."""
    sha256: str
    """Of its weights."""
    home: str
    device: str
    """`metal`, `cuda` or `cpu`."""
    rows: tuple[TrainingRow, ...]
    val_rows: tuple[TrainingRow, ...]
    settings: TrainSettings
    deadline_seconds: float | None = None
    """From the start of the process."""
    save_seconds: float = SAVE_SECONDS

    @property
    def rows_sha256(self) -> str:
        """Of the rows and the validation rows."""
        return digest(*([row.model_dump(mode="json") for row in rows] for rows in (self.rows, self.val_rows)))

    @property
    def key(self) -> str:
        """Of all that decides over the result."""
        settings = self.settings.model_dump(mode="json")
        ours = sources_sha256(LIBRARY / "finetuning", ())
        return digest(self.sha256, self.rows_sha256, settings, self.device, library_versions(), ours)

    @property
    def place(self) -> Path:
        """The job's folder."""
        return Path(self.home, "checkpoints", "finetuning", self.key[:32])


def job_of(
    weights: Weights,
    rows: tuple[TrainingRow, ...],
    val_rows: tuple[TrainingRow, ...],
    settings: TrainSettings,
    home: Path,
    device: str,
) -> Job:
    """The job of training on `weights`."""
    return Job(
        name=weights.name,
        folder=str(weights.folder),
        sha256=weights.sha256,
        home=str(home),
        device=device,
        rows=rows,
        val_rows=val_rows,
        settings=settings,
    )


def library_versions() -> dict[str, str | None]:
    """Of what computes an adapter."""
    return {name: versions().get(name) for name in PACKAGES}
