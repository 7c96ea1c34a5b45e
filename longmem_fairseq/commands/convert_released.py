"""Turn checkpoints in the layout of the released LongMem into this project's.

Example:
    python preprocess/convert_longmem_checkpoint.py --backbone gpt2.pt --longmem longmem.pt \
        --dict dict.txt --gpt2-bpe-dir gpt2_bpe --dest models/released

writes models/released/backbone/{checkpoint.pt,dict.txt} and, with --longmem, the same under
models/released/longmem. fairseq-eval-lm and eval/evaluate.py read both. With --gpt2-bpe-dir, a folder
with GPT-2's encoder.json and vocab.bpe, both get the tokenizer that texts need: the longmem commands,
prepare_corpus.py --vocabulary and the benchmarks. The folder can be moved as a whole.
"""

import argparse
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

import torch
from fairseq.data import Dictionary
from omegaconf import OmegaConf
from torch import Tensor

from longmem_fairseq.conversion.model_folder import check_fits, save_model
from longmem_fairseq.models.backbone import BackboneDecoder, LongMemBackboneConfig
from longmem_fairseq.models.checkpoints import fingerprint
from longmem_fairseq.models.longmem_config import LongMemConfig
from longmem_fairseq.models.sidenet import SideNetDecoder
from longmem_fairseq.tokenizers.gpt2_tokenizer import GPT2Tokenizer
from longmem_fairseq.utils.checkpoint_errors import clear_errors
from longmem_fairseq.utils.cli import documented_parser, run
from longmem_fairseq.utils.output_folder import check_new, replaced_folder

# fairseq's names of activations, and ours
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
BACKBONE_NAMES = {
    "decoder.model.transformer.wte.": "embed_tokens.",
    "decoder.model.transformer.h.": "layers.",
    "decoder.model.transformer.ln_f.": "layer_norm.",
    "decoder.model.lm_head.": "output_projection.",
    ".ln_1.": ".layer_norm.",
    ".attn.": ".self_attn.",
    ".mlp.fc_in.": ".fc1.",
    ".mlp.fc_out.": ".fc2.",
}
SIDENET_NAMES = {"decoder.": "", ".ln_1.": ".layer_norm."}
PRETRAINED = "decoder.pretrained_model."
# The released SideNet predicts with the backbone's head, bias included; the weight that it saves
# beside it is a copy.
SIDENET_HEAD = "decoder.output_projection.weight"
# Never read by the released forward: fairseq's own embedding (its SideNet starts from the backbone's
# hidden states) and a version number; causal masks of GPT-J's attention.
UNUSED = ("decoder.embed_tokens.weight", "decoder.version", SIDENET_HEAD)
UNUSED_ENDINGS = (".attn.bias", ".attn.masked_bias")


def get_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = documented_parser(__doc__)
    add = parser.add_argument
    add("--backbone", type=Path, required=True, help="released backbone checkpoint")
    add("--longmem", type=Path, help="released LongMem checkpoint; without it the backbone alone")
    add("--dict", type=Path, required=True, help="the backbone's fairseq dictionary")
    add("--gpt2-bpe-dir", type=Path, help="folder with GPT-2's encoder.json and vocab.bpe, to copy")
    add("--dest", type=Path, required=True, help="new or empty folder to write")
    return parser


def load_safely(path: Path) -> Dict[str, Any]:
    """The dictionary that was saved as *path*; nothing in it is executed.

    fairseq's loader is no use here: it looks up the released architectures, which we do not have.

    Raises:
        FileNotFoundError: there is no such file
        ValueError: it is damaged, holds no dictionary, or would execute code
    """
    # a plain bag of options; not for this block alone, whose end would take it from install() too
    torch.serialization.add_safe_globals([argparse.Namespace])
    with clear_errors(path):
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not a checkpoint: it holds a {type(state).__name__}")
    return state


class ReleasedCheckpoint:
    """Options and weights of a checkpoint in the released layout.

    Raises:
        ValueError: it has another layout
    """

    def __init__(self, path: Path):
        state = load_safely(path)
        self.path, self.args, self.weights = path, state.get("args"), state.get("model")
        if not isinstance(self.args, argparse.Namespace) or not isinstance(self.weights, dict):
            raise ValueError(
                f"{path} is not in the released layout, an argparse Namespace as `args` and a state "
                "dict as `model`: is it converted already?"
            )

    def option(self, name: str, kind: type = int) -> Any:
        """An option that it was trained with.

        Raises:
            ValueError: the checkpoint was saved without it, or it is of another type
        """
        if not hasattr(self.args, name):
            raise ValueError(f"{self.path} is not in the released layout: no option {name}")
        value = getattr(self.args, name)
        if type(value) is not kind:
            raise ValueError(f"{self.path}: {name} is {value!r}, expected {kind.__name__}")
        return value

    def options(self, *names: str) -> Dict[str, int]:
        """Several that are whole numbers, by name; see :meth:`option`."""
        return {name: self.option(name) for name in names}

    def weight(self, name: str) -> Tensor:
        """One of its tensors.

        Raises:
            ValueError: the checkpoint was saved without it
        """
        if not isinstance(self.weights.get(name), Tensor):
            raise ValueError(f"{self.path} is not in the released layout: no tensor {name}")
        return self.weights[name]

    def renamed(self, names: Dict[str, str]) -> Dict[str, Tensor]:
        """The weights under our names; *names* are replaced in the order given."""
        weights = {}
        for name, tensor in self.weights.items():
            if name in UNUSED or name.endswith(UNUSED_ENDINGS) or name.startswith(PRETRAINED):
                continue
            for released, ours in names.items():
                name = name.replace(released, ours)
            weights[name] = tensor
        return weights


def extended_dictionary(path: Path, num_rows: int) -> str:
    """The text of a dictionary file with as many symbols as the embedding has rows.

    fairseq pads a dictionary in memory, by the same words, and saves the embedding of that size.

    Raises:
        FileNotFoundError: there is no such file
        ValueError: it is no dictionary, or has more symbols than that
    """
    if not path.is_file():
        raise FileNotFoundError(f"--dict ({path}): no such file")
    try:
        dictionary = Dictionary.load(str(path))
    except Exception as error:  # fairseq raises a bare Exception for a wrong encoding
        raise ValueError(f"--dict ({path}) is not a fairseq dictionary: {error}") from error
    if len(dictionary) > num_rows:
        raise ValueError(
            f"--dict ({path}) has {len(dictionary)} symbols, more than the {num_rows} rows of the "
            "backbone's embedding: give the dictionary it was trained with"
        )
    text = path.read_text(encoding="utf-8")  # as it is: flags of a line are not in `dictionary`
    if not text.endswith("\n"):
        text += "\n"
    number = 0
    while len(dictionary) < num_rows:
        word = f"madeupword{number:04d}"
        number += 1
        if word not in dictionary:
            dictionary.add_symbol(word, n=0)
            text += f"{word} 0\n"
    return text


def released_backbone_config(released: ReleasedCheckpoint) -> LongMemBackboneConfig:
    """The configuration of a released backbone.

    Raises:
        ValueError: an option is missing, or has positions other than ALiBi's
    """
    mode = getattr(released.args, "newgpt_mode", "alibi")
    if mode != "alibi":
        raise ValueError(f"{released.path}: newgpt_mode is {mode}, only alibi can be converted")
    return LongMemBackboneConfig(
        _name="longmem_backbone",
        **released.options("embed_dim", "num_layers", "num_attention_heads"),
    )


def released_longmem_config(released: ReleasedCheckpoint, backbone: Path) -> LongMemConfig:
    """The configuration of a released LongMem on a converted backbone.

    Raises:
        ValueError: an option is missing, or its activation unknown
    """
    activation = released.option("activation_fn", str)
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"{released.path}: activation_fn is {activation}, expected one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    return LongMemConfig(
        _name="longmem",
        pretrained_model_path=str(backbone),
        no_memory=not released.option("use_external_memory", bool),
        **released.options("memory_size", "chunk_size", "k"),
        **released.options("retrieval_layer_index", "layer_reduction_factor"),
        activation_fn=ACTIVATIONS[activation],
        memory_scope="batch",  # the only one that the released code has
        sidenet_init="released",
    )


def check_same_backbone(released: ReleasedCheckpoint, backbone: ReleasedCheckpoint) -> None:
    """Checks that a SideNet belongs to a backbone.

    Raises:
        ValueError: the SideNet was trained with another backbone, or changed its head
    """
    for name, tensor in backbone.weights.items():
        if not torch.equal(released.weight(PRETRAINED + name), tensor):
            raise ValueError(
                f"--longmem ({released.path}) was trained with another backbone than --backbone "
                f"({backbone.path}): {name} differs"
            )
    if not torch.equal(
        released.weight(SIDENET_HEAD), backbone.weight("decoder.model.lm_head.weight")
    ):
        raise ValueError(
            f"--longmem ({released.path}) has tuned the backbone's head ({SIDENET_HEAD} differs "
            "from it), which is frozen here: it cannot be converted"
        )


def convert_released(
    backbone: Path,
    longmem: Optional[Path],
    dictionary: Path,
    dest: Path,
    gpt2_bpe_dir: Optional[Path] = None,
) -> None:
    """Writes *dest*, complete or not at all; without *gpt2_bpe_dir* the models have no tokenizer.

    Raises:
        FileNotFoundError, ValueError: an input is missing, damaged, or of another layout
    """
    check_new(dest)
    released = ReleasedCheckpoint(backbone)
    cfg = released_backbone_config(released)
    num_rows = released.weight("decoder.model.transformer.wte.weight").size(0)
    text = extended_dictionary(dictionary, num_rows)
    weights = released.renamed(BACKBONE_NAMES)
    with replaced_folder(dest) as folder:
        save_model(folder / "backbone", cfg, weights, released.option("tokens_per_sample"), text)
        words = Dictionary.load(str(folder / "backbone" / "dict.txt"))
        tokenizer = None if gpt2_bpe_dir is None else GPT2Tokenizer(gpt2_bpe_dir, words)
        if tokenizer is not None:
            tokenizer.save(folder / "backbone")
        with torch.device("meta"):  # without memory, however large the options say it is
            decoder = BackboneDecoder(
                OmegaConf.structured(cfg), words, released.option("tokens_per_sample")
            )
        check_fits(released.path, weights, decoder)
        if longmem is None:
            return
        sidenet = ReleasedCheckpoint(longmem)
        check_same_backbone(sidenet, released)
        cfg = released_longmem_config(sidenet, (dest / "backbone" / "checkpoint.pt").resolve())
        tokens_per_sample = sidenet.option("tokens_per_sample")
        identity = fingerprint(weights)
        # a model of ours checks the options and says which tensors there have to be
        with torch.device("meta"):
            module = SideNetDecoder(OmegaConf.structured(cfg), decoder, identity)
        weights = {**sidenet.renamed(SIDENET_NAMES), "backbone_fingerprint": identity}
        check_fits(sidenet.path, weights, module)
        place = "../backbone/checkpoint.pt"
        save_model(folder / "longmem", cfg, weights, tokens_per_sample, text, place)
        if tokenizer is not None:
            tokenizer.save(folder / "longmem")


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Runs the command line *argv* (default: that of the process)."""
    args = get_parser().parse_args(argv)
    convert_released(args.backbone, args.longmem, args.dict, args.dest, args.gpt2_bpe_dir)
    print(args.dest)


def cli() -> None:
    """The script preprocess/convert_longmem_checkpoint.py."""
    run(main)
