"""The MLX engine: one thread that owns a model and answers many requests at once.

engine    what starts and stops it; thread is the queue and the loop
batch     the scheduler: which sequences are prefilled, and which take a decode step
sequence  one reply being generated
prefill   reading prompts; prefixes finds what prompts share, caches and quantized hold the keys and values
decode    one step of all sequences; masks holds them to grammars, sampling chooses tokens
"""
