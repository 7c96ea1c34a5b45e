"""An OpenAI-style server of a model and its memory; the extra ``serve``."""
