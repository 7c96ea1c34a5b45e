"""Options of the task."""

from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import Any, Dict, Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.configs import FairseqConfig
from omegaconf import II, MISSING

from longmem_fairseq.models.backbone import COMPUTE_DTYPE_CHOICES
from longmem_fairseq.models.longmem import BACKBONE_DTYPE_CHOICES
from longmem_fairseq.models.memory_config import (
    MEMORY_DTYPE_CHOICES,
    MEMORY_HEADS_CHOICES,
    MEMORY_SCOPE_CHOICES,
    MEMORY_STORAGE_CHOICES,
)

TASK = "longmem_language_modeling"
_OVERRIDE = " (default when evaluating: as the checkpoint was trained)"


@dataclass
class ModelOptions(FairseqDataclass):
    """Options of the model that the task knows too, because fairseq-eval-lm reads the task's options
    and takes the model's from the checkpoint. None leaves the checkpoint's value."""

    pretrained_model_path: Optional[str] = field(
        default=None, metadata={"help": "checkpoint of the backbone" + _OVERRIDE}
    )
    no_memory: bool = field(default=False, metadata={"help": "evaluate without a memory bank"})
    memory_size: Optional[int] = field(
        default=None, metadata={"help": "tokens a memory bank holds" + _OVERRIDE}
    )
    chunk_size: Optional[int] = field(
        default=None, metadata={"help": "tokens per chunk" + _OVERRIDE}
    )
    k: Optional[int] = field(
        default=None, metadata={"help": "tokens retrieved per query and head" + _OVERRIDE}
    )
    memory_scope: Optional[MEMORY_SCOPE_CHOICES] = field(
        default=None, metadata={"help": "one bank per stream or per batch" + _OVERRIDE}
    )
    memory_heads: Optional[MEMORY_HEADS_CHOICES] = field(
        default=None,
        metadata={"help": "whether heads that share keys retrieve together" + _OVERRIDE},
    )
    memory_distance: Optional[int] = field(
        default=None,
        metadata={"help": "how many tokens back retrieved ones count (rotary)" + _OVERRIDE},
    )
    memory_index: Optional[str] = field(
        default=None, metadata={"help": "how the bank is searched" + _OVERRIDE}
    )
    memory_index_parameters: Optional[str] = field(
        default=None, metadata={"help": "of an approximate --memory-index" + _OVERRIDE}
    )
    memory_dtype: Optional[MEMORY_DTYPE_CHOICES] = field(
        default=None, metadata={"help": "type of the cached keys and values" + _OVERRIDE}
    )
    memory_storage: Optional[MEMORY_STORAGE_CHOICES] = field(
        default=None, metadata={"help": "where keys and values are cached" + _OVERRIDE}
    )
    memory_dir: Optional[str] = field(
        default=None, metadata={"help": "folder for --memory-storage disk" + _OVERRIDE}
    )
    memory_shards: Optional[int] = field(
        default=None,
        metadata={"help": "split the bank over so many processes, all there are" + _OVERRIDE},
    )
    backbone_dtype: Optional[BACKBONE_DTYPE_CHOICES] = field(
        default=None, metadata={"help": "how the frozen backbone is stored" + _OVERRIDE}
    )
    compute_dtype: Optional[COMPUTE_DTYPE_CHOICES] = field(
        default=None, metadata={"help": "type of the matrix products" + _OVERRIDE}
    )


MODEL_OPTIONS = tuple(option.name for option in fields(ModelOptions) if option.name != "_name")


def given_options(options: Any) -> Dict[str, Any]:
    """Those of MODEL_OPTIONS that were given, by name: they replace the checkpoint's.

    Args:
        options: a command line that was parsed, or a configuration
    """
    values = {name: getattr(options, name) for name in MODEL_OPTIONS}
    # 0 was given, as in --memory-size 0, although it equals False
    return {
        name: value for name, value in values.items() if value is not None and value is not False
    }


@dataclass
class LongMemLanguageModelingConfig(ModelOptions):
    data: str = field(
        default=MISSING, metadata={"help": "folder made by preprocess/prepare_corpus.py"}
    )
    tokens_per_sample: int = field(
        default=1024, metadata={"help": "tokens of a segment, the model's local window"}
    )
    stream_span: int = field(
        default=0,
        metadata={
            "help": "in training, segments that a stream reads from a random place of a document "
            "before it jumps to another; 0: whole documents"
        },
    )
    no_save_memory: bool = field(
        default=False,
        metadata={
            "help": "neither write the training streams' memory beside the checkpoints nor read it: "
            "takes no room, but a run resumed in the middle of an epoch goes on with an empty memory"
        },
    )
    memory: Optional[str] = field(
        default=None,
        metadata={
            "help": "memory file that fairseq-interactive and fairseq-generate start from (default: an "
            "empty memory)"
        },
    )
    prefix_size: int = II("generation.prefix_size")
    train_subset: str = II("dataset.train_subset")


def check_command(cfg: FairseqConfig) -> None:
    """Raises ValueError for what fairseq's commands offer and these models do not have.

    That is before fairseq acts on it: for --bf16 it looks for a TPU, and where the package for
    --write-checkpoints-asynchronously is missing it ends as if it had trained.
    """
    common, distributed = cfg.common, cfg.distributed_training
    # Residuals and norms are float32 here. And where --amp overflows, fairseq's trainer reads the same
    # batch again, which would then be in the memory already.
    for option, given in (("--fp16", common.fp16), ("--bf16", common.bf16), ("--amp", common.amp)):
        if given:
            raise ValueError(
                f"{option} is not supported: leave it out, and choose the type of the matrix products "
                "with --compute-dtype"
            )
    if distributed.ddp_backend not in ("pytorch_ddp", "c10d", "legacy_ddp", "no_c10d"):
        raise ValueError(
            f"--ddp-backend ({distributed.ddp_backend}) is not supported: choose pytorch_ddp, or on a "
            "CPU legacy_ddp; --zero-sharding os shards the optimizer's state"
        )
    if distributed.pipeline_model_parallel:
        raise ValueError(
            "--pipeline-model-parallel is not supported: every process holds the whole model"
        )
    if distributed.zero_sharding == "os" and find_spec("fairscale") is None:
        raise ValueError("--zero-sharding (os) needs fairscale: pip install fairscale")
    for option, given in (
        ("--tpu", common.tpu),
        ("--use-bmuf", cfg.optimization.use_bmuf),
        ("--write-checkpoints-asynchronously", cfg.checkpoint.write_checkpoints_asynchronously),
    ):
        if given:
            raise ValueError(f"{option} is not supported: leave it out")
