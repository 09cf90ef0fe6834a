"""Federated learning: from what somebody has to a configuration that was measured to work there.

situation   what is known before training, and the configuration with its exports
signatures  a description → the situation; the situation → an explained choice
measure     what really happened: digits, spread over clients
advisor     what advice needs: objective, guard, facts, keywords
program     a description → advice
definition  the project to optimize
"""
