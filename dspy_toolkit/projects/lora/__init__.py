"""Fine-tuning adapters: from what somebody has to a configuration that fits, at a rate that was measured to work.

situation   what is known before training, and the configuration with its exports
signatures  a description → the situation; the situation → an explained choice
measure     what really happened: mlx_lm's training on the embedded model
facts       sizes, lengths, and the estimate of memory
advisor     what advice needs: objective, guard, keywords
program     a description → advice
definition  the project to optimize
"""
