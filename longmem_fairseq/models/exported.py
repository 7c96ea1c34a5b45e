"""Exported models: a SideNet in model.safetensors, and its configuration in config.json beside it.

Reading one executes nothing, and gives what fairseq's checkpoints hold; whatever takes a checkpoint
(``--path``) takes a model.safetensors too.
"""

import json
from pathlib import Path
from typing import Any, Dict, Optional

from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.utils import overwrite_args_by_name
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from longmem_fairseq.models.checkpoints import hexadecimal
from longmem_fairseq.utils.refusal import refused
from longmem_fairseq.utils.replaced_file import give_usual_mode
from longmem_fairseq.utils.text_files import parse_json

FORMAT = 1
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"


def write_exported(folder: Path, state: Dict[str, Any]) -> Dict[str, Any]:
    """Writes both files from a checkpoint's content; returns what config.json has.

    The path of the backbone is left out: it means nothing elsewhere.
    """
    model, task = (OmegaConf.to_container(state["cfg"][part]) for part in ("model", "task"))
    config = {
        "format": FORMAT,
        "model_type": str(model["_name"]),
        "num_updates": state["optimizer_history"][-1]["num_updates"],
        "dictionary_hash": state["task_state"]["dictionary_hash"],
        "backbone_fingerprint": hexadecimal(state["model"]["decoder.backbone_fingerprint"]),
        "model": {**model, "pretrained_model_path": ""},
        "task": {
            "_name": "longmem_language_modeling",
            "data": "",
            "tokens_per_sample": task["tokens_per_sample"],
            "segment_overlap": task.get("segment_overlap", 0),
        },
    }
    text = json.dumps(config, indent=2, default=str)  # its enumerations are strings by name
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in state["model"].items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    give_usual_mode(str(folder / WEIGHTS_FILE))
    return config


def read_exported(path: Path, overrides: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
    """A model.safetensors as fairseq's ``load_checkpoint_to_cpu`` would give it.

    Args:
        overrides: options to change

    Raises:
        FileNotFoundError: one of the two files is missing
        ValueError: one is damaged, or of another format
    """
    for file in (path, path.with_name(CONFIG_FILE)):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file")
    with refused(f"{path.parent} holds no exported model"):
        config = parse_json(path.with_name(CONFIG_FILE).read_bytes())
        if config["format"] != FORMAT:
            raise ValueError(f"format {config['format']}, expected {FORMAT}")
        whole = OmegaConf.to_container(OmegaConf.structured(FairseqConfig), enum_to_str=True)
        whole.update(model=config["model"], task=config["task"])
        cfg = OmegaConf.create(whole, flags={"allow_objects": True})
        weights = load_file(path)
        history = [{"num_updates": config["num_updates"]}]
        task_state = {"dictionary_hash": config["dictionary_hash"]}
    if overrides is not None:
        overwrite_args_by_name(cfg, overrides)
    return {
        "args": None,
        "cfg": cfg,
        "model": weights,
        "optimizer_history": history,
        "extra_state": {},
        "task_state": task_state,
    }
