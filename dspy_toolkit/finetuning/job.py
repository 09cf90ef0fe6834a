"""What the training process is told: `job.json` in a folder of its own.

    home/checkpoints/finetuning/KEY/job.json             what to train
                                    state-N.safetensors  how far arm N is; gone when all is finished
                                    raced.json           what came of it; only once it is finished
                                    log.txt              what the process wrote to stderr

KEY covers all that decides over the result: another row or setting, or another version of what computes, is another job.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dspy_toolkit.code_version import LIBRARY, sources_sha256, versions
from dspy_toolkit.finetuning.values import Arm, RowSet
from dspy_toolkit.lm.models.weights import Weights
from dspy_toolkit.store import Frozen, digest

PACKAGES = ("mlx", "mlx-lm", "numpy", "tokenizers", "transformers")
SAVE_SECONDS = 30.0
"""Between two checkpoints: so much work at most is lost."""


class Job(Frozen):
    """One training, or a race of several."""

    name: str
    """Of the model."""
    folder: str
    """Of its weights."""
    sha256: str
    """Of its weights."""
    home: str
    device: str
    """`metal`, `cuda` or `cpu`."""
    data: tuple[RowSet, ...]
    arms: tuple[Arm, ...]
    rungs: tuple[float, ...] = ()
    """Passes over the rows after which arms are compared."""
    deadline_seconds: float | None = None
    """From the start of the process."""
    save_seconds: float = SAVE_SECONDS

    def rows_sha256(self, arm: int) -> str:
        """Of the rows and the validation rows of an arm."""
        return _rows_sha256(self.data[self.arms[arm].rows])

    @property
    def key(self) -> str:
        """Of all that decides over the result."""
        arms = [arm.model_dump(mode="json") for arm in self.arms]
        data = [_rows_sha256(each) for each in self.data]
        ours = sources_sha256(LIBRARY / "finetuning", ())
        return digest(self.sha256, data, arms, list(self.rungs), self.device, library_versions(), ours)

    @property
    def place(self) -> Path:
        """The job's folder."""
        return Path(self.home, "checkpoints", "finetuning", self.key[:32])


def job_of(
    weights: Weights, data: Sequence[RowSet], arms: Sequence[Arm], rungs: Sequence[float], home: Path, device: str
) -> Job:
    """The job of training on `weights`."""
    return Job(
        name=weights.name,
        folder=str(weights.folder),
        sha256=weights.sha256,
        home=str(home),
        device=device,
        data=tuple(data),
        arms=tuple(arms),
        rungs=tuple(rungs),
    )


def _rows_sha256(data: RowSet) -> str:
    return digest(*([row.model_dump(mode="json") for row in rows] for rows in (data.rows, data.val_rows)))


def library_versions() -> dict[str, str | None]:
    """Of what computes an adapter."""
    return {name: versions().get(name) for name in PACKAGES}
