"""Prefect's view of the library: retries, caching, queueing and artifacts. What is done is in `dspy_toolkit`.

preparation   resolve the project, prepare its dataset
optimization  probe, select, compile
scoring       compare with the champion
release       promote, record
policy        what every task shares: caching by content, retries on transient errors, one flow at a time on a host
"""
