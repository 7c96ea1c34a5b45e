"""The commands that read texts, and the prompt of their tests."""

from longmem_fairseq.commands import generate, inspector, memorize
from tests.helpers.model_folders import story

COMMANDS = {
    "longmem-memorize": memorize,
    "longmem-generate": generate,
    "longmem-inspect": inspector,
}
PROMPT = " ".join(story(5, seed=3).split())


def num_tokens(lm, *texts):
    return sum(len(lm.tokenizer.indices(text)) for text in texts)
