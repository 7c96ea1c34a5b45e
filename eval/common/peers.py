"""The same steps in other programs: transformers, and llama-cpp-python.

``args``: the options of eval/benchmark_peers.py.
"""

from argparse import Namespace
from pathlib import Path
from typing import Callable, Dict, List

import torch
from torch import Tensor, nn

from eval.common.timing import Step


def transformers_model(original: Path, dtype: str, device: torch.device) -> nn.Module:
    """The model of a folder or GGUF file in transformers.

    Raises:
        ValueError: transformers is missing, or cannot read it
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise ValueError("transformers is missing: pip install 'longmem-fairseq[peers]'") from None
    options = {"dtype": getattr(torch, dtype)}
    if original.suffix == ".gguf":
        original, options["gguf_file"] = original.parent, original.name
    try:
        return AutoModelForCausalLM.from_pretrained(original, **options).eval().to(device)
    except (OSError, ImportError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--original ({original}): transformers cannot read it: {reason}"
        ) from None


def transformers_steps(
    args: Namespace, model: nn.Module, tokens: Tensor, trainable: int
) -> Dict[str, Step]:
    """A step for every mode.

    Args:
        tokens: B x (T + 1) ids
        trainable: how many parameters a training step changes at least: those of the last blocks
    """
    source, target = tokens[:, :-1], tokens[:, 1:]

    def losses() -> Tensor:
        logits = model(source, use_cache=False).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), target.flatten())

    def logits() -> None:
        with torch.no_grad():
            model(source, use_cache=False)

    def loss() -> None:
        with torch.no_grad():
            losses()

    steps = {"logits": Step(logits), "loss": Step(loss)}
    steps["training"] = _training(model, losses, trainable)
    steps["generation"] = _generation(args, model, tokens)
    return steps


def _training(model: nn.Module, losses: Callable[[], Tensor], trainable: int) -> Step:
    """A step of Adam on the last blocks, in the type of the weights."""
    model.requires_grad_(False)
    chosen: List[nn.Parameter] = []
    for block in reversed(model.model.layers):
        if sum(p.numel() for p in chosen) < trainable:
            chosen += block.requires_grad_(True).parameters()
    optimizer = torch.optim.Adam(chosen, lr=1e-4)

    def step() -> None:
        losses().backward()
        optimizer.step()
        optimizer.zero_grad()

    return Step(step)


def _generation(args: Namespace, model: nn.Module, tokens: Tensor) -> Step:
    """The most likely tokens after a prompt, with its cache of keys and values."""
    prompt = tokens[:1, : args.prompt_tokens].expand(args.prompts, -1)
    state = {}

    @torch.no_grad()
    def prepare() -> None:
        state["cache"] = model(prompt, use_cache=True, logits_to_keep=1).past_key_values

    @torch.no_grad()
    def generate() -> None:
        new = prompt[:, :1]
        for _ in range(args.new_tokens):
            output = model(new, past_key_values=state["cache"], use_cache=True)
            state["cache"] = output.past_key_values
            new = output.logits[:, -1].argmax(dim=-1, keepdim=True)

    return Step(generate, prepare)


def llama_generation(args: Namespace, tokens: Tensor) -> Step:
    """One prompt, by llama.cpp, in the type of the file."""
    from llama_cpp import Llama

    model = Llama(
        str(args.original),
        n_ctx=args.tokens_per_sample,
        n_threads=torch.get_num_threads(),
        verbose=False,
    )
    prompt = tokens[0, : args.prompt_tokens].tolist()

    def prepare() -> None:
        model.reset()
        model.eval(prompt)

    def generate() -> None:
        token = prompt[0]
        for _ in range(args.new_tokens):
            model.eval([token])
            token = model.sample(temp=0.0)

    return Step(generate, prepare)
