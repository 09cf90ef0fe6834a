"""Prefect's view of the library: retries, caching, queueing and artifacts. What is done is in `dspy_toolkit`.

steps        the pipeline's steps, each wrapped once
compile      a search, with its candidates scored here or on the workers of the work pool
measurement  this machine's speed
policy       what every task shares: caching by content, retries on transient errors, one flow at a time on a host
show         what a step shows: artifacts and tables
"""
