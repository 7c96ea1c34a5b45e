"""RULER's tasks: scores by hand, budgets of answers, and prompts."""

import pytest

from eval.ruler_tasks import PROMPTS, TASKS, max_new_tokens, score


@pytest.mark.parametrize(
    "task, answer, references, expected",
    [
        ("niah_single_1", " 1234567.", ["1234567"], 1),
        ("niah_single_1", " 123456", ["1234567"], 0),
        ("niah_single_1", " 91234567", ["1234567"], 1),  # contained, as in RULER
        ("niah_multivalue", "a 1111111 and 2222222", ["1111111", "2222222", "3", "4444444"], 0.5),
        ("niah_single_3", "ABCD-01", ["abcd-01"], 1),
        ("vt", "AAAAA BBBBB", ["AAAAA", "BBBBB", "CCCCC", "DDDDD", "EEEEE"], 0.4),
        ("qa_1", "the Denver Broncos", ["broncos", "Denver"], 1),
        ("qa_1", "Carolina", ["Broncos", "Denver"], 0),
    ],
)
def test_ruler_scores_by_hand(task, answer, references, expected):
    assert score(task, answer, references) == expected


def test_budgets():
    expected = dict.fromkeys(TASKS, 128) | {"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}
    assert {task: max_new_tokens(task) for task in TASKS} == expected


def test_the_last_line_of_every_prompt_is_its_question():
    fields = {"context": "a\nb", "query": "q", "kind": "number", "count": 5}
    for family, prompt in PROMPTS.items():
        whole = prompt.template.format(**fields) + prompt.answer_prefix.format(**fields)
        question = whole.rpartition("\n")[2]
        assert question.startswith(("What ", "Question: ")) and whole.count(question) == 1, family
