"""Before anything is spent: the probe, and the choice of an optimizer.

probe         some thirty runs of the baseline
selection     which generators fill the pool, with a written reason
similar_runs  what earlier runs say of the generators
"""
