"""Damage the files that our readers read, for minutes: ``reports/fuzz.json``.

``python -m benchmarks.fuzz --minutes 10`` gives every reader an equal share of the time in a process of its
own, under limits on memory and on seconds per input. Inputs are valid files with a few mutations; one that
makes a reader say or do something new is kept and mutated further, which leads deep into the parsers without
instrumenting them. A reader may succeed or raise one of our errors; anything else is a crash, and the input is
kept beside the report.
"""

import argparse
import json
import re
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from coldpress.checkpoint import chunks, fields, gguf_header, index, safetensors_header, shards
from coldpress.checkpoint.layout import place
from coldpress.errors import ColdpressError
from coldpress.serve import prefix
from coldpress.serve.load import contents

REPORT = Path(__file__).resolve().parents[1] / "reports/fuzz.json"
_MEMORY_BYTES = 1 << 30
_INPUT_S = 10
_MOST_BYTES = 1 << 16
_MOST_KEPT = 2000
_NUMBERS = (
    0,
    1,
    7,
    31,
    127,
    255,
    4095,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63,
    2**64 - 1,
)
_JSON = (b"null", b"true", b"-1", b"0", b"1e400", b"NaN", b"[]", b"{}", b'""', b"[" * 2000)
_JSON_NUMBERS = (b"9" * 30, b"9" * 5000, b"4611686018427387904", b'"\\ud800"', b'".."', b'"a/b"')


def read_gguf(raw: bytes) -> None:
    """Everything that is decoded of a GGUF's header before its weights are trusted."""
    header = gguf_header.parse(raw)
    for field in header.fields:
        field.value()
    shards.place(header)
    fields.header_is_intact(header, raw[: header.data_offset])
    fields.digests(header, "input")


def read_contents(raw: bytes) -> None:
    """The runtime's own view of a GGUF's header."""
    contents.of_header(raw, len(raw), "input")


READERS: dict[str, Callable[[bytes], object]] = {
    "gguf": read_gguf,
    "gguf, runtime": read_contents,
    "index": lambda raw: index.parse(raw, "input"),
    "index, runtime": lambda raw: contents.of_index(raw, "input"),
    "safetensors": lambda raw: safetensors_header.parse(raw, "input"),
    "prefix": lambda raw: prefix.parse(raw, "input"),
}


def seeds(name: str) -> list[bytes]:
    """Small valid inputs of a reader, made here."""
    match name.partition(",")[0]:
        case "gguf":
            return list(_ggufs())
        case "index":
            return [_index(files) for files in (1, 3)]
        case "safetensors":
            return list(_safetensors())
        case _:
            shipped = prefix.Shipped("Be brief.", [1, 2, 3], 99, "0" * 64, {"libc": "glibc 2.36"})
            return [shipped.encode()]


def _ggufs() -> Iterator[bytes]:
    header = (gguf_header.string("general.name", "x"), gguf_header.strings("tokens", ["a", "é"]))
    tensors = place(
        [gguf_header.Tensor("w", (32, 3), 8, 0), gguf_header.Tensor("v", (5,), 0, 0)], 32
    )
    yield gguf_header.encode(header, (), 32)
    yield gguf_header.encode(header, tensors, 32) + bytes(160)
    for shard in (None, (0, 3, 2), (1, 3, 2)):
        later = ("1" * 64, "2" * 64) if shard and shard[0] == 0 else ()
        held = () if later else tensors
        draft = fields.Draft(header, held, 32, 64, shard, later)
        pieces = chunks.split(draft.data_bytes, 64)
        yield draft.encode(["0" * 64 for _ in pieces]) + bytes(draft.data_bytes)


def _index(count: int) -> bytes:
    made = [
        index.IndexedFile(
            f"model-{n}.gguf", 160, "0" * 64, "1" * 64, 32, 128, ("2" * 64,) * 2,
            chunks.root(("2" * 64,) * 2),
        )
        for n in range(count)
    ]  # fmt: skip
    tensors = {f"w{n}": index.Range(n, "Q8_0", (32, 3), 32, 102) for n in range(count)}
    return json.dumps(index.make(64, made, tensors), default=lambda value: vars(value)).encode()


def _safetensors() -> Iterator[bytes]:
    one = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}
    two = {"dtype": "F4", "shape": [0], "data_offsets": [12, 12]}
    for entries in ({}, {"a": one, "b": two, "__metadata__": {"format": "pt"}}):
        text = json.dumps(entries).encode().ljust(200)
        yield struct.pack("<Q", len(text)) + text + bytes(12)


def mutate(random: Random, raw: bytes, others: list[bytes]) -> bytes:
    """Change an input in one to four places."""
    data = bytearray(raw)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(data) + 1)
        span = min(random.choice((1, 2, 4, 8, 16, 64)), len(data) - at)
        match random.randrange(8):
            case 0:
                data[at : at + 1] = bytes([random.randrange(256)])
            case 1:
                form = random.choice(("<I", "<Q"))
                number = random.choice(_NUMBERS) % (1 << 8 * struct.calcsize(form))
                new = struct.pack(form, number)
                data[at : at + len(new)] = new
            case 2:
                del data[at : at + span]
            case 3:
                data[at:at] = data[at : at + span] * random.choice((1, 2, 100))
            case 4:
                other = random.choice(others)
                cut = random.randrange(len(other) + 1)
                data[at : at + span] = other[cut : cut + 64]
            case 5:
                del data[at:]
            case 6:
                _swap_word(random, data)
            case _:
                data[at:at] = random.randbytes(span)
    return bytes(data[:_MOST_BYTES])


def _swap_word(random: Random, data: bytearray) -> None:
    """Put something else in the place of a JSON number, text or word."""
    words = list(re.finditer(rb'"[^"]*"|[\w.]+|[\[{]', data))
    if words:
        start, end = random.choice(words).span()
        data[start:end] = random.choice(_JSON + _JSON_NUMBERS)


def outcome(reader: Callable[[bytes], object], raw: bytes) -> str:
    """What a reader made of an input, without its numbers and names; "crash: …" for a crash."""
    try:
        reader(raw)
    except ColdpressError as error:
        if not error.hint or len(error.message) > 6000 or not error.message.isprintable():
            return f"crash: not two short lines: {error.message[:100]!r}"
        line = error.__traceback__
        while line and line.tb_next:
            line = line.tb_next
        said = re.sub(r"\d+|'[^']*'", "_", error.message)[:60]
        return f"{type(error).__name__} {line.tb_lineno if line else 0} {said}"
    except BaseException as error:
        return f"crash: {type(error).__name__}: {error}"[:200]
    return "read"


def work(
    reader: Callable[[bytes], object], pool: list[bytes], seconds: float, seed: int
) -> dict[str, Any]:
    """Feed a reader in this process until the time is over or it crashes."""
    random, known = Random(seed), {"read": 0}
    kept = list(pool)
    signal.signal(signal.SIGALRM, _too_long)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end, count = time.monotonic() + seconds, 0
    crash: dict[str, str] | None = None
    while time.monotonic() < end and crash is None:
        raw = mutate(random, random.choice(kept), kept)
        signal.alarm(_INPUT_S)
        found = outcome(reader, raw)
        signal.alarm(0)
        count += 1
        if found.startswith("crash"):
            crash = {"what": found, "input": raw.hex()}
        if found not in known and len(kept) < _MOST_KEPT:
            kept.append(raw)
        known[found] = known.get(found, 0) + 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "inputs": count,
        "accepted": known["read"],
        "distinct_outcomes": len(known),
        "memory_grown_bytes": grown << 10,
        "crash": crash,
    }


def _too_long(_signal: int, _frame: object) -> None:
    raise TimeoutError(f"no answer in {_INPUT_S} s")


def run(name: str, seconds: float, seed: int) -> dict[str, Any]:
    """Fuzz one reader in a process of its own, under limits."""
    argv = [sys.executable, "-m", "benchmarks.fuzz", "--reader", name]
    argv += ["--seconds", str(seconds), "--seed", str(seed)]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=seconds + 10 * _INPUT_S
    )
    if done.returncode:
        what = f"exit {done.returncode}: {done.stderr[-300:]}"
        return {"inputs": 0, "crash": {"what": what, "input": ""}}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> int:
    """Fuzz every reader, or be the process that fuzzes one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=READERS)
    parser.add_argument("--seconds", type=float, default=1)
    given = parser.parse_args()
    if given.reader:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        pool = seeds(given.reader)
        print(json.dumps(work(READERS[given.reader], pool, given.seconds, given.seed)))
        return 0
    share = given.minutes * 60 / len(READERS)
    found = {name: run(name, share, given.seed) for name in READERS}
    crashes = sum(one["crash"] is not None for one in found.values())
    report = {
        "headline": {"inputs": sum(one["inputs"] for one in found.values()), "crashes": crashes},
        "minutes": given.minutes,
        "seed": given.seed,
        "limits": {"memory_bytes": _MEMORY_BYTES, "seconds_per_input": _INPUT_S},
        "readers": found,
    }
    REPORT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report["headline"]))
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main())
