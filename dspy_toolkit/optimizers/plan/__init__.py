"""Before anything is spent: the probe, and the choice of an optimizer.

probe         some thirty runs of the baseline
selection     which optimizer, with a written reason
similar_runs  orders the optimizers by what earlier runs gained
"""
