"""Messages as a prompt, for models that were trained on such."""

from typing import Dict, List

from torch import Tensor

from longmem_fairseq.api.hub_interface import LongMem
from longmem_fairseq.serving.errors import RequestError


def chat_prompt(lm: LongMem, messages: List[Dict[str, str]]) -> Tensor:
    """Dictionary indices of the messages, and of what stands before the answer.

    Raises:
        RequestError: the model has no chat template
    """
    raise RequestError(
        "this model has no chat template: use /v1/completions", param="messages", code="no_template"
    )
