"""Fuzzes one format with atheris (libFuzzer, guided by coverage) until a finding or for some seconds.

    PYTHONPATH=. python tests/fuzz/fuzz_format.py memory --seconds 600

A finding ends it with its traceback, and the file that caused it is kept in --findings.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["longmem_fairseq", "eval", "preprocess"]):
    from tests.fuzz.harness import Format, quiet
    from tests.fuzz.mutation import mutate
    from tests.fuzz.targets import TARGETS


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("format", choices=tuple(TARGETS))
    parser.add_argument("--seconds", type=int, default=600, help="how long (default: 600)")
    parser.add_argument("--findings", type=Path, default=Path("findings"), help="folder for files")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    quiet()
    args.findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as corpus:
        found = Format(args.format, Path(scratch))
        if error := found.read(found.good):
            raise SystemExit(f"{args.format}: the good file is refused: {error}")
        (Path(corpus) / "good").write_bytes(found.good)

        def change(content: bytes, most: int, seed: int) -> bytes:
            rng = random.Random(seed)
            if rng.random() < 0.5:
                return atheris.Mutate(content, most)
            return mutate(content or found.good, rng)[:most]

        options = [f"-max_total_time={args.seconds}", "-timeout=60", "-rss_limit_mb=4096"]
        options += [f"-max_len={2 * len(found.good) + 10_000}", "-print_final_stats=1"]
        options += [f"-artifact_prefix={args.findings}/{args.format}-", corpus]
        atheris.Setup([sys.argv[0], *options], found.read, custom_mutator=change)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
