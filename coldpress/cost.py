"""What an answer costs where there is no GPU: measured speed and memory, platform sizes, a price table.

An estimate: it takes the platform's vCPU to decode as fast as the machine that was measured, one
request at a time. ``platforms.yaml`` holds every price, its date, region and sources.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from coldpress.platforms import Platform, Price, table

# A request as the published comparisons count it: so many tokens generated.
REQUEST_TOKENS = 500


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


def instance(platform: Platform, peak_rss_mib: float, threads: int) -> Instance | None:
    """The smallest instance that holds the measured memory and a vCPU per thread.

    Fewer vCPUs would be cheaper by the second, but not what was measured. None: there is no
    instance so large.
    """
    needed = math.ceil(peak_rss_mib)
    match platform:
        case "lambda-x86" | "lambda-arm":
            limits = table().targets["lambda"]
            (choice,), per_vcpu = limits.sizes, limits.mib_per_vcpu or 1
            memory = max(choice.least_mib, needed, threads * per_vcpu)
            return Instance(memory, memory / per_vcpu) if memory <= choice.most_mib else None
        case "cloudrun":
            for choice in table().targets["cloudrun"].sizes:
                if threads <= choice.vcpu and needed <= choice.most_mib:
                    return Instance(max(choice.least_mib, needed), choice.vcpu)
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
    price = table().platforms[platform]
    sizes = [(rate, instance(platform, peak_rss_mib, rate.threads)) for rate in rates]
    costs = [cost(platform, price, size, rate) for rate, size in sizes if size is not None]
    return min(costs, key=lambda each: each.usd_per_million_tokens, default=None)
