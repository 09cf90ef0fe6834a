"""The engine behind LiteLLM, and other models behind the engine's names.

provider         the custom provider `mlx`
translation      LiteLLM's calls and replies to the engine's and back; constraints makes grammars of what a call asks for
fallback         who answers when the first who should cannot
"""
