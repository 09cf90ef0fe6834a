"""mlx_lm's server on the BLAS that the engine has: on Linux its wheel's own is a hundred times slower.

    python -m benchmarks.lm.serve_mlx --model FOLDER --port PORT …

Arguments are those of `mlx_lm.server`.
"""

from __future__ import annotations


def main() -> None:
    """Load the BLAS, then be the server."""
    from dspy_toolkit.lm.models.blas import preload

    preload()
    from mlx_lm import server

    server.main()


if __name__ == "__main__":
    main()
