"""--memory-shards: the same perplexity, text and passages from several processes as from one."""

import os
import shutil
import sys

import pytest
import torch
import torch.distributed as dist
from fairseq_cli import eval_lm

from longmem_fairseq import LongMem
from longmem_fairseq.fairseq_patches import processes
from longmem_fairseq.tasks import LongMemLanguageModelingTask
from longmem_fairseq.tasks.longmem_language_modeling import LongMemLanguageModelingConfig
from tests.helpers.model_folders import story
from tests.helpers.shard_processes import run


def read_alone_and_together(folder, model):
    """Everything that reads or writes memory, with a bank of its own and with a part of one."""
    message = r"memory_shards \(4\) must be the number of processes \(--distributed-world-size 2\)"
    with pytest.raises(ValueError, match=message):
        LongMem.from_pretrained(model, memory_shards=4)
    alone = LongMem.from_pretrained(model)
    together = LongMem.from_pretrained(model, memory_shards=dist.get_world_size())
    text, prompt = story(60, seed=5), story(20, seed=6)
    for lm in (alone, together):
        lm.memorize([story(50, seed=3), story(30, seed=4)], names=["one", "two"], progress=False)
    scores = [lm.score(text).log_probs.tolist() for lm in (alone, together)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)
    assert scores[0] != pytest.approx(alone.score(text, memory=False).log_probs.tolist(), abs=1e-5)
    for beam in (1, 3):
        texts = [lm.generate(prompt, max_new_tokens=10, beam=beam) for lm in (alone, together)]
        assert texts[0] == texts[1]
    passages = [[t.passages for t in lm.retrieved(text, per_head=2)] for lm in (alone, together)]
    for found, expected in zip(*passages, strict=True):
        # not where they stand: which of two chunks with the same keys is found is open
        assert [(p.head, p.text) for p in found] == [(p.head, p.text) for p in expected]
        assert [p.weight for p in found] == pytest.approx([p.weight for p in expected], abs=1e-6)
    together.save_memory(folder / "memory")
    alone.load_memory(folder / "memory")
    together.forget()
    together.load_memory(folder / "memory", memory_map=True)
    assert together.score(text).log_probs.tolist() == pytest.approx(scores[0], abs=1e-5)
    assert alone.score(text).log_probs.tolist() == pytest.approx(scores[0], abs=1e-5)


def test_hub(models, tmp_path):
    run(2, read_alone_and_together, tmp_path, models["longmem"])


def evaluate(folder, root, model, options):
    """fairseq-eval-lm in every process; leaves what each printed in *folder*."""
    rank, world = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    command = (
        f"eval-lm {model.parent / 'data'} --path {model}/checkpoint_last.pt --gen-subset test "
    )
    command += f"--user-dir {root / 'longmem_fairseq'} --task longmem_language_modeling --cpu "
    command += f"--tokens-per-sample 16 --batch-size 1 --num-workers 0 {options}"
    if world > 1:
        command += f" --distributed-world-size {world} --distributed-rank {rank} "
        command += f"--distributed-init-method file://{folder}/fairseq-{world} "
        command += "--distributed-no-spawn --distributed-backend gloo"
    sys.argv = command.split()

    def recording(evaluate):
        def recorded(*arguments, **keywords):
            results = evaluate(*arguments, **keywords)
            (folder / f"{rank}-of-{world}").write_text(str(float(results["loss"])))
            return results

        return recorded

    eval_lm.eval_lm = recording(eval_lm.eval_lm)
    processes.eval_lm_of_ranks = recording(processes.eval_lm_of_ranks)
    os.chdir(root)
    eval_lm.cli_main()
    again = f"file://{folder}/again-{world}"
    dist.init_process_group("gloo", init_method=again, rank=rank, world_size=world)


def test_eval_lm(models, root, tmp_path):
    """Every process reads everything."""
    losses = {}
    for world, options in ((1, ""), (2, "--memory-shards 2"), (1, "--no-memory")):
        folder = tmp_path / str(len(losses))
        folder.mkdir()
        run(world, evaluate, folder, root, models["longmem"], options)
        losses[options] = [float(path.read_text()) for path in folder.glob("*-of-*")]
    (one,), both, (without,) = losses.values()
    assert both == pytest.approx([one, one], rel=1e-6)
    assert without != pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"memory_shards": 0}, "--memory-shards (0) must be at least 1"),
        (
            {"memory_shards": 3},
            "--memory-size (64) must be a multiple of --chunk-size (2) times --memory-shards (3)",
        ),
        (
            {"memory_shards": 2},
            "--memory-shards (2) needs as many processes: torchrun --nproc-per-node 2 with "
            "fairseq-eval-lm, or with torch.distributed.init_process_group in Python",
        ),
    ],
)
def test_what_cannot_be_split(options, message, build):
    with pytest.raises(ValueError) as error:
        build(**options)
    assert str(error.value) == message


def test_training_has_banks_of_its_own(task):
    cfg = LongMemLanguageModelingConfig(data=task.cfg.data, memory_shards=2)
    sharded = LongMemLanguageModelingTask(cfg)
    sharded.datasets["train"] = documents = [1]
    with pytest.raises(ValueError, match=r"--memory-shards \(2\) is for evaluation and generation"):
        sharded.get_batch_iterator(documents, max_sentences=1)


def test_a_checkpoint_that_is_older_than_an_option(models, tmp_path):
    """It says nothing of --memory-storage, say: it can be given all the same."""
    model = shutil.copytree(models["longmem"], tmp_path / "model")
    state = torch.load(model / "checkpoint_last.pt")
    del state["cfg"]["model"]["memory_storage"]
    torch.save(state, model / "checkpoint_last.pt")
    lm = LongMem.from_pretrained(model, memory_storage="host")
    assert lm.memory.options["storage"] == "host"
    assert LongMem.from_pretrained(model).memory.options["storage"] == "device"
