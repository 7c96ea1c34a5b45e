"""Imported before fairseq: keeps off stderr what it logs while it is imported."""

import logging

# "Please install tensorboardX", from a task that nobody asked for
logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.ERROR)
