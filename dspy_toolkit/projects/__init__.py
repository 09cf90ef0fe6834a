"""The built-in projects. Each uses the library as an outside project would."""
