"""What each optimizer brings on eight tasks, and what racing or choosing one brings: `python -m benchmarks.optimizers`.

__main__   which tasks, seeds and budget; the tables and the JSON
tasks      eight programs with rows drawn by seeds, and their metrics
measuring  one task under one seed: the profile, each optimizer alone, the race, the choice
classical  what scikit-learn does on the same rows, without a language model
scripted   GEPA between two scripted models: the gain of its search, apart from any model's skill
rows       the numbers, kept as they come, so that a run that was cut off goes on
gains      gains over tasks and seeds, with intervals
goals      the numbers that were promised, met or missed
report     rows as tables, for a terminal and for the documentation
clock      a line for every system that is through, and how long the rest takes
races      searches whose truth is known, for the pool against other ways of spending a budget
"""
