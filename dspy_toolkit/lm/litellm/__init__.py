"""The engine behind LiteLLM, and other models behind the engine's names.

provider         the custom provider `mlx`
translation      LiteLLM's calls and replies to the engine's and back; constraints makes grammars of what a call asks for
fallback         who answers when the first who should cannot
patience         how long a call waits for a remote model's server
errors           the toolkit's errors as LiteLLM's and DSPy's, and theirs as the toolkit's
"""
