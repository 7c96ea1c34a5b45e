"""What fairseq-generate and fairseq-interactive ask of a task."""

import torch
from fairseq.tasks import FairseqTask

from longmem_fairseq.data import lines_to_continue
from longmem_fairseq.models.checkpoints import identify_memory


class GenerationTask(FairseqTask):
    """Continues prompts, and documents; asks for ``dictionary`` and ``document_start``."""

    @property
    def prefix_size(self) -> int:
        """How many tokens of each document fairseq-generate continues; 0 in all other commands."""
        size = self.cfg.prefix_size
        return size if isinstance(size, int) else 0  # a reference, outside of fairseq's commands

    def build_dataset_for_inference(self, src_tokens, src_lengths, **unused):
        """Prompts for fairseq-interactive."""
        return lines_to_continue(src_tokens, self.dictionary.eos(), self.dictionary.pad())

    def build_generator(self, models, args, *more, **options):
        """fairseq's generator of models that start with --memory.

        Raises:
            FileNotFoundError, ValueError: see :meth:`ExternalMemory.load`; or a model has no memory
        """
        for model in models if self.cfg.memory is not None else ():
            if model.decoder.memory is None:
                raise ValueError(f"--memory ({self.cfg.memory}) needs a model with a memory")
            identify_memory(model)
            device = next(model.parameters()).device
            model.decoder.memory.load(self.cfg.memory, training=False, device=device)
        return super().build_generator(models, args, *more, **options)

    def inference_step(self, generator, models, sample, prefix_tokens=None, constraints=None):
        """Continues prompts; every hypothesis begins with the beginning of a document.

        Raises:
            ValueError: --prefix-size is missing, or --constraints are given
        """
        if constraints is not None:
            raise ValueError("--constraints do not go with this task: leave them out")
        if "new_document" in sample["net_input"]:
            raise ValueError(
                "--prefix-size is missing: how many tokens of each document to continue"
            )
        prompts = sample["net_input"]["src_tokens"]
        if prefix_tokens is None and prompts.numel() > 0:
            prefix_tokens = prompts
        with torch.no_grad():
            return generator.generate(
                models, sample, prefix_tokens=prefix_tokens, bos_token=self.document_start
            )
