"""Damaged versions of good files: odd values in JSON, and bytes that are flipped, cut, or put in."""

import json
import random

ODD_VALUES = (
    *(None, True, -1, 0, 1.5, 1e308, 10**6, 2**40, 2**63, 10**30, "", "x", [], {}, [[]], [{}]),
    *("../../../../etc/passwd", "\ud800", "\0", "${oc.env:HOME}", "__import__('os').system('x')"),
)
ODD_BYTES = (
    *(b"\0", b"\xff" * 8, b"\x7f\xff\xff\xff", b"[" * 5000, b"9" * 5000, b"1e999", b"\xed\xa0\x80"),
    *(
        b"null",
        b"-1",
        b'""',
        b"{}",
        b"\n",
        b"\r",
        b"\t",
        b",",
        b"../../../etc/passwd",
        b"\\input{main}",
    ),
    *(b"cos\nsystem\n(S'x'\ntR.", b"c__builtin__\neval\n", b"\x80\x02", b"#fairseq:overwrite"),
)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """*content* with one to four changes."""
    for _ in range(rng.randint(1, 4)):
        changed = _odd_value(content, rng) if rng.random() < 0.6 else None
        content = _odd_bytes(content, rng) if changed is None else changed
    return content


def _odd_value(content: bytes, rng: random.Random):
    """JSON, or a line of JSON, with one of its values replaced or removed; None for anything else."""
    lines = content.split(b"\n") if not content.startswith(b"{\n") else [content]
    number = rng.randrange(len(lines))
    try:
        whole = json.loads(lines[number])
    except (ValueError, RecursionError):
        return None
    places = list(_places(whole))
    if not places:
        return None
    container, key = rng.choice(places)
    if rng.random() < 0.2:
        del container[key]
    else:
        container[key] = rng.choice(ODD_VALUES)
    lines[number] = json.dumps(whole).encode()
    return b"\n".join(lines)


def _places(value):
    """Every container in a JSON value with each of its keys."""
    if isinstance(value, (dict, list)):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield value, key
            yield from _places(value[key])


def _odd_bytes(content: bytes, rng: random.Random) -> bytes:
    start, stop = sorted(rng.randint(0, len(content)) for _ in range(2))
    stop = min(stop, start + rng.choice((1, 8, 64, len(content) + 1)))
    kind = rng.randrange(5)
    if kind == 0:
        return content[:start]
    if kind == 1:
        return content[:start] + content[stop:]
    if kind == 2:
        return content[:start] + content[start:stop] * 2 + content[stop:]
    if kind == 3:
        return content[:start] + rng.choice(ODD_BYTES) + content[stop:]
    flipped = bytes(byte ^ (1 << rng.randrange(8)) for byte in content[start : start + 2])
    return content[:start] + flipped + content[start + len(flipped) :]
