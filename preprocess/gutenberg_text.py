"""The text of a Project Gutenberg file: without header, footer and hard line wraps."""

import re
from typing import List, Optional

# "*** START OF THE PROJECT GUTENBERG EBOOK MOBY DICK ***", whose title may go on on the next line; the
# older "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*"
START = re.compile(
    r"^[ ]*\*{3}\s*START OF (?:THE|THIS) PROJECT GUTENBERG E-?(?:BOOK|TEXT)[^*]*(?:\*{3})?.*$"
    r"|^\*END\*?\s*THE SMALL PRINT!.*$",
    re.MULTILINE | re.IGNORECASE,
)
END = re.compile(
    r"^[ ]*\*{3}\s*END OF (?:THE|THIS) PROJECT GUTENBERG E-?(?:BOOK|TEXT)"
    r"|^[ ]*End of (?:the |this )?Project Gutenberg",
    re.MULTILINE | re.IGNORECASE,
)
CREDITS = re.compile(
    r"\A(?:E-?text prepared|Produced|Transcribed|This e-?(?:text|book) was (?:produced|prepared)) by\b",
    re.IGNORECASE,
)
TYPEWRITER = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2014": "--"}
)
NARROWEST = 66  # columns of wrapped prose; where all lines are shorter, it is verse
SLACK = 10  # columns by which a line of wrapped prose may be shorter than its words allow


def strip_boilerplate(text: str) -> Optional[str]:
    """The text between Gutenberg's header and footer; None where there is no header.

    The credits of those who transcribed the book, which open many texts, go too.
    """
    starts = list(START.finditer(text))
    if not starts:
        return None
    text = text[starts[-1].end() :]  # old files have the small print and a START line
    end = END.search(text)
    text = text[: end.start()] if end else text
    text = text.strip()
    if CREDITS.match(text):
        text = text.partition("\n\n")[2].lstrip("\n")
    return text


def wrap_column(text: str) -> int:
    """The column at which the lines of a text are wrapped, as far as they tell."""
    lengths = sorted(len(line) for line in text.split("\n") if line.strip())
    # the longest lines of wrapped prose end there, a few tables beyond it
    return max([NARROWEST, *lengths[int(0.95 * len(lengths)) :][:1]])


def unwrap(text: str, column: Optional[int] = None) -> str:
    """One paragraph a line, blank lines between paragraphs, single spaces between words.

    A line break is a wrap if the first word of the next line would not have fit. Others (verse, lists,
    title pages) stay, and so do those before or after an indented line, which keeps its indentation.

    Args:
        column: see :func:`wrap_column`; of the whole book where *text* is a piece of it
    """
    text = text.replace("\r\n", "\n")
    column = wrap_column(text) if column is None else column
    paragraphs = [p for p in re.split(r"\n[ \t]*\n", text) if p.strip()]
    return "\n\n".join(_unwrapped(p.split("\n"), column) for p in paragraphs)


def _unwrapped(lines: List[str], column: int) -> str:
    lines = [line.rstrip() for line in lines if line.strip()]
    joined = [_squeezed(lines[0])]
    for before, line in zip(lines, lines[1:], strict=False):
        is_full = len(before) + 1 + len(line.split()[0]) > column - SLACK
        if not is_full or line.startswith("  ") or before.startswith("  "):
            joined.append(_squeezed(line))
        else:
            # a word that ends in a hyphen or a dash goes on without a space
            joined[-1] += ("" if before.endswith("-") else " ") + _squeezed(line).lstrip()
    return "\n".join(joined) if len(joined) > 1 else joined[0].strip()


def _squeezed(line: str) -> str:
    indentation = line[: len(line) - len(line.lstrip())]
    return indentation + " ".join(line.split())


def with_ascii_punctuation(text: str) -> str:
    """Quotes, apostrophes and dashes as most of Gutenberg has them."""
    return text.translate(TYPEWRITER)
