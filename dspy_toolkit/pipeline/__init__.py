"""The steps of an optimization: resolve → prepare → probe → select → compile → compare → release → record."""
