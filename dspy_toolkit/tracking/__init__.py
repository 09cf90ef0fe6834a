"""MLflow: what people look at, and what later runs learn from.

mlflow_client  connecting, and errors in one line
runs           writing a run
history        reading earlier runs back
machine        this machine's speed over time
"""
