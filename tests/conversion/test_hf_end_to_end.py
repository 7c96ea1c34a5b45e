"""From a Hugging Face model to a LongMem on it: convert, prepare, adapt, evaluate."""

import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("tokenizers", reason="needs the extra hf")

from fairseq_cli import eval_lm, train  # noqa: E402
from tokenizers.processors import TemplateProcessing  # noqa: E402

from eval.common.stream_scoring import load_model  # noqa: E402
from longmem_fairseq import LongMem  # noqa: E402
from longmem_fairseq.commands import (
    convert,  # noqa: E402
    generate,  # noqa: E402
    prepare,  # noqa: E402
)
from longmem_fairseq.models.checkpoints import fingerprint  # noqa: E402
from longmem_fairseq.tasks import LongMemLanguageModelingTask  # noqa: E402
from longmem_fairseq.tasks.config import LongMemLanguageModelingConfig  # noqa: E402
from tests.helpers.documents import Documents  # noqa: E402
from tests.helpers.hf_models import make_model, transformers  # noqa: E402
from tests.helpers.hf_tokenizers import PAGE, make_tokenizer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")

SEGMENT = 16
TOKENIZERS = {"gpt2": "gpt2", "llama": "llama2", "gemma3": "gemma", "qwen2": "llama3"}


@pytest.fixture
def converted(request, tmp_path):
    """Folders of a backbone and of a corpus in its own tokens."""
    name = request.param
    tokenizer = make_tokenizer(TOKENIZERS[name])
    changes = {"vocab_size": tokenizer.get_vocab_size() + 3, "bos_token_id": 1, "eos_token_id": 2}
    make_model(name, tmp_path / "hf", tokenizer, **changes)
    backbone, data, text = tmp_path / "backbone", tmp_path / "data", tmp_path / "text"
    convert.main(["--model", str(tmp_path / "hf"), "--dest", str(backbone)])
    for split, documents in (("train", 4), ("valid", 1), ("test", 2)):
        (text / split).mkdir(parents=True)
        for number in range(documents):
            page = f"{split} {number} {PAGE}" * (number + 1)
            page = page.replace("e\u0301", "e").replace("\0", "")
            (text / split / f"{number}.txt").write_bytes(page.encode())
    arguments = ["--source", text, "--dest", data, "--vocabulary", backbone]
    prepare.main([str(argument) for argument in arguments])
    return backbone, data


def train_longmem(root, backbone, data, save_dir, monkeypatch):
    """The options of train_scripts/train_longmem.sh."""
    arguments = [
        *("fairseq-train", str(data), "--user-dir", str(root / "longmem_fairseq"), "--cpu"),
        *("--task", "longmem_language_modeling", "--criterion", "longmem_cross_entropy"),
        *("--save-dir", str(save_dir), "--arch", "longmem", "--sidenet-init", "identity"),
        *("--pretrained-model-path", str(backbone / "checkpoint.pt"), "--chunk-size", "2"),
        *("--retrieval-layer-index", "3", "--memory-size", "64", "--k", "8", "--lr", "1e-3"),
        *("--tokens-per-sample", str(SEGMENT), "--stream-span", "4", "--batch-size", "3"),
        *("--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--clip-norm", "1.0"),
        *("--max-update", "4", "--no-epoch-checkpoints", "--disable-validation"),
        *("--num-workers", "0", "--gate-lr-multiplier", "20"),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    train.cli_main()
    for path in data.iterdir():
        if path.name in ("dict.txt", "ids.json", "tokenizer.json"):
            shutil.copy(path, save_dir)


def check_trained(root, backbone, data, save_dir, monkeypatch, caplog):
    state = torch.load(save_dir / "checkpoint_last.pt")
    assert not any(".backbone." in name for name in state["model"])
    weights = torch.load(backbone / "checkpoint.pt")["model"]
    identity = fingerprint({name.removeprefix("decoder."): w for name, w in weights.items()})
    assert torch.equal(state["model"]["decoder.backbone_fingerprint"], identity)
    assert state["model"]["decoder.layers.1.self_attn.memory_bias"].abs().amax() > 0
    arguments = [
        *("fairseq-eval-lm", str(data), "--path", str(save_dir / "checkpoint_last.pt"), "--cpu"),
        *("--user-dir", str(root / "longmem_fairseq"), "--task", "longmem_language_modeling"),
        *("--tokens-per-sample", str(SEGMENT), "--batch-size", "2", "--num-workers", "0"),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    with caplog.at_level(logging.INFO):
        eval_lm.cli_main()
    model, task = load_model(str(save_dir / "checkpoint_last.pt"), str(data), SEGMENT)
    task.load_dataset("test")
    assert f"Evaluated {task.dataset('test').sizes.sum()} tokens" in caplog.text
    return model


@pytest.mark.parametrize("converted", ["gpt2", "qwen2"], indirect=True)
def test_a_converted_backbone_is_adapted_and_evaluated(
    converted, root, tmp_path, monkeypatch, caplog
):
    backbone, data = converted
    train_longmem(root, backbone, data, tmp_path / "longmem", monkeypatch)
    model = check_trained(root, backbone, data, tmp_path / "longmem", monkeypatch, caplog)
    state, tokens = {}, torch.tensor([[2, 7, 9]])
    with torch.no_grad():
        for _ in range(2 * SEGMENT):  # greedy, past the window
            logits = model.decoder(tokens, incremental_state=state)[0][:, -1]
            tokens = torch.cat([tokens, logits.argmax(dim=-1, keepdim=True)], dim=1)
    assert (tokens[0, 3:] >= 2).all()  # never a special symbol that the model does not have


@pytest.mark.parametrize("converted", ["qwen2"], indirect=True)
def test_the_hub_interface_speaks_the_checkpoints_own_ids(converted, tmp_path):
    original = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ids = torch.randint(original.config.vocab_size, (2, SEGMENT))
    lm = LongMem.from_pretrained(converted[0], tokens_per_sample=SEGMENT)
    with torch.no_grad():
        assert_close(lm.logits(ids), original(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name, adds", [("llama", True), ("gemma3", True), ("qwen2", False)])
def test_a_text_begins_as_with_the_models_own_tokenizer(name, adds, tmp_path):
    """With its beginning-of-text token where it adds one; else with what ends the document before."""
    tokenizer = make_tokenizer(TOKENIZERS[name])
    if adds:
        tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    changes = {"vocab_size": tokenizer.get_vocab_size(), "bos_token_id": 1, "eos_token_id": 2}
    original = make_model(name, tmp_path / "hf", tokenizer, **changes)
    folder, text = tmp_path / "backbone", "the best mat of all worlds"
    convert.main(["--model", str(tmp_path / "hf"), "--dest", str(folder)])
    own = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "hf")(text)["input_ids"]
    ids = torch.tensor([own if adds else [2, *own]])
    assert ids[0, 0] == (1 if adds else 2)
    with torch.no_grad():
        expected = original(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    lm = LongMem.from_pretrained(folder, tokens_per_sample=64)
    assert_close(lm.score(text).log_probs, expected, atol=1e-4, rtol=1e-4)
    task = LongMemLanguageModelingTask(LongMemLanguageModelingConfig(data=str(folder)))
    first = task.eval_lm_dataloader(Documents([5]), batch_size=1)
    assert next(first)["net_input"]["src_tokens"][0, 0] == lm.tokenizer.to_dictionary[ids[0, 0]]


def test_a_model_without_a_tokenizer_takes_ids_and_no_texts(tmp_path, monkeypatch, capsys):
    original = make_model("qwen2", tmp_path / "hf")
    folder = tmp_path / "backbone"
    arguments = ["--model", str(tmp_path / "hf"), "--dest", str(folder), "--no-tokenizer"]
    convert.main(arguments)
    lm = LongMem.from_pretrained(folder, tokens_per_sample=SEGMENT)
    ids = torch.randint(original.config.vocab_size, (2, SEGMENT))
    with torch.no_grad():
        assert_close(lm.logits(ids), original(ids).logits, atol=1e-4, rtol=1e-4)
    message = (
        f"{folder} has no tokenizer (no_tokenizer left it out): give token ids to LongMem.logits"
    )
    for use in (lm.score, lm.generate):
        with pytest.raises(ValueError) as error:
            use("a text")
        assert str(error.value).startswith(message) and "\n" not in str(error.value)
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["longmem-generate", str(folder), "--prompt", "a text"])
    with pytest.raises(SystemExit) as exited:
        generate.cli()
    error = capsys.readouterr().err
    assert exited.value.code == 2 and error.count("\n") == 1
    assert error.startswith(
        f"longmem-generate: error: {message.replace('no_tokenizer', '--no-tokenizer')}"
    )


@pytest.mark.parametrize("converted", ["qwen2"], indirect=True)
def test_what_heads_of_a_group_read(converted, root, tmp_path, monkeypatch):
    """Four heads, two of them for each key/value head."""
    train_longmem(root, *converted, tmp_path / "longmem", monkeypatch)
    lm = LongMem.from_pretrained(tmp_path / "longmem")
    lm.memorize(PAGE, names="page", progress=False)
    text = PAGE[:20]
    before = lm.score(text)
    tokens = lm.retrieved(text)
    assert "".join(token.token for token in tokens) == "".join(before.tokens)
    for token in tokens:
        assert {passage.head for passage in token.passages} == {0, 1, 2, 3}
        for head in range(4):
            weights = [p.weight for p in token.passages if p.head == head]
            assert sum(weights) == pytest.approx(1, abs=1e-4)
    assert lm.generate(text, max_new_tokens=3) == lm.generate(text, max_new_tokens=3)
    # how memory is read may be another than in training: no weight depends on it
    options = {"memory_heads": "shared", "memory_distance": 20}
    other = LongMem.from_pretrained(tmp_path / "longmem", **options)
    attention = other.decoder.layers[1].self_attn
    assert {name: getattr(attention, name) for name in options} == options
    other.memorize(PAGE, names="page", progress=False)
    assert not torch.equal(other.score(text).log_probs, before.log_probs)


@pytest.mark.slow
@pytest.mark.parametrize("converted", ["llama"], indirect=True)
def test_by_the_script(converted, root, tmp_path, monkeypatch, caplog):
    backbone, data = converted
    save_dir = tmp_path / "longmem"
    settings = {
        **{"DATA_DIR": data, "BACKBONE": backbone / "checkpoint.pt", "SAVE_DIR": save_dir},
        **{"UPDATES": 3, "BATCH_SIZE": 3, "TOKENS_PER_SAMPLE": SEGMENT},
        **{"RETRIEVAL_LAYER_INDEX": 3, "COMPUTE_DTYPE": "float32"},
    }
    env = {**os.environ, **{name: str(value) for name, value in settings.items()}}
    env["PATH"] = os.path.dirname(sys.executable) + os.pathsep + env["PATH"]
    env["PYTHONPATH"] = str(root)
    script = str(root / "train_scripts" / "train_longmem.sh")
    command = ["bash", script, "--cpu", "--num-workers", "0", "--warmup-updates", "1"]
    command += ["--memory-size", "64", "--k", "8"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (save_dir / "tokenizer.json").is_file() and (save_dir / "ids.json").is_file()
    check_trained(root, backbone, data, save_dir, monkeypatch, caplog)
