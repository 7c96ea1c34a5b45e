"""Reads documents into a memory and saves it.

    longmem-memorize runs/quickstart/longmem 'documents/*.txt' --output documents.memory

Every file is a document of its own, which passages are cited as. With --memory it adds to what was
saved before.
"""

import json

from longmem_fairseq.commands.options import (
    check_output,
    load_model,
    make_parser,
    parse,
    read_texts,
)
from longmem_fairseq.utils.cli import counted, run


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--output", required=True, help="memory file to write")
    args = parse(parser)
    check_output(args.output)
    names, texts = zip(*read_texts(args), strict=True)
    lm = load_model(args)
    tokens = lm.memorize(texts, names, special_tokens=args.special_tokens)
    lm.save_memory(args.output)
    bank = lm.memory.single_bank(lm.device)
    result = {
        "memory": args.output,
        "documents": len(texts),
        "tokens": tokens,
        "held": len(bank.held(0)),
        "memory_size": bank.memory_size,
    }
    if args.json:
        print(json.dumps(result))
    else:
        print(
            f"{args.output}: read {counted(len(texts), 'document')} of {tokens:,} tokens; the memory "
            f"holds {result['held']:,} tokens of at most {bank.memory_size:,}"
        )


def cli() -> None:
    run(main)


if __name__ == "__main__":
    cli()
