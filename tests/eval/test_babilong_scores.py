"""BABILong: scores by hand, and prompts."""

import pytest

from eval.babilong import PROMPTS, TASKS, is_right


@pytest.mark.parametrize(
    "task, answer, question, target, expected",
    [
        (
            "qa1",
            "\nAnswer: The most recent location of Mary is garden.",
            "Where is Mary?",
            "garden",
            True,
        ),
        ("qa1", " GARDEN. Not the kitchen.", "Where is Mary?", "garden", True),
        ("qa1", "garden or kitchen", "Where is Mary?", "garden", False),
        ("qa1", "somewhere", "Where is Mary?", "garden", False),
        (
            "qa3",
            "Before the kitchen it was in the office",
            "Where was it before the kitchen?",
            "office",
            True,
        ),
        ("qa1", "office <example> kitchen", "Where is Mary?", "office", True),
        ("qa5", "Fred", "Who did Mary give the apple to?", "Fred", True),
        ("qa5", "Mary gave the apple to Fred", "Who did Mary give the apple to?", "Fred", True),
        ("qa5", "Bill and Fred", "Who did Mary give the apple to?", "Fred", False),
        ("qa7", "none", "How many objects is Mary carrying?", "none", False),  # "one" is in it
        ("qa8", "milk and apple", "What is Mary carrying?", "apple,milk", True),
        ("qa8", "milk", "What is Mary carrying?", "apple,milk", False),
        ("qa10", "maybe", "Is Mary in the office?", "maybe", True),
    ],
)
def test_scores_by_hand(task, answer, question, target, expected):
    labels = PROMPTS[task]["labels"]
    assert is_right(answer, target, question, labels) == expected


def test_ten_tasks_have_prompts():
    assert TASKS == tuple(f"qa{i}" for i in range(1, 11))
    for task in TASKS:
        head = "\n".join(PROMPTS[task]["head"])
        assert head.count("<example>") == head.count("\nAnswer: ") >= 2 and head.endswith("\n\n")
