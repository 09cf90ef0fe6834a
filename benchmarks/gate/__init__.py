"""What the gate brings over many nights, on projects whose truth is known.

nights   a year of nights: `python -m benchmarks.gate.nights`
lives    the simulation: projects, candidates, and the policies that pass judgment on them
"""
