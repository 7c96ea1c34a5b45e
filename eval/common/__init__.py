"""Parts that several scripts of eval/ use."""
