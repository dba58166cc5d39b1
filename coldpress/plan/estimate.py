"""One file on one platform: does it fit, how fast does it start and answer, what does it cost."""

import math
from dataclasses import replace

from coldpress import cost, memory
from coldpress.errors import TooLargeError
from coldpress.memory import Memory, Shape
from coldpress.package import limits
from coldpress.package.base import architecture
from coldpress.plan import rates
from coldpress.plan.rates import Rates, Storage
from coldpress.plan.source import Variant
from coldpress.plan.stage import Figure, PlanOptions, Row
from coldpress.platforms import Platform, Size, Target, table
from coldpress.quantize.fit import parse

# The image without weights, and how much a checkpoint's layout adds to a GGUF.
_IMAGE_BYTES = 60_000_000
# Of the request that meets a cold start; benchmarks/clouds.py asks with as many.
_PROMPT_TOKENS = 20


def row(variant: Variant, shape: Shape, target: Target, options: PlanOptions, speeds: Rates) -> Row:
    """Predict one file on one platform."""

    beside = memory.account(shape, options.context, table().targets[target].parallel)
    needed = variant.size_bytes + beside.needed_bytes
    resident = (variant.size_bytes + beside.resident_bytes) / memory.MIB
    found = Row(
        variant=variant.name,
        target=target,
        size_bytes=Figure(variant.size_bytes, variant.size_error_pct, variant.size_basis),
        needed_mib=math.ceil(needed / memory.MIB),
        resident_mib=Figure(
            round(resident, 1), speeds.error_pct.memory, "weights, KV cache, buffers, runtime"
        ),
    )
    try:
        _check_image(target, variant)
        size = limits.instance(target, needed, _memory_mib(target, options.memory))
    except TooLargeError as error:
        return replace(found, problem=error.message)
    vcpu = table().targets[target].vcpu(size)
    # On average the cache is half full.
    kv_bytes = beside.kv_cache_bytes / beside.sequences / 2
    token_rate = rates.tok_per_s(speeds, variant.read_bytes, kv_bytes, vcpu)
    here = target == "compose"
    storage = rates.storage_of(target, options.storage)
    return replace(
        found,
        memory_mib=size.memory_mib,
        vcpu=round(vcpu, 2),
        cold_start_s=_first_token(variant, beside, shape, storage, speeds, vcpu),
        tok_per_s=Figure(
            round(token_rate, 2),
            speeds.error_pct.tok_per_s if here else speeds.error_pct.elsewhere,
            f"bytes per token at the rates of {speeds.machine}, one answer at a time",
        ),
        usd_per_request=(usd := _usd(target, size, token_rate, vcpu, options, speeds)),
        usd_per_month=_monthly(usd, options.traffic),
    )


def _first_token(
    variant: Variant, beside: Memory, shape: Shape, storage: Storage, speeds: Rates, vcpu: float
) -> Figure:
    """The cold start, up to the first token of an answer to a short prompt."""
    tokens, cache = shape.vocabulary, beside.kv_cache_bytes
    ready = rates.cold_start_s(speeds, storage, variant.size_bytes, cache, tokens, vcpu)
    token_rate = rates.tok_per_s(speeds, variant.read_bytes, 0, vcpu)
    seconds = ready + (_PROMPT_TOKENS / speeds.prompt_speedup + 1) / token_rate
    known = storage in ("page-cache", "disk")
    error = speeds.error_pct.cold_start if known else 2 * speeds.error_pct.elsewhere
    rate = speeds.storage_bytes_per_s[storage] / 1e9
    basis = f"weights from {storage} at {rate:g} GB/s, a prompt of {_PROMPT_TOKENS} tokens"
    return Figure(round(seconds, 2), error, basis)


def _usd(
    target: Target, size: Size, token_rate: float, vcpu: float, options: PlanOptions, speeds: Rates
) -> Figure | None:
    """The price of a request where requests are what is paid."""
    payee = _payee(target)
    if payee is None:
        return None
    instance = cost.Instance(size.memory_mib, vcpu)
    rate = cost.Rate(max(1, round(vcpu)), token_rate)
    priced = cost.cost(payee, table().platforms[payee], instance, rate, options.request_tokens)
    basis = f"{options.request_tokens} tokens at list prices of {table().date}, as sure as tok/s"
    return Figure(priced.usd_per_request, speeds.error_pct.elsewhere, basis)


def _monthly(request: Figure | None, traffic: int | None) -> Figure | None:
    if request is None or traffic is None:
        return None
    basis = f"{traffic} requests; cold starts and idle time apart"
    return Figure(round(traffic * request.value, 2), request.error_pct, basis)


def _payee(target: Target) -> Platform | None:
    """Who is paid by the request; None where a machine or cluster is paid anyhow, or the price unknown."""

    if target in ("lambda", "lambda-snapstart"):
        return "lambda-arm" if architecture() == "arm64" else "lambda-x86"
    return "cloudrun" if target == "cloudrun" else None


def _check_image(target: Target, variant: Variant) -> None:

    limit = limits.image_bytes(target)
    # SnapStart's zip holds no weights.
    if target == "lambda" and limit is not None and variant.size_bytes + _IMAGE_BYTES > limit:
        raise TooLargeError(
            f"the image would have {(variant.size_bytes + _IMAGE_BYTES) / 1e9:.2f} GB;"
            f" {target} takes {limit / 1e9:.2f} GB"
        )


def _memory_mib(target: Target, text: str | None) -> int | None:
    return None if text is None else parse(f"{target}:{text}")[1] // memory.MIB
