"""The language model over libllama, held against lm-eval's own on transformers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from coldpress.errors import PromptTooLongError, UsageError
from coldpress.evaluate.libllama_lm import LibllamaLM
from coldpress.evaluate.session import Model, open_context, open_model
from tests import tiny_models

PAIRS = (
    ("Once upon a time there was", " a little girl named Lily."),
    ("Once upon a time there was", " a dog"),
    ("Once upon a time there was a", " big"),
    ("", "The cat sat on the mat."),
    ("Question: What did she say?\nAnswer: ", "Yes"),
    ("Lily said:", " I like cake"),
    ("Lily said:", " I like café, 日本"),
)
# One log-probability; sums over a continuation may differ by as much per token.
_PER_TOKEN = 1e-5


@pytest.fixture(scope="module", params=["bos", "no bos"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model folder and its F32 GGUF: trained and with BOS, or random and without."""
    from coldpress.convert import ConvertOptions, convert

    work = tmp_path_factory.mktemp("lm")
    if request.param == "bos":
        folder = request.getfixturevalue("shared_data") / "models" / "stories260K"
    else:
        folder = work / "qwen2"
        folder.mkdir()
        tiny_models.byte_bpe(folder, tiny_models.QWEN2_RULE)
        tiny_models.save(folder, "qwen2", scale=1, bos_token_id=None, eos_token_id=0)
    convert(folder, work / "gguf", ConvertOptions(outtype="f32", verify=False))
    return folder, work / "gguf" / "model.gguf"


@pytest.fixture(scope="module")
def model(pair: Any) -> Iterator[Model]:
    with open_model(pair[1]) as opened:
        yield opened


@pytest.fixture
def lm(model: Model) -> Iterator[LibllamaLM]:
    with open_context(model, n_cells=1024, threads=2, n_sequences=256) as context:
        yield LibllamaLM(model, context, n_ctx=512)


@pytest.fixture(scope="module")
def oracle(pair: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(pair[0]), device="cpu", dtype="float32", batch_size=1)


def _requests(kind: str, *arguments: Any) -> list[Instance]:
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


def test_log_likelihoods_are_transformers(lm: LibllamaLM, oracle: Any) -> None:
    expected = oracle.loglikelihood(_requests("loglikelihood", *PAIRS), disable_tqdm=True)
    scores = lm.loglikelihood(_requests("loglikelihood", *PAIRS))
    for (log_p, greedy), (expected_log_p, expected_greedy), (_, text) in zip(
        scores, expected, PAIRS, strict=True
    ):
        assert log_p == pytest.approx(expected_log_p, abs=_PER_TOKEN * len(text.encode()))
        assert greedy == expected_greedy


def test_rolling_is_transformers(lm: LibllamaLM, oracle: Any) -> None:
    text = " ".join(["Once upon a time there was a little girl. She liked to play."] * 30)
    requests = _requests("loglikelihood_rolling", (text,))
    oracle.tokenizer.model_max_length = 10**9  # it is cut into windows; no warning is due
    (expected,) = oracle.loglikelihood_rolling(requests, disable_tqdm=True)
    (log_p,) = lm.loglikelihood_rolling(requests)
    assert log_p == pytest.approx(expected, abs=_PER_TOKEN * len(text))


def test_greedy_text_is_transformers(lm: LibllamaLM, oracle: Any) -> None:
    arguments = ("Once upon a time", {"until": ["."], "max_gen_toks": 24, "do_sample": False})
    expected = oracle.generate_until(_requests("generate_until", arguments), disable_tqdm=True)
    assert lm.generate_until(_requests("generate_until", arguments)) == expected


def test_sharing_prefixes_changes_nothing(model: Model) -> None:
    stem = "Once upon a time there was a little girl who liked to play with her red ball. " * 4
    pairs = [(stem + f"Question {i}", f" Answer {i % 7} and more") for i in range(60)]
    pairs += [(context, " other") for context, _ in pairs]
    results = []
    for share in (True, False):
        with open_context(model, n_cells=2048, threads=2, n_sequences=256) as context:
            shared = LibllamaLM(model, context, n_ctx=512, share=share)
            results.append(
                (shared.loglikelihood(_requests("loglikelihood", *pairs)), context.n_decoded)
            )
    (together, n_together), (alone, n_alone) = results
    assert [log_p for log_p, _ in together] == pytest.approx([p for p, _ in alone], abs=1e-4)
    assert [greedy for _, greedy in together] == [greedy for _, greedy in alone]
    assert n_together < n_alone / 8


def test_too_long_a_prompt_is_refused(lm: LibllamaLM) -> None:
    with pytest.raises(PromptTooLongError, match="the context holds 512"):
        lm.loglikelihood(_requests("loglikelihood", ("word " * 2000, "end")))
    with pytest.raises(PromptTooLongError, match="exceed 512"):
        lm.generate_until(_requests("generate_until", ("word", {"max_gen_toks": 512})))


def test_sampling_is_refused(lm: LibllamaLM) -> None:
    sampling = {"do_sample": True, "temperature": 0.7}
    with pytest.raises(UsageError, match="greedy"):
        lm.generate_until(_requests("generate_until", ("word", sampling)))


def test_refuses_what_is_no_gguf(tmp_path: Path) -> None:
    from coldpress.errors import InputError

    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(64))
    for path in (broken, tmp_path / "missing.gguf"):
        with pytest.raises(InputError, match=path.name), open_model(path):
            pass
