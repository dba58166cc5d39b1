"""Costs: the published table recomputed, the platforms' sizes, and what must hold for every input."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldpress import cost
from coldpress.cost import Instance, Rate
from coldpress.platforms import Platform, Price, table


def price(gib: float, vcpu: float) -> Price:
    return Price(region="x", usd_per_request=0, usd_per_gib_s=gib, usd_per_vcpu_s=vcpu, sources=())


def digits(value: float, n: int = 3) -> float:
    return float(f"{value:.{n}g}")


# Llama 3.2 1B at 6 GB, as published: Lambda 7.42 tok/s at $0.00001667 per GB-s; Cloud Run 7.39
# tok/s, 4 vCPU at $0.000024 and 6 GB at $0.0000025.
LAMBDA = ("lambda-x86", price(0.00001667, 0), Instance(6 * 1024, 3.5), Rate(2, 7.42))
CLOUDRUN = ("cloudrun", price(0.0000025, 0.000024), Instance(6 * 1024, 4), Rate(4, 7.39))


def test_the_published_lambda_row() -> None:
    found = cost.cost(*LAMBDA, request_tokens=500)
    assert digits(found.usd_per_million_tokens / 1e6, 4) == 0.00001348
    assert digits(found.usd_per_request) == 0.00674


def test_the_published_cloud_run_row_and_its_slip() -> None:
    found = cost.cost(*CLOUDRUN, request_tokens=500)
    # 4 x 0.000024 + 6 x 0.0000025, added up by hand; published as 0.000102 and 0.0069.
    assert digits(found.usd_per_s) == 0.000111 != 0.000102
    assert digits(found.usd_per_request) == 0.00751 != 0.0069
    # The slip follows through: the published request is the published second, rightly divided.
    assert digits(0.000102 * 500 / 7.39, 2) == 0.0069


@pytest.mark.parametrize(
    ("platform", "size", "rate", "usd"),
    [
        ("lambda-x86", Instance(6144, 3.5), Rate(2, 7.42), 0.00674),
        ("lambda-arm", Instance(6144, 3.5), Rate(2, 7.42), 0.00539),
        ("cloudrun", Instance(6144, 4), Rate(4, 7.39), 0.00751),
    ],
)
def test_our_prices_give_the_same(
    platform: Platform, size: Instance, rate: Rate, usd: float
) -> None:
    """To three digits the request's own fee does not show."""
    prices = table().platforms
    assert digits(cost.cost(platform, prices[platform], size, rate).usd_per_request) == usd


def test_the_table_is_complete_dated_and_has_sources() -> None:
    found = table()
    assert set(found.platforms) == {"lambda-x86", "lambda-arm", "cloudrun"}
    assert found.date.year >= 2026
    for each in found.platforms.values():
        assert each.sources and all(source.startswith("https://") for source in each.sources)
        assert 1e-7 <= each.usd_per_request <= 1e-6


@pytest.mark.parametrize(
    ("platform", "rss_mib", "threads", "size"),
    [
        ("lambda-x86", 60.2, 1, Instance(1769, 1.0)),
        ("lambda-x86", 1769.01, 1, Instance(1770, 1770 / 1769)),
        ("lambda-arm", 4000, 2, Instance(4000, 4000 / 1769)),
        ("lambda-x86", 10_240, 1, Instance(10_240, 10_240 / 1769)),
        ("lambda-x86", 10_240.5, 1, None),
        ("lambda-x86", 60, 6, None),  # 6 x 1,769 MB are more than there are
        ("cloudrun", 60.2, 1, Instance(512, 1)),
        ("cloudrun", 4097, 1, Instance(4097, 2)),
        ("cloudrun", 60, 3, Instance(2048, 4)),
        ("cloudrun", 60, 5, Instance(4096, 6)),
        ("cloudrun", 32_768, 8, Instance(32_768, 8)),
        ("cloudrun", 32_769, 1, None),
        ("cloudrun", 60, 9, None),
    ],
)
def test_the_instance_is_the_smallest_that_does(
    platform: Platform, rss_mib: float, threads: int, size: Instance | None
) -> None:
    assert cost.instance(platform, rss_mib, threads) == size


_rates = st.lists(
    st.builds(Rate, threads=st.integers(1, 10), tok_per_s=st.floats(0.1, 1000)), max_size=6
)


@given(st.sampled_from(["lambda-x86", "lambda-arm", "cloudrun"]), st.floats(1, 40_000), _rates)
def test_the_cheapest_is_the_slow_search(
    platform: Platform, rss_mib: float, rates: list[Rate]
) -> None:
    price_ = table().platforms[platform]
    seconds = []
    for rate in rates:
        if (size := cost.instance(platform, rss_mib, rate.threads)) is not None:
            assert size.memory_mib >= rss_mib and size.vcpu >= rate.threads
            seconds.append(
                (size.memory_mib / 1024 * price_.usd_per_gib_s + size.vcpu * price_.usd_per_vcpu_s)
                / rate.tok_per_s
            )
    found = cost.cheapest(platform, rss_mib, rates)
    if not seconds:
        assert found is None
        return
    assert found is not None
    fee = price_.usd_per_request / cost.REQUEST_TOKENS
    assert found.usd_per_million_tokens == pytest.approx(1e6 * (min(seconds) + fee))
    assert found.usd_per_request == pytest.approx(
        found.usd_per_million_tokens * found.request_tokens / 1e6
    )


@given(st.floats(0.1, 1000), st.floats(1.01, 10))
def test_faster_is_cheaper_and_arm_is_a_fifth_less(tok_per_s: float, times: float) -> None:
    slow, fast = ([Rate(2, tok_per_s * by)] for by in (1, times))
    for platform, rates in product(("lambda-x86", "cloudrun"), (slow,)):
        before, after = cost.cheapest(platform, 100, rates), cost.cheapest(platform, 100, fast)
        assert before is not None and after is not None
        assert after.usd_per_million_tokens < before.usd_per_million_tokens
    x86, arm = cost.cheapest("lambda-x86", 100, slow), cost.cheapest("lambda-arm", 100, slow)
    assert x86 is not None and arm is not None
    assert arm.usd_per_s == pytest.approx(0.8 * x86.usd_per_s, rel=1e-4)
