"""Models of 4 layers x 32 with weights large enough to matter, and helpers that read them.

The fixtures ``task``, ``backbone_path``, ``backbone`` and ``build`` of conftest.py make them.
"""

import torch
from fairseq.data import Dictionary
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from omegaconf import OmegaConf

from longmem_fairseq.criterions import LongMemCrossEntropyCriterion
from longmem_fairseq.models.backbone import BackboneDecoder, LongMemBackbone, LongMemBackboneConfig
from longmem_fairseq.models.checkpoints import dictionary_hash
from longmem_fairseq.models.longmem import LongMemModel
from longmem_fairseq.models.longmem_config import LongMemConfig
from longmem_fairseq.models.memtrm import MemTRM
from longmem_fairseq.tasks import LongMemLanguageModelingTask
from longmem_fairseq.tasks.longmem_language_modeling import LongMemLanguageModelingConfig

SEGMENT = 8
HALF = SEGMENT // 2
SIZES = {"embed_dim": 32, "num_layers": 4, "num_attention_heads": 4}
MEMORY = {"memory_size": 64, "chunk_size": 2, "k": 8, "retrieval_layer_index": 3}

LAYER = (
    "layer_norm.weight",
    "layer_norm.bias",
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.out_proj.weight",
    "fc1.weight",
    "fc1.bias",
    "fc2.weight",
    "fc2.bias",
)
SAVED = [
    *(f"decoder.layers.0.{name}" for name in LAYER),
    *(f"decoder.layers.1.{name}" for name in LAYER),
    "decoder.layers.1.self_attn.memory_bias",
    "decoder.layer_norm.weight",
    "decoder.layer_norm.bias",
    "decoder.backbone_fingerprint",
]


def make_task(folder):
    """A task whose dictionary of 64 symbols is in *folder*, and which has no data."""
    dictionary = Dictionary()
    for i in range(60):
        dictionary.add_symbol(f"w{i}", n=60 - i)
    dictionary.save(str(folder / "dict.txt"))
    cfg = LongMemLanguageModelingConfig(data=str(folder), tokens_per_sample=SEGMENT)
    return LongMemLanguageModelingTask(cfg)


def save_backbone(path, dictionary, seed, **options):
    """A checkpoint as fairseq-train writes it, of a backbone with random weights."""
    torch.manual_seed(seed)
    cfg = OmegaConf.structured(LongMemBackboneConfig(_name="longmem_backbone", **SIZES, **options))
    decoder = BackboneDecoder(cfg, dictionary, SEGMENT)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    state = {
        "cfg": {"model": OmegaConf.to_container(cfg, enum_to_str=True)},
        "args": None,
        "model": {"decoder." + name: tensor for name, tensor in decoder.state_dict().items()},
        "optimizer_history": [
            {"optimizer_name": "FairseqAdam", "lr_scheduler_state": {}, "num_updates": 0}
        ],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
        "task_state": {"dictionary_hash": dictionary_hash(dictionary)},
    }
    torch.save(state, path)
    return str(path)


def load_backbone(path, task):
    """The checkpoint as a language model of its own."""
    state = torch.load(path)
    model = LongMemBackbone.build_model(OmegaConf.create(state["cfg"]["model"]), task)
    model.load_state_dict(state["model"])
    return model.eval()


def build_model(task, path, config=LongMemConfig, perturb=False, **options):
    """A longmem or memtrm on the backbone of *path*, with options; in evaluation mode."""
    torch.manual_seed(2)
    options = {"pretrained_model_path": path, **MEMORY, **options}
    cls = LongMemModel if config is LongMemConfig else MemTRM
    cfg = OmegaConf.structured(config(**options))
    cls.settle_config(cfg, from_checkpoint=False)  # as the task does
    model = cls.build_model(cfg, task)
    if perturb:  # as if it had been trained
        torch.manual_seed(3)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "memory_bias" not in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def document(seed, num_tokens, rows=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, 64, (rows, num_tokens), generator=generator)


@torch.no_grad()
def read(model, tokens, fresh=True):
    """Logits of all tokens, read segment by segment."""
    logits = []
    for start in range(0, tokens.size(1), SEGMENT):
        new_document = torch.full((len(tokens),), fresh and start == 0)
        logits.append(model(tokens[:, start : start + SEGMENT], new_document=new_document)[0])
    return torch.cat(logits, dim=1)


def differ(a, b):
    return (a - b).abs().max().item() > 1e-3


def sample_of(tokens, fresh):
    source, target = tokens[:, :-1], tokens[:, 1:]
    flags = torch.full((len(tokens),), fresh)
    return {
        "net_input": {"src_tokens": source.contiguous(), "new_document": flags},
        "target": target.contiguous(),
        "ntokens": target.numel(),
        "nsentences": len(tokens),
    }


def train(model, task, steps):
    """Adam over what asks for a gradient, which is what fairseq's trainer hands to its optimizer."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    cfg = FairseqAdamConfig(adam_betas="(0.9, 0.98)", lr=[1e-2], tpu=False)
    optimizer = FairseqAdam(OmegaConf.structured(cfg), trainable)
    criterion = LongMemCrossEntropyCriterion(task)
    logs = []
    for step in range(steps):
        sample = sample_of(document(100 + step, SEGMENT + 1, rows=2), fresh=step == 0)
        optimizer.zero_grad()
        _, _, log = task.train_step(sample, model, criterion, optimizer, step)
        optimizer.step()
        logs.append(log)
    return optimizer, logs


@torch.no_grad()
def recomputed(decoder, tokens):
    """Logits of the last of B x T tokens by reading all of them anew, in halves of a segment."""
    past = max(0, -(-(tokens.size(1) - SEGMENT) // HALF) * HALF)
    start = torch.ones(tokens.size(0), dtype=torch.bool)
    if decoder.memory is not None:
        decoder.memory.reset()
        for segment in tokens[:, :past].split(HALF, dim=1):
            if segment.size(1):
                decoder(segment, new_document=start)
                start = torch.zeros_like(start)
    logits = decoder(tokens[:, past:], new_document=start)[0][:, -1]
    if decoder.memory is not None:
        decoder.memory.reset()
    return logits
