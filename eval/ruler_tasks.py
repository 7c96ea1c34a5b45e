"""RULER's thirteen tasks (Hsieh et al. 2024, arXiv 2404.06654): prompts, token budgets, and score.

Templates and budgets are those of github.com/NVIDIA/RULER (Apache License 2.0). The question, with the
beginning of its answer, is the last line of every prompt.
"""

from typing import Dict, List, NamedTuple, Sequence


class Prompt(NamedTuple):
    """A family's templates, and how many tokens its answers have at most.

    Both templates are filled with {context}, {query}, {kind} and {count}, as far as they name them.
    """

    template: str
    answer_prefix: str
    max_new_tokens: int


_NIAH = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. I will "
    "quiz you about the {kind} afterwards.\n{context}\nWhat are all the special magic {kind} for "
    "{query} mentioned in the provided text?"
)
_NIAH_ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. I will "
    "quiz you about the {kind} afterwards.\n{context}\nWhat is the special magic {kind} for "
    "{query} mentioned in the provided text?"
)
_ANSWER_ONLY = (
    "Answer the question based on the given documents. Only give me the answer and do not output any "
    "other words."
)

PROMPTS: Dict[str, Prompt] = {
    "niah": Prompt(
        _NIAH, " The special magic {kind} for {query} mentioned in the provided text are", 128
    ),
    # of one value; kind is singular
    "niah_one": Prompt(
        _NIAH_ONE, " The special magic {kind} for {query} mentioned in the provided text is", 128
    ),
    "vt": Prompt(
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
        "{context}\nQuestion: Find all variables that are assigned the value {query} in the text "
        "above.",
        " Answer: According to the chain(s) of variable assignment in the text above, {count} "
        "variables are assigned the value {query}, they are: ",
        30,
    ),
    "cwe": Prompt(
        "Below is a numbered list of words. In these words, some appear more often than others. "
        "Memorize the ones that appear most often.\n{context}\nQuestion: What are the 10 most common "
        "words in the above list?",
        " Answer: The top 10 words that appear most often in the list are:",
        120,
    ),
    "fwe": Prompt(
        "Read the following coded text and track the frequency of each coded word. Find the three most "
        "frequently appeared coded words. {context}\nQuestion: Do not provide any explanation. Please "
        "ignore the dots '....'. What are the three most frequently appeared words in the above coded "
        "text?",
        " Answer: According to the coded text above, the three most frequently appeared words are:",
        50,
    ),
    "qa": Prompt(
        f"{_ANSWER_ONLY}\n\nThe following are given documents.\n\n{{context}}\n\n{_ANSWER_ONLY}\n\n"
        "Question: {query}",
        " Answer:",
        32,
    ),
}

TASKS = (
    *("niah_single_1", "niah_single_2", "niah_single_3"),
    *("niah_multikey_1", "niah_multikey_2", "niah_multikey_3"),
    *("niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2"),
)


def max_new_tokens(task: str) -> int:
    """The token budget of a task's answers."""
    return PROMPTS[task.split("_")[0]].max_new_tokens


def score(task: str, prediction: str, references: Sequence[str]) -> float:
    """The share of references that the prediction contains, whatever their case; for question
    answering, whether it contains any of them. RULER's string_match_all and string_match_part."""
    contained: List[bool] = [text.lower() in prediction.lower() for text in references]
    if task.startswith("qa"):
        return float(any(contained))
    return sum(contained) / len(contained)
