"""The router's program as an MLflow model from code, which `mlflow models serve` would load."""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd


class Router(mlflow.pyfunc.PythonModel):
    """Runs the program on each row of a table."""

    def load_context(self, context: Any) -> None:
        from benchmarks.serving.contenders import settings
        from dspy_toolkit.lm import connect
        from dspy_toolkit.projects.router import project

        self._program, self._connection = project.build(), connect(settings())

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[str]:
        with self._connection.context():
            return [self._program(request=request).project for request in model_input["request"]]


mlflow.models.set_model(Router())
