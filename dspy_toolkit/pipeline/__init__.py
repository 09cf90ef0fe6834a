"""The steps of an optimization, one file each, in the order of the flow.

resolve   reads everything that can change a result
prepare   checks the rows and splits them
probe     looks at the program before anything is spent
select    chooses an optimizer, with a written reason
release   makes the baseline version 1 where nothing is live; later, promotes a candidate that passed the gate
compile   searches for a better program
compare   puts it against the champion
record    writes the run down

A step is a function of a `Context` and one frozen value of `dspy_toolkit.run`, and returns one. A flow's tasks, `optimize` and
the tests call the same functions.

context   the project, the settings, the store and the models
problem   what a search works on, read from the store
source    a program from elsewhere that a search starts from
unchanged whether the program is still the one that the run began with
optimize  all steps from Python, without an orchestrator
"""
