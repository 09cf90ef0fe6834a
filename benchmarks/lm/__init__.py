"""The engine against other ways of running the same model: `python -m benchmarks.lm`.

__main__   what runs, in which order; the table, the figure and the JSON
workloads  what is asked: programs, requests, and how an answer is judged
systems    who is asked: what a system can do, and the engine
plain      `mlx_lm.generate` behind a handler
expert     the honest peer: BatchGenerator, LRUPromptCache and llguidance
servers    mlx_lm's and llama-cpp-python's servers
serve_mlx  mlx_lm's server with the BLAS that the engine has
float32    the expanded weights, for peers on MLX
worker     one system in a process of its own, over all workloads
asking     what a worker was told, and asking one row
bursts     requests a second, and where the engine's time went
streaming  seconds to the first token under load
compiling  a whole compilation
floor      the least time that this machine could take
report     rows as a table and as a figure
"""
