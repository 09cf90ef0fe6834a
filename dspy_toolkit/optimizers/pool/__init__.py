"""One pool for the candidates of all generators: which one is made next, which are scored on more rows, which one wins.

entry     a candidate, and what is known of a generator
policy    the decisions, by scores and costs alone
pool      spends a budget by them
scoring   runs candidates on validation rows, here or on workers
"""
