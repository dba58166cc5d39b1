"""Perplexity and KL divergence against slow, obvious versions and against llama-perplexity."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmarks import peers
from coldpress.convert import ConvertOptions, convert
from coldpress.errors import InputError, UsageError
from coldpress.evaluate import kl, perplexity
from coldpress.evaluate.session import Batch, Model, open_context, open_model
from tests import tiny_models

N_CTX = 64


@pytest.fixture(scope="module")
def model(random_gguf: Path) -> Iterator[Model]:
    with open_model(random_gguf / "model.gguf") as opened:
        yield opened


@pytest.fixture(scope="module")
def text(model: Model) -> perplexity.Chunks:
    return perplexity.chunks(model, tiny_models.own_text(), N_CTX, 5)


def _score(
    model: Model, text: perplexity.Chunks, base: kl.Base | None, k: int
) -> perplexity.Scored:
    with open_context(model, n_cells=N_CTX, threads=2) as context:
        return perplexity.score(model, context, text, base=base, top_k=k, profile="exact")


def _log_softmax(row: np.ndarray) -> np.ndarray:
    row = row.astype(np.float64)
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


def _every_logit(model: Model, chunk: np.ndarray) -> np.ndarray:
    """All logits of a chunk, each token decoded by itself."""
    tokens = chunk.copy()
    tokens[0] = model.bos
    with open_context(model, n_cells=N_CTX, threads=1) as context:
        rows = []
        for i in range(len(tokens)):
            step = Batch.of_sequence(tokens[i : i + 1], start=i, wanted=np.array([True]))
            rows += [each.copy() for _, each in context.decode(step)]
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def exact_model(tmp_path_factory: pytest.TempPathFactory, random_llama: Path) -> Iterator[Model]:
    """In float32: ggml multiplies bf16 by one row and by many with kernels that round differently."""
    out = tmp_path_factory.mktemp("f32") / "convert"
    convert(random_llama, out, ConvertOptions(outtype="f32", verify=False))
    with open_model(out / "model.gguf") as opened:
        yield opened


def test_perplexity_is_the_slow_loop(exact_model: Model, text: perplexity.Chunks) -> None:
    model = exact_model
    assert model.add_bos
    nll, n_bytes = [], 0
    for chunk in text.tokens:
        logits = _every_logit(model, chunk)
        for i in range(N_CTX // 2, N_CTX - 1):
            nll.append(-_log_softmax(logits[i])[chunk[i + 1]])
            n_bytes += len(model.piece(int(chunk[i + 1])))
    found = _score(model, text, None, 16).perplexity
    assert found.n_tokens == len(nll) == 5 * 31
    assert found.value == pytest.approx(np.exp(np.mean(nll)), rel=1e-5)
    stderr = np.exp(np.mean(nll)) * np.std(nll) / np.sqrt(len(nll) - 1)
    assert found.stderr == pytest.approx(stderr, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(np.sum(nll) / np.log(2) / n_bytes, rel=1e-5)


@pytest.mark.slow
def test_perplexity_is_llama_perplexitys(random_gguf: Path, model: Model) -> None:
    words = tiny_models.own_text()
    file = random_gguf.parent / "text.txt"
    file.write_text(words, encoding="utf-8")
    theirs = peers.perplexity(random_gguf / "model.gguf", file, "-c", 128, "--chunks", 4, "-t", 2)
    with open_context(model, n_cells=128, threads=2) as context:
        chunks = perplexity.chunks(model, words, 128, 4)
        found = perplexity.score(model, context, chunks, base=None, top_k=8, profile="exact")
    assert found.perplexity.value == pytest.approx(theirs[0], rel=1e-3)
    assert found.perplexity.stderr == pytest.approx(theirs[1], rel=1e-2)


def test_a_model_does_not_differ_from_itself(model: Model, text: perplexity.Chunks) -> None:
    for k in (16, model.n_vocab):
        base = _score(model, text, None, k).base
        assert base is not None
        found = _score(model, text, base, k).kl
        assert found is not None
        assert (found.mean, found.max, found.same_top1) == (0.0, 0.0, 1.0)


def test_kl_is_the_slow_loop_over_all_logits(
    text: perplexity.Chunks, random_llama: Path, tmp_path: Path
) -> None:
    """Of two models in float32, alike but for their scale."""
    paths = []
    for scale in (3.0, 2.9):
        source = shutil.copytree(random_llama, tmp_path / f"source-{scale}")
        tiny_models.save(source, "llama", scale=scale)
        convert(source, tmp_path / f"{scale}", ConvertOptions(outtype="f32", verify=False))
        paths.append(tmp_path / f"{scale}" / "model.gguf")
    with open_model(paths[0]) as one, open_model(paths[1]) as other:
        base = _score(one, text, None, one.n_vocab).base
        few = _score(one, text, None, 64).base
        found = _score(other, text, base, one.n_vocab).kl
        sampled = _score(other, text, few, 64).kl
        expected, same = [], []
        for chunk in text.tokens:
            p, q = _every_logit(one, chunk), _every_logit(other, chunk)
            for i in range(N_CTX // 2, N_CTX - 1):
                log_p, log_q = _log_softmax(p[i]), _log_softmax(q[i])
                expected.append(float((np.exp(log_p) * (log_p - log_q)).sum()))
                same.append(p[i].argmax() == q[i].argmax())
    assert found is not None and sampled is not None
    assert found.mean == pytest.approx(np.mean(expected), rel=1e-4)
    assert found.max == pytest.approx(np.max(expected), rel=1e-4)
    assert 0 < found.same_top1 == np.mean(same) < 1
    assert sampled.mean == pytest.approx(found.mean, rel=0.1)


_logits = arrays(np.float32, (3, 12), elements=st.floats(-8, 8, width=32))


@given(_logits, _logits)
def test_kl_over_the_whole_vocabulary_is_exact(p: np.ndarray, q: np.ndarray) -> None:
    ids, log_p = kl.sample(p, 12, np.random.default_rng(0))
    found, same = kl.divergence(kl.Base(ids, log_p, 12, "", "exact"), slice(0, 3), q)
    assert found == pytest.approx([_kl(a, b) for a, b in zip(p, q, strict=True)], abs=1e-5)
    assert list(same) == [b.argmax() == first for b, first in zip(q, ids[:, 0], strict=True)]


@pytest.mark.parametrize("top_k", [1, 20, 100])
def test_sampled_kl_is_unbiased(top_k: int) -> None:
    random = np.random.default_rng(1)
    p, q = (random.normal(0, 2, (1, 300)).astype(np.float32) for _ in range(2))
    found = []
    for seed in range(500):
        ids, log_p = kl.sample(p, top_k, np.random.default_rng(seed))
        assert ids.shape == (1, top_k + kl.N_DRAWN)
        assert not set(ids[0, :top_k]) & set(ids[0, top_k:])
        base = kl.Base(ids, log_p, top_k, "", "exact")
        found.append(float(kl.divergence(base, slice(0, 1), q)[0][0]))
    error = np.std(found) / np.sqrt(len(found))
    assert np.mean(found) == pytest.approx(_kl(p[0], q[0]), abs=4 * error)


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    log_p, log_q = _log_softmax(p), _log_softmax(q)
    return float((np.exp(log_p) * (log_p - log_q)).sum())


def test_another_text_or_profile_is_refused(model: Model, text: perplexity.Chunks) -> None:
    base = _score(model, text, None, 8).base
    other = perplexity.Chunks(text.tokens[:-1])
    with pytest.raises(UsageError, match="other tokens"):
        _score(model, other, base, 8)
    with (
        open_context(model, n_cells=N_CTX, threads=2) as context,
        pytest.raises(UsageError, match="profile exact"),
    ):
        perplexity.score(model, context, text, base=base, top_k=8, profile="fast")


def test_too_short_a_text_is_refused(model: Model) -> None:
    with pytest.raises(InputError, match="two chunks of 64"):
        perplexity.chunks(model, "short", N_CTX, None)


def test_a_base_file_is_read_back_and_a_bad_one_refused(
    model: Model, text: perplexity.Chunks, tmp_path: Path
) -> None:
    base = _score(model, text, None, 8).base
    assert base is not None
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    kl.write(base, first)
    kl.write(base, second)
    assert first.read_bytes() == second.read_bytes()
    back = kl.read(first)
    assert np.array_equal(back.ids, base.ids) and np.array_equal(back.log_p, base.log_p)
    assert (back.tokens_sha256, back.profile) == (base.tokens_sha256, "exact")
    first.write_bytes(first.read_bytes()[:100])
    for bad in (first, tmp_path / "missing.npz"):
        with pytest.raises(InputError, match=bad.name):
            kl.read(bad)
    np.savez(second, ids=np.zeros(3))
    with pytest.raises(InputError, match="it holds ids"):
        kl.read(second)
