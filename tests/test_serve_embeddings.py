"""Embeddings through the openai client, against llama-cpp-python's and numpy's."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import gguf
import httpx
import numpy as np
import openai
import pytest

from coldpress import libllama
from tests import tiny_gguf
from tests.runtime_process import running

TEXTS = ["the sea", "日本", "a " * 300, "é"]
POOLINGS = [gguf.PoolingType.MEAN, gguf.PoolingType.LAST]


@pytest.fixture(scope="module", params=POOLINGS)
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedding")
    return tiny_gguf.write(folder / "model.gguf", context=1024, pooling=request.param)


@pytest.fixture(scope="module")
def url(model: Path) -> Iterator[str]:
    with running(model, "--port", "0", "--quiet") as process:
        yield process.ready_url()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("form", ["float", "base64"])
def test_they_are_llama_cpps(
    client: openai.OpenAI, model: Path, form: Literal["float", "base64"]
) -> None:
    import llama_cpp

    libllama.load()
    peer = llama_cpp.Llama(
        str(model), embedding=True, n_ctx=1024, n_batch=1024, n_ubatch=1024, flash_attn=True
    )
    made = client.embeddings.create(model="x", input=TEXTS, encoding_format=form)
    for text, each in zip(TEXTS, made.data, strict=True):
        given: Any = each.embedding
        if form == "base64":
            given = np.frombuffer(base64.b64decode(given), np.float32)
        assert np.linalg.norm(given) == pytest.approx(1, abs=1e-6)
        assert np.abs(given - np.array(peer.embed(text, normalize=True))).max() < 1e-5
    assert made.usage.prompt_tokens == sum(len(peer.tokenize(text.encode())) for text in TEXTS)
    assert [each.index for each in made.data] == [0, 1, 2, 3]
    peer.close()


def test_tokens_and_texts_are_the_same(client: openai.OpenAI, url: str) -> None:
    tokens = httpx.post(f"{url}/tokenize", json={"content": "the sea", "add_special": True})
    one = client.embeddings.create(model="x", input=tokens.json()["tokens"])
    two = client.embeddings.create(model="x", input="the sea")
    assert one.data[0].embedding == two.data[0].embedding


def test_answers_and_embeddings_do_not_disturb_each_other(client: openai.OpenAI) -> None:
    alone = client.completions.create(model="x", prompt="the", max_tokens=200, temperature=0)
    vector = client.embeddings.create(model="x", input="on").data[0].embedding
    stream = client.completions.create(
        model="x", prompt="the", max_tokens=200, temperature=0, stream=True
    )
    text = ""
    for count, chunk in enumerate(stream):
        text += chunk.choices[0].text
        if count % 50 == 0:
            assert client.embeddings.create(model="x", input="on").data[0].embedding == vector
    assert text == alone.choices[0].text


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"input": []},
        {"input": [""] * 257},
        {"input": 3},
        {"input": [[-1]]},
        {"input": [[]]},
        {"input": [[1 << 40]]},
        {"input": [True]},
        {"input": "x" * 2000},
        {"input": "x", "dimensions": 3},
        {"input": "x", "encoding_format": "hex"},
    ],
)
def test_what_cannot_be_embedded_is_refused(url: str, wrong: dict[str, Any]) -> None:
    answer = httpx.post(f"{url}/v1/embeddings", json=wrong)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    assert httpx.post(f"{url}/v1/embeddings", json={"input": "x"}).status_code == 200


def test_a_model_without_pooling_has_none(tmp_path: Path) -> None:
    model = tiny_gguf.write(tmp_path / "model.gguf")
    with running(model, "--port", "0", "--quiet") as process:
        answer = httpx.post(f"{process.ready_url()}/v1/embeddings", json={"input": "x"})
    assert answer.status_code == 400
    assert "names no pooling" in answer.json()["error"]["message"]
