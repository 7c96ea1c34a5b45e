"""What the paper reports (arXiv 2306.07174), to stand beside what we measure.

Its models have 407M parameters (558M with the SideNet) and read many billions of tokens: absolute
numbers do not carry over to another tokenizer, corpus or size. Compare ratios and directions.
docs/reproducing.md says which of these numbers were checked against a second source.
"""

BACKBONE, LONGMEM = "paper: GPT-2*", "paper: LongMem"

# PG-22, perplexity per token by length of the book; the first token of each bucket
BOOKS = {
    BACKBONE: {5_000: 22.78, 10_000: 24.39, 100_000: 24.12, 500_000: 24.97, 1_000_000: 18.07},
    LONGMEM: {5_000: 21.29, 10_000: 23.01, 100_000: 22.55, 500_000: 23.35, 1_000_000: 16.71},
}
ARXIV = {BACKBONE: 11.05, LONGMEM: 10.05}  # perplexity per token
# accuracy (%) by tokens of context; GPT-3 is the best of the models without training for long contexts
CHAPTERBREAK_AO3 = {
    LONGMEM: {4096: 37.7, 6144: 39.4, 8192: 40.5},
    "paper: GPT-3": {8192: 28.0},
}
# mean accuracy (%) of the five tasks, 20 demonstrations in context; LongMem has 2,000 in memory
ICL_20_SHOTS = {BACKBONE: 58.7, LONGMEM: 66.7}
# exact match and F1 (%), 3 demonstrations in context; LongMem has 200 in memory
SQUAD = {BACKBONE: (22.28, 30.78), LONGMEM: (26.77, 35.70)}
# tokens/s and GB of one GPU by tokens of context
EFFICIENCY = {
    BACKBONE: {4096: (14_666, 20.7), 8192: (8_417, 54.2)},
    LONGMEM: {4096: (22_638, 13.3), 8192: (21_343, 13.4)},
}
