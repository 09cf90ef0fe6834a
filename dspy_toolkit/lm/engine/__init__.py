"""The MLX engine: one thread that owns a model and answers many requests at once.

engine         what starts and stops it; thread is the queue and the loop that every engine has
batch          one model and its sequences: what a step does, and who has room
sequence       one reply being generated
prefill_queue  which prompts are prefilled next, and which wait for a beginning that they share; prefill computes them
prefix_cache   what is kept of prompts; prefixes finds it by tokens, caches and quantized hold the keys and values
decode         one step of all sequences; masks holds them to their grammars, sampling draws tokens
stats          how long the parts of requests took
"""
