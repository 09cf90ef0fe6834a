"""Adapting an image-text model: from what somebody has to a configuration that was measured to help without destroying.

situation   what is known before training, and the configuration with its exports
signatures  a description → the situation; the situation → an explained choice
measure     what really happened: two towers on the glyphs of fonts
advisor     what advice needs: objective, guard, keywords
program     a description → advice
definition  the project to optimize
"""
