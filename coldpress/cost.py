"""What an answer costs where there is no GPU: measured speed and memory, platform sizes, a price table.

An estimate: it takes the platform's vCPU to decode as fast as the machine that was measured, one
request at a time. ``prices.yaml`` holds every price, its date, region and sources.
"""

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, assert_never

from pydantic import BaseModel, ConfigDict

PRICES = Path(__file__).with_name("prices.yaml")
Platform = Literal["lambda-x86", "lambda-arm", "cloudrun"]
# A request as the published comparisons count it: so many tokens generated.
REQUEST_TOKENS = 500

_LAMBDA_MIB = (128, 10_240)  # in steps of 1 MB
_LAMBDA_MIB_PER_VCPU = 1769
# (vCPU, least MiB, most MiB). The second-generation environment, whose CPU instructions are all
# there, asks for 512 MiB.
_CLOUDRUN_SIZES = (
    (1, 512, 4096),
    (2, 512, 8192),
    (4, 2048, 16_384),
    (6, 4096, 24_576),
    (8, 4096, 32_768),
)


class Price(BaseModel):
    """What one platform charges; ``usd_per_vcpu_s`` is 0 where the memory's price includes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    region: str
    usd_per_request: float
    usd_per_gib_s: float
    usd_per_vcpu_s: float
    sources: tuple[str, ...]


class Prices(BaseModel):
    """The dated table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: datetime.date
    platforms: dict[Platform, Price]


@dataclass(frozen=True)
class Rate:
    """Tokens per second generated with so many threads, as measured."""

    threads: int
    tok_per_s: float


@dataclass(frozen=True)
class Instance:
    """The size that is paid for."""

    memory_mib: int
    vcpu: float


@dataclass(frozen=True)
class Cost:
    """What ``request_tokens`` generated tokens cost on an instance, and a million at that rate."""

    platform: Platform
    memory_mib: int
    vcpu: float
    threads: int
    tok_per_s: float
    usd_per_s: float
    request_tokens: int
    usd_per_request: float
    usd_per_million_tokens: float


@cache
def prices() -> Prices:
    """The price table that coldpress carries."""
    import yaml

    return Prices.model_validate(yaml.safe_load(PRICES.read_text(encoding="utf-8")))


def instance(platform: Platform, peak_rss_mib: float, threads: int) -> Instance | None:
    """The smallest instance that holds the measured memory and a vCPU per thread.

    Fewer vCPUs would be cheaper by the second, but not what was measured. None: there is no
    instance so large.
    """
    needed = math.ceil(peak_rss_mib)
    match platform:
        case "lambda-x86" | "lambda-arm":
            memory = max(_LAMBDA_MIB[0], needed, threads * _LAMBDA_MIB_PER_VCPU)
            fits = memory <= _LAMBDA_MIB[1]
            return Instance(memory, memory / _LAMBDA_MIB_PER_VCPU) if fits else None
        case "cloudrun":
            for vcpu, least, most in _CLOUDRUN_SIZES:
                if threads <= vcpu and needed <= most:
                    return Instance(max(least, needed), vcpu)
            return None
        case _:
            assert_never(platform)


def usd_per_s(price: Price, size: Instance) -> float:
    """What an instance costs while it answers."""
    return size.memory_mib / 1024 * price.usd_per_gib_s + size.vcpu * price.usd_per_vcpu_s


def cost(
    platform: Platform,
    price: Price,
    size: Instance,
    rate: Rate,
    request_tokens: int = REQUEST_TOKENS,
) -> Cost:
    """Price a request of ``request_tokens`` generated tokens; its prompt is not in it."""
    second = usd_per_s(price, size)
    request = second * request_tokens / rate.tok_per_s + price.usd_per_request
    return Cost(
        platform=platform,
        memory_mib=size.memory_mib,
        vcpu=size.vcpu,
        threads=rate.threads,
        tok_per_s=rate.tok_per_s,
        usd_per_s=second,
        request_tokens=request_tokens,
        usd_per_request=request,
        usd_per_million_tokens=1e6 * request / request_tokens,
    )


def cheapest(platform: Platform, peak_rss_mib: float, rates: Sequence[Rate]) -> Cost | None:
    """The lowest cost per token among the measured thread counts that the platform has vCPUs for."""
    price = prices().platforms[platform]
    sizes = [(rate, instance(platform, peak_rss_mib, rate.threads)) for rate in rates]
    costs = [cost(platform, price, size, rate) for rate, size in sizes if size is not None]
    return min(costs, key=lambda each: each.usd_per_million_tokens, default=None)
