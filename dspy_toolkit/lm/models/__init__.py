"""Models on this machine: weights and tokenizers, what they need, and what the machine has.

weights    finding, hashing and loading weights; embedded converts those of the model that comes along, gguf fetches
them tokenizer  text to tokens and back, chat templates, grammars' matchers memory     how many sequences of what length
fit; hardware what there is blas cpu   MLX on a CPU: a fast BLAS, and kernels that MLX lacks there lease      one
process at a time on an accelerator hashes     of weights' and adapters' files adapters   those that are kept in the home
"""
