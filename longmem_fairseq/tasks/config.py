"""Options of the task."""

from dataclasses import Field, dataclass, field, fields, make_dataclass
from importlib.util import find_spec
from typing import Any, Dict, Optional, Tuple

from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.configs import FairseqConfig
from omegaconf import II, MISSING

from longmem_fairseq.models.longmem_config import LongMemConfig

TASK = "longmem_language_modeling"
# options of the models, where their help is
MODEL_OPTIONS = (
    "pretrained_model_path",
    "no_memory",
    "memory_size",
    "chunk_size",
    "k",
    "memory_search",
    "search_layer",
    "search_dim",
    "pointer",
    "pointer_bias",
    "memory_scope",
    "memory_heads",
    "memory_distance",
    "memory_index",
    "memory_index_parameters",
    "memory_dtype",
    "memory_storage",
    "memory_dir",
    "memory_shards",
    "backbone_dtype",
    "compute_dtype",
)


def _task_option(option: Field) -> Tuple[str, Any, Any]:
    """An option of the models as one of the task: None, unless it is a switch."""
    if option.type is bool:
        return option.name, bool, field(default=option.default, metadata=option.metadata)
    words = option.metadata["help"] + " (default when evaluating: as the checkpoint was trained)"
    return option.name, Optional[option.type], field(default=None, metadata={"help": words})


_OPTIONS = {option.name: option for option in fields(LongMemConfig)}
# The task has options of the model too, because fairseq-eval-lm reads the task's and takes the
# model's from the checkpoint. None leaves the checkpoint's value.
ModelOptions = make_dataclass(
    "ModelOptions",
    [_task_option(_OPTIONS[name]) for name in MODEL_OPTIONS],
    bases=(FairseqDataclass,),
    namespace={"__module__": __name__},
)


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
    """The options of the task, those of the model among them."""

    data: str = field(
        default=MISSING, metadata={"help": "folder made by preprocess/prepare_corpus.py"}
    )
    tokens_per_sample: int = field(
        default=1024, metadata={"help": "tokens of a segment, the model's local window"}
    )
    segment_overlap: int = field(
        default=0,
        metadata={
            "help": "tokens with which a segment begins that the segment before has too: as context "
            "alone, neither predicted nor memorized again. A segment then predicts so many fewer than "
            "--tokens-per-sample"
        },
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
    """Raises ValueError for options of fairseq's commands that these models do not have.

    That is before fairseq acts on them: for --bf16 it looks for a TPU, and where the package for
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
