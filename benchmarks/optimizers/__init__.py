"""What each optimizer brings on five small tasks, and what racing or choosing one costs: `python -m benchmarks.optimizers`.

__main__   which tasks, seeds and budget; the tables and the JSON
tasks      five programs with rows made by seeded templates, and their metrics
measuring  one task under one seed: the profile, each optimizer alone, the race, the choice
scripted   GEPA between two scripted models: the gain of its search, apart from any model's skill
rows       the numbers, kept as they come, so that a run that was cut off goes on
goals      the numbers that were promised, met or missed
report     rows as tables, for a terminal and for the documentation
"""
