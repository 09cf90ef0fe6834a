"""What the numbers in the documentation come from. Run one with `python -m benchmarks.NAME`; see README.md here."""
