"""Models of transformers beside their conversions."""

import json

import torch
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

from longmem_fairseq import LongMem
from longmem_fairseq.commands import convert
from tests.helpers.hf_models import make_model, transformers
from tests.helpers.hf_tokenizers import make_tokenizer

MARKS = [f"<|{number}|>" for number in range(60)]  # so many that a random model writes some
PROMPT = "the best mat of all worlds"
STEPS = 40


class Pair:
    """A model of transformers with its tokenizer, and its conversion."""

    def __init__(self, folder, settings=None, vocab_size=None, name="llama", **changes):
        tokenizer = make_tokenizer("llama3")
        tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
        tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
        self.hf, self.folder = folder / "hf", folder / "ours"
        size = vocab_size or tokenizer.get_vocab_size()
        options = {"vocab_size": size, "max_position_embeddings": 128, "pad_token_id": None}
        self.model = make_model(name, self.hf, tokenizer, **{**options, **changes})
        settings = {"bos_token": "<s>", "eos_token": "</s>", **(settings or {})}
        (self.hf / "tokenizer_config.json").write_text(json.dumps(settings))
        self.tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(self.hf)

    def change(self, file="config.json", **changes):
        content = json.loads((self.hf / file).read_text())
        (self.hf / file).write_text(json.dumps({**content, **changes}))

    def converted(self, **options):
        convert.main(["--model", str(self.hf), "--dest", str(self.folder), "--search-tokens", "0"])
        return LongMem.from_pretrained(self.folder, **options)

    def ids(self, text=PROMPT):
        return torch.tensor([self.tokenizer(text)["input_ids"]])

    def generated(self, ids=None, **options):
        """The new ids, with the end that there may be."""
        ids = self.ids() if ids is None else ids
        model = transformers.AutoModelForCausalLM.from_pretrained(self.hf).eval()
        options = {"max_new_tokens": STEPS, "do_sample": False, **options}
        return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.size(1) :]

    def text(self, ids):
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def log_probs(model, ids):
    with torch.no_grad():
        logits = model(ids).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
