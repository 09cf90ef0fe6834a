"""Whether a candidate is better, by scores, groups of rows and error rates alone: nothing here knows programs or
models.

decide     the paired comparison on the sealed rows, and the verdict
intervals  intervals of means and of paired differences, and the difference that a test can detect
ledger     the openings of sealed rows, and the error rate that each may spend
"""
