"""The model ``longmem`` of lm-evaluation-harness on local tasks, against the harness's own ``hf``."""

import json
import os
import sys
from functools import partial

import pytest
import torch

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")  # before datasets is imported

from tokenizers.processors import TemplateProcessing  # noqa: E402

from tests.helpers.hf_models import make_model, transformers  # noqa: E402
from tests.helpers.hf_tokenizers import PAGE, make_tokenizer  # noqa: E402
from tests.helpers.model_folders import DOCUMENTS, assert_same_memory, memory_state  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

WINDOW = 32
TEXT = PAGE  # which spells out a special token
QUESTIONS = [
    {"question": "the cat sat on", "choices": ["the mat", "the best", "a  worlds  "], "answer": 0},
    {"question": "in the best of ", "choices": ["worlds", "return x"], "answer": 1},
    {"question": TEXT * 2, "choices": ["the mat", "return y", "caf\u00e9"], "answer": 2},
]
PAGES = [{"page": "the cat sat"}, {"page": TEXT}, {"page": "in the best of all worlds " * 20}]
CHOICE = """\
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
target_delimiter: " "
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
PERPLEXITY = """\
task: local_pages
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/pages.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: page
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""
ANSWER = """\
task: local_answer
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["e"], max_gen_toks: 7, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
TASKS = ["local_choice", "local_pages", "local_answer"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of tasks for --include_path."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, lines in (("questions", QUESTIONS), ("pages", PAGES)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    for name, text in zip(TASKS, (CHOICE, PERPLEXITY, ANSWER), strict=True):
        (folder / f"{name}.yaml").write_text(text.format(folder=folder))
    return folder


def evaluated(model, tasks, names=TASKS):
    """Scores by task, and what the model answered to every request."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    results = lm_eval.simple_evaluate(
        model, tasks=names, task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    answers = {
        name: [sample["filtered_resps"] for sample in sorted(samples, key=lambda s: s["doc_id"])]
        for name, samples in results["samples"].items()
    }
    return results["results"], answers


def harness_model(folder, **options):
    from longmem_fairseq.harness.model import LongMemHarness

    return LongMemHarness(str(folder), **options)


def assert_close(found, expected):
    """Texts and flags are the same, and numbers to 1e-3."""
    pairs = list(zip(numbers(found), numbers(expected), strict=True))
    assert pairs
    for value, wanted in pairs:
        exact = isinstance(wanted, (str, bool))
        assert value == (wanted if exact else pytest.approx(wanted, abs=1e-3))


def numbers(answers):
    """All that a model answered, flat: numbers and texts."""
    if isinstance(answers, (list, tuple)):
        return [number for answer in answers for number in numbers(answer)]
    return [answers]


@pytest.mark.parametrize("begins", [False, True])
def test_the_numbers_are_those_of_hf(tasks, tmp_path, begins):
    """Of the same converted checkpoint, also where the window does not hold the text.

    Args:
        begins: whether its tokenizer puts a token before every text
    """
    from lm_eval.models.huggingface import HFLM

    from longmem_fairseq.commands import convert

    tokenizer = make_tokenizer("llama3")
    if begins:
        start = TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
        tokenizer.post_processor = start
    sizes = {"vocab_size": tokenizer.get_vocab_size() + 3, "max_position_embeddings": 512}
    original = make_model("llama", tmp_path / "hf", tokenizer, **sizes)
    convert.main(
        [
            "--model",
            str(tmp_path / "hf"),
            "--dest",
            str(tmp_path / "backbone"),
            "--search-tokens",
            "0",
        ]
    )
    own = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "hf" / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
    )
    for window in (WINDOW, 512):
        hf = HFLM(original, tokenizer=own, max_length=window, batch_size=2, device="cpu")
        ours = harness_model(tmp_path / "backbone", window=window, batch_size=2)
        assert ours.adds_start == begins and ours.tok_encode(TEXT) == indices(ours, own, TEXT)
        names = list(TASKS)
        if window == WINDOW:
            names.remove("local_answer")  # hf cuts a prompt for room to answer
        if begins:
            names.remove("local_pages")  # hf puts two such tokens before a page
        (expected, answers), (found, own_answers) = (evaluated(m, tasks, names) for m in (hf, ours))
        for name in names:
            for metric, value in expected[name].items():
                if isinstance(value, float):
                    assert found[name][metric] == pytest.approx(value, rel=1e-3), (name, metric)
            assert_close(own_answers[name], answers[name])


def indices(ours, tokenizer, text):
    """The dictionary's indices of the ids that a tokenizer of transformers gives."""
    return [int(ours.lm.tokenizer.to_dictionary[i]) for i in tokenizer(text)["input_ids"]]


def test_requests_start_from_the_memory_and_leave_it(tasks, models, tmp_path):
    from longmem_fairseq import LongMem

    lm = LongMem.from_pretrained(models["longmem"])
    lm.memorize(DOCUMENTS.values(), names=list(DOCUMENTS), progress=False)
    lm.save_memory(tmp_path / "m")
    ours = harness_model(models["longmem"], memory=str(tmp_path / "m"), batch_size=3)
    before = memory_state(ours.lm)
    _, answers = evaluated(ours, tasks)
    assert_same_memory(ours.lm, before)
    _, again = evaluated(harness_model(models["longmem"], memory=str(tmp_path / "m")), tasks)
    for name in TASKS:
        assert_close(answers[name], again[name])
    _, without = evaluated(harness_model(models["longmem"]), tasks)
    assert all(numbers(answers[name]) != numbers(without[name]) for name in TASKS[:2])
    # what the harness is told is what the Python API says
    text, choice = QUESTIONS[0]["question"], " " + QUESTIONS[0]["choices"][0]
    scores = lm.score(text + choice).log_probs
    tokens = len(ours.tok_encode(text + choice)) - len(ours.tok_encode(text))
    ((log_prob, _), *_) = answers["local_choice"][0]
    assert log_prob == pytest.approx(float(scores[-tokens:].sum()), abs=1e-3)
    assert answers["local_answer"][0] == [lm.generate(text, 7, stop="e")]
    assert numbers(answers["local_pages"][0]) == [
        pytest.approx(float(lm.score("the cat sat").log_probs.sum()), abs=1e-3)
    ]


def test_excerpts_are_read_before_every_context(tasks, models, tmp_path):
    """Before a context, not before a whole text."""
    from longmem_fairseq import LongMem
    from longmem_fairseq.api.scoring import Row, score_rows

    lm = LongMem.from_pretrained(models["longmem"])
    lm.memorize(DOCUMENTS.values(), names=list(DOCUMENTS), progress=False)
    lm.save_memory(tmp_path / "m")
    options = {"memory": str(tmp_path / "m"), "batch_size": 2}
    _, plain = evaluated(harness_model(models["longmem"], **options), tasks)
    ours = harness_model(models["longmem"], **options, excerpts=128)
    _, answers = evaluated(ours, tasks)
    for question, answer in zip(QUESTIONS, answers["local_answer"], strict=True):
        assert answer == [lm.generate(question["question"], 7, stop="e", excerpts=128)]
    text, choice = QUESTIONS[0]["question"], " " + QUESTIONS[0]["choices"][0]
    context, both = (torch.tensor(ours.tok_encode(t)) for t in (text, text + choice))
    row = torch.cat([lm.with_excerpts(context, 128), both[len(context) :]])
    assert len(row) > len(both)
    (scores,) = score_rows(lm, [Row(row, len(both) - len(context))])
    ((log_prob, _), *_) = answers["local_choice"][0]
    assert log_prob == pytest.approx(float(scores.log_probs.sum()), abs=1e-3)
    assert_close(answers["local_pages"], plain["local_pages"])


def run(monkeypatch, *arguments):
    """longmem-lm-eval, without reading the thousands of tasks that come with the harness."""
    import lm_eval.tasks

    from longmem_fairseq.commands import lm_eval as command

    manager = partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)
    monkeypatch.setattr(sys, "argv", ["longmem-lm-eval", *map(str, arguments)])
    command.cli()


def test_the_command(tasks, models, tmp_path, monkeypatch, capsys):
    """Options arrive, and a memory gives other numbers."""
    from longmem_fairseq import LongMem

    lm = LongMem.from_pretrained(models["longmem"], k=4)
    lm.memorize(DOCUMENTS["a"], names="a", progress=False)
    lm.save_memory(tmp_path / "m")
    found = []
    for memory in (f",memory={tmp_path / 'm'}", ""):
        arguments = ["--model", "longmem", "--include_path", tasks, "--batch_size", "2"]
        arguments += ["--model_args", f"pretrained={models['longmem']},dtype=float32,k=4{memory}"]
        arguments += ["--tasks", "local_choice", "--output_path", tmp_path / "out.json"]
        arguments += ["--log_samples"]
        run(monkeypatch, *arguments)
        assert "|local_choice|" in capsys.readouterr().out
        (path,) = tmp_path.glob("samples*.jsonl")
        sample = json.loads(path.read_text().splitlines()[0])
        found.append(float(sample["filtered_resps"][0][0]))
        for path in tmp_path.glob("*.json*"):
            path.unlink()
    question = QUESTIONS[0]
    text = question["question"] + " " + question["choices"][0]
    skipped = len(lm.tokenizer.indices(question["question"]))
    for memory, number in zip((True, False), found, strict=True):
        if not memory:
            lm.forget()
        expected = float(lm.score(text).log_probs[skipped:].sum())
        assert number == pytest.approx(expected, abs=1e-3)
    assert abs(found[0] - found[1]) > 2e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("pretrained=nowhere", "nowhere: no such model"),
        ("pretrained={longmem},memory=nowhere", "nowhere: no such memory file"),
        ("pretrained={longmem},window=0", "window (0) must be a whole number, at least 1"),
        (
            "pretrained={longmem},memory_size=x",
            "memory_size (x) must be a whole number, at least 1",
        ),
        ("pretrained={longmem},excerpts=9", "excerpts (9) must be at least 128, tokens of one"),
        ("pretrained={longmem},memory_size=7", "memory_size (7) must be a multiple of"),
        ("pretrained={longmem},dtype=int4", "int4"),
        ("pretrained={longmem},size=3", "size is no option of a model: expected "),
        ("pretrained={backbone},memory=nowhere", "this model has no memory: it is a backbone"),
    ],
)
def test_bad_arguments_are_one_line(tasks, models, monkeypatch, capsys, arguments, message):
    model = arguments.format(**models)
    with pytest.raises(SystemExit) as exited:
        run(
            monkeypatch,
            *("--model", "longmem", "--include_path", tasks, "--tasks", "local_choice"),
            *("--model_args", model),
        )
    assert exited.value.code == 2
    error = [
        line for line in capsys.readouterr().err.splitlines() if "longmem-lm-eval: error" in line
    ]
    assert (
        len(error) == 1 and error[0].startswith("longmem-lm-eval: error: ") and message in error[0]
    )


def test_bad_requests(models):
    model = harness_model(models["longmem"])
    with pytest.raises(ValueError, match=r"best_of is no option of a generation"):
        model._generate(["a"], {"best_of": 3}, mock_bar())
    with pytest.raises(ValueError, match=r"batch_size \(auto\) must be a whole number"):
        harness_model(models["longmem"], batch_size="auto")


def test_a_context_of_spaces_alone(models):
    """The harness moves them to the continuation, and leaves no token before it."""
    ours = harness_model(models["longmem"], add_bos_token=False, excerpts="128")
    assert ours.excerpts == 128
    tokens = ours.tok_encode(" the cat")
    pair = (" ", "the cat")
    found, expected = (
        ours._loglikelihood_tokens([(pair, before, tokens)])
        for before in ([], [ours.prefix_token_id])
    )
    assert found == expected


def mock_bar():
    from tqdm import tqdm

    return tqdm(disable=True)
