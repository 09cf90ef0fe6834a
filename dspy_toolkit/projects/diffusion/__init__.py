"""Sampling diffusion models: from what somebody has to a sampler, steps and spacing that were measured to do.

situation   what is known before sampling, and the configuration with its exports
signatures  a description → the situation; the situation → an explained choice
measure     what really happened: small denoisers on image domains
advisor     what advice needs: objective, guard, facts, keywords
program     a description → advice
definition  the project to optimize
"""
