"""One way of serving the router's program, in a process of its own: `python -m benchmarks.serving.contenders NAME PORT FOLDER`.

serve      `dspy-toolkit serve`
guide      the FastAPI application of DSPy's deployment guide (`dspy.asyncify`), on our engine
generate   the same over `mlx_lm.generate`, one request after another
mlflow     MLflow's scoring server, with a model whose `predict` runs the program on our engine

All have the same program, model and longest reply; the last two of the guide's kind take `{"request": …}` at `/predict`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

MAX_TOKENS = 24
NAMES = ("serve", "guide", "generate", "mlflow")


def settings() -> Any:
    """The home of the environment, with a short longest reply."""
    from dspy_toolkit.settings import load_settings

    return load_settings(lm={"max_tokens": MAX_TOKENS}, serving={"deadline_seconds": 600, "programs": ["router"]})


class Question(BaseModel):
    """What the guide's application takes."""

    request: str


def guide() -> Any:
    """The guide's application: a program made asynchronous by threads, with the LM that DSPy is configured with."""
    import dspy
    from fastapi import FastAPI, HTTPException

    from dspy_toolkit.projects.router import project

    program = dspy.asyncify(project.build())
    app = FastAPI()

    @app.post("/predict")
    async def predict(question: Question) -> dict[str, Any]:
        try:
            return {"status": "success", "data": (await program(request=question.request)).toDict()}
        except Exception as error:  # as in the guide
            raise HTTPException(500, str(error)) from error

    return app


def main(name: str, port: int, folder: Path) -> None:
    """Serve until the process is ended."""
    import dspy
    import uvicorn

    if name == "serve":
        from dspy_toolkit.cli.serve import run_server

        its_own = settings()
        run_server(
            its_own.model_copy(
                update={"serving": its_own.serving.model_copy(update={"port": port, "queue_size": 1024})}
            )
        )
        return
    if name == "mlflow":
        import mlflow
        from mlflow.pyfunc.scoring_server import init

        model = folder / "scoring"
        mlflow.pyfunc.save_model(str(model), python_model=str(Path(__file__).with_name("scoring.py")))
        uvicorn.run(init(mlflow.pyfunc.load_model(str(model))), port=port, log_level="warning")
        return
    if name == "generate":
        from benchmarks.lm.__main__ import peer_folder
        from benchmarks.lm.peers import Place
        from benchmarks.lm.plain import GenerateSystem
        from dspy_toolkit.lm.models.hardware import inspect_hardware
        from dspy_toolkit.lm.models.weights import find_weights

        weights = find_weights(settings().lm.model, settings().path())
        where = peer_folder(weights, settings().path(), inspect_hardware().device)
        place = Place(settings().path(), settings().lm.model, where, None, 2, folder / "log")
        lm, adapter = GenerateSystem(place).lm(MAX_TOKENS)
    else:
        from dspy_toolkit.lm import connect

        connection = connect(settings())
        lm, adapter = connection.lm, connection.adapter
    dspy.configure(lm=lm, adapter=adapter)
    uvicorn.run(guide(), port=port, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
