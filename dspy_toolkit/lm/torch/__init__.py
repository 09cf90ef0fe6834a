"""The same interface on torch, where MLX cannot run a model: engine, sampling, weights."""
