"""A LongMem in EleutherAI's lm-evaluation-harness; the extra ``harness``."""
