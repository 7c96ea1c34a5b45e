"""Writes a page that shows the effect of memory on a text, token by token.

    longmem-inspect runs/quickstart/longmem chapter.txt --memory documents.memory --output page.html

The page needs no network. It shows by how much memory made every token more or less likely, and the
passages that each head read to predict it.
"""

import json
from pathlib import Path

from longmem_fairseq.commands.options import (
    check_writable,
    load_model,
    make_parser,
    parse,
    read_texts,
)
from longmem_fairseq.utils.cli import check_positive, counted, run


def main() -> None:
    """Runs the command line of the process."""
    parser = make_parser(__doc__)
    add = parser.add_argument_group("inspection").add_argument
    add("--output", required=True, help="page to write, as page.html")
    add("--max-tokens", type=int, default=2000, help="of the text, from its start (default: 2000)")
    add("--per-head", type=int, default=3, help="passages to show for each head (default: 3)")
    args = parse(parser)
    check_positive(args, "max_tokens", "per_head")
    check_writable("--output", args.output)
    texts = read_texts(args)
    if len(texts) > 1:
        raise ValueError(f"{len(texts)} texts: give one to inspect, the others to longmem-memorize")
    ((name, text),) = texts
    from longmem_fairseq.inspector import inspect_text, make_page

    lm = load_model(args)
    read = lm.tokenizer.indices(text, args.special_tokens)[: args.max_tokens]
    text = lm.tokenizer.decode(read, args.special_tokens)
    inspection = inspect_text(lm, text, args.per_head, True, args.special_tokens)
    bank = lm.memory.single_bank(lm.device)
    documents, held = len(bank.sources[0]), len(bank.held(0))
    memory = f"Memorized before: {counted(documents, 'document')}; {counted(held, 'token')} held."
    page = make_page(inspection, Path(name).name, memory)
    Path(args.output).write_text(page, encoding="utf-8")
    tokens, gain = len(inspection.gain), float(inspection.gain.mean())
    if args.json:
        print(json.dumps({"page": args.output, "tokens": tokens, "gain": gain}))
    else:
        print(f"{args.output}: {tokens:,} tokens, to which memory gave {gain:+.3f} nats each")


def cli() -> None:
    """The console script longmem-inspect."""
    run(main)
