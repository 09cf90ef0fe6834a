"""Whether a candidate has proved to be better: it knows scores, groups of rows and error rates, and nothing of programs or models.

decide     the paired comparison on the sealed rows, and the verdict
intervals  intervals of means and of paired differences, and the difference that a test can detect
ledger     the openings of sealed rows, and the error rate that each may spend
"""
