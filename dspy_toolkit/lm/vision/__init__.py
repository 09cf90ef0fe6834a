"""Models that read images beside text, on MLX through mlx-vlm: engine, prompt, images, weights."""
