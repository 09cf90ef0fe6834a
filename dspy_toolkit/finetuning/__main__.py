"""`python -m dspy_toolkit.finetuning JOB-FOLDER`: the training process; `process.train` starts it."""

from __future__ import annotations

import sys
from pathlib import Path

from dspy_toolkit.finetuning.child import main

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("python -m dspy_toolkit.finetuning JOB-FOLDER; dspy_toolkit.finetuning.train makes the folder.")
    sys.exit(main(Path(sys.argv[1])))
