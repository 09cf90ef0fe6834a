"""What a person at a terminal sees: progress bars, the summary of a run, tables."""
