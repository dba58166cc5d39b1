"""How fast an instance is: tokens per second and cold start, from a dated table or measured now."""

import datetime
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from coldpress.platforms import Target

_TABLE = Path(__file__).with_name("rates.yaml")
Storage = Literal["page-cache", "disk", "network", "snapshot"]
"""Where the weights are when an instance starts."""
# Decoding reads a KV cache as it reads weights of 16 bits.
_KV_TYPE = "F16"
_STORAGE: Mapping[Target, Storage] = {
    "lambda": "network",
    "lambda-snapstart": "snapshot",
    "lambda-microvm": "snapshot",
    "cloudrun": "network",
    "kserve": "disk",
    "compose": "disk",
}


class Errors(BaseModel):
    """How far figures may be off, in %."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory: float
    tok_per_s: float
    cold_start: float
    elsewhere: float


class Rates(BaseModel):
    """The dated table; ``machine`` is what it was measured on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: datetime.date
    machine: str
    seconds_per_byte: dict[str, float]
    thread_exponent: float
    token_s: float
    start_s: float
    vocabulary_s_per_token: float
    kv_cache_bytes_per_s: float
    prompt_speedup: float
    first_token_s: float
    storage_bytes_per_s: dict[Storage, float]
    error_pct: Errors


@cache
def default() -> Rates:
    """The table that coldpress carries."""
    import yaml

    return Rates.model_validate(yaml.safe_load(_TABLE.read_text(encoding="utf-8")))


def measured(types: set[str]) -> Rates:
    """The table with this machine's seconds per byte of some types, on one thread; takes seconds."""
    from coldpress.quantize import rates
    from coldpress.quantize.types import TYPES

    kinds = [TYPES[name] for name in sorted(types & set(TYPES))]
    table = default()
    here = rates.measure(kinds, threads=1)
    return table.model_copy(
        update={
            "date": datetime.datetime.now(datetime.UTC).date(),
            "machine": "this machine",
            "seconds_per_byte": {**table.seconds_per_byte, **here},
        }
    )


def tok_per_s(table: Rates, read_bytes: Mapping[str, float], kv_bytes: float, vcpu: float) -> float:
    """Tokens per second of one answer.

    Args:
        read_bytes: type → bytes of weights that a token reads.
        kv_bytes: of the KV cache that a token reads.
    """
    work = {**read_bytes, _KV_TYPE: read_bytes.get(_KV_TYPE, 0) + kv_bytes}
    slowest = max(table.seconds_per_byte.values())
    seconds = sum(table.seconds_per_byte.get(kind, slowest) * n for kind, n in work.items())
    return 1 / (seconds / _speed(table, vcpu) + table.token_s / min(1.0, vcpu))


def cold_start_s(
    table: Rates,
    storage: Storage,
    weights_bytes: int,
    kv_cache_bytes: int,
    tokens: int,
    vcpu: float,
) -> float:
    """Seconds from the start of the process to a context that can decode.

    The weights come while Python starts and the vocabulary, of so many tokens, is read; what is slower
    counts.
    """
    working = table.start_s + table.vocabulary_s_per_token * tokens
    context = kv_cache_bytes / table.kv_cache_bytes_per_s + table.first_token_s
    slowness = 1 / min(1.0, vcpu)
    reading = table.start_s * slowness + weights_bytes / table.storage_bytes_per_s[storage]
    return max(working * slowness, reading) + context * slowness


def storage_of(target: Target, given: str | None) -> Storage:
    """Where a target's weights are on a cold start, unless that is said."""
    return next((name for name in get_args(Storage) if name == given), _STORAGE[target])


def _speed(table: Rates, vcpu: float) -> float:
    """How much faster than one thread; less than one vCPU is that share of it."""
    return vcpu if vcpu < 1 else float(vcpu**table.thread_exponent)
