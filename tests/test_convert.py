"""Conversion: transformers' logits are the oracle; what cannot work fails early and cleanly."""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from coldpress import artifact
from coldpress.convert import ConvertOptions, checks, convert, hub, parity, pretokenizer, upstream
from coldpress.errors import (
    ColdpressError,
    CorruptModelError,
    IntegrityError,
    NotAModelError,
    ToolError,
    UnsupportedModelError,
    UsageError,
)
from tests import tiny_models

F32 = ConvertOptions(outtype="f32")


@pytest.fixture(scope="module")
def tree() -> Path:
    return upstream.source_tree(None)


@pytest.fixture
def model(tmp_path: Path, random_llama: Path) -> Path:
    """A copy of the random Llama to damage."""
    return Path(shutil.copytree(random_llama, tmp_path / "model"))


def edit_config(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def error_of(model: Path, options: ConvertOptions = F32) -> ColdpressError:
    """The error of a conversion, after checking that nothing was left behind."""
    with pytest.raises(ColdpressError) as caught:
        convert(model, model.parent / "out", options)
    assert not list(model.parent.glob("out*"))
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("name", ["stories260K", "babyllama361"])
def test_a_trained_model_keeps_its_logits_at_bf16(
    tmp_path: Path, shared_data: Path, name: str
) -> None:
    result = convert(shared_data / "models" / name, tmp_path / "out", ConvertOptions())
    assert result.tokens_agree
    assert result.relative_logit_diff is not None
    assert result.relative_logit_diff < 0.005


def test_equal_inputs_give_equal_bytes(
    tmp_path: Path, random_llama: Path, random_gguf: Path
) -> None:
    options = ConvertOptions(name="random", verify=False)
    convert(random_llama, tmp_path / "elsewhere", options)
    assert artifact.read(tmp_path / "elsewhere") == artifact.read(random_gguf)


def test_the_name_gets_into_the_metadata(random_gguf: Path) -> None:
    import gguf

    fields = gguf.GGUFReader(random_gguf / "model.gguf").fields
    assert fields["general.name"].contents() == "Random"


def test_a_model_that_llama_cpp_runs_differently_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    tiny_models.sentencepiece(folder)
    # GGUF has no place for this scale: llama.cpp takes the head's dimension.
    tiny_models.save(folder, "gemma2", head_dim=32, query_pre_attn_scalar=256)
    error = error_of(folder)
    assert isinstance(error, UnsupportedModelError)
    assert "logits differ" in error.message


def test_qwen3_moe_without_normalised_experts_is_refused(model: Path) -> None:
    edit_config(model, architectures=["Qwen3MoeForCausalLM"])
    error = error_of(model)
    assert isinstance(error, UnsupportedModelError)
    assert "norm_topk_prob" in error.message


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"model_type": "mistral", "sliding_window": 4096}, 4096),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "mistral", "sliding_window": 32768}, None),
        ({"model_type": "qwen2", "sliding_window": 4096}, None),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": True}, 4096),
        ({"model_type": "gemma2", "sliding_window": 4096}, None),
    ],
)
def test_a_window_that_llama_cpp_ignores_is_told(
    config: dict[str, Any], window: int | None
) -> None:
    assert checks.ignored_window(config | {"max_position_embeddings": 32768}) == window


def test_a_window_shorter_than_the_test_text_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    tiny_models.sentencepiece(folder)
    tiny_models.save(folder, "mistral", sliding_window=16)
    assert "logits differ" in error_of(folder).message


def test_an_unknown_architecture_names_close_ones(model: Path) -> None:
    edit_config(model, architectures=["LlamaForCasualLM"])
    error = error_of(model)
    assert isinstance(error, UnsupportedModelError)
    assert "LlamaForCausalLM" in error.hint


def test_a_folder_without_config_is_no_model(model: Path) -> None:
    (model / "config.json").unlink()
    assert isinstance(error_of(model), NotAModelError)


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "llama"}'])
def test_a_broken_config_is_no_model(model: Path, content: str) -> None:
    (model / "config.json").write_text(content)
    assert isinstance(error_of(model), NotAModelError)


def test_a_folder_without_weights_is_no_model(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert isinstance(error_of(model), NotAModelError)


def test_truncated_weights_are_named_with_the_bytes_missing(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    error = error_of(model)
    assert isinstance(error, CorruptModelError)
    assert "model.safetensors is truncated: 1000 bytes" in error.message


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0{}      x"])
def test_weights_that_are_not_safetensors_are_corrupt(model: Path, content: bytes) -> None:
    (model / "model.safetensors").write_bytes(content)
    assert isinstance(error_of(model), CorruptModelError)


def test_a_shard_that_the_index_names_must_be_there(model: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    error = error_of(model)
    assert isinstance(error, CorruptModelError)
    assert "model-00002-of-00002.safetensors" in error.message


def test_unknown_splitting_rules_are_refused_with_the_known_names(model: Path) -> None:
    (model / "tokenizer.model").unlink()
    tiny_models.byte_bpe(model, r"\w+|\W")
    error = error_of(model)
    assert isinstance(error, UnsupportedModelError)
    assert "llama-bpe" in error.hint


def test_a_wrong_pre_tokenizer_is_found_by_its_tokens(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    tiny_models.byte_bpe(folder, tiny_models.LLAMA3_RULE)  # Up to three digits make one token.
    tiny_models.save(folder, "llama")
    error = error_of(folder, ConvertOptions(pre_tokenizer="qwen2"))
    assert isinstance(error, UsageError)
    assert "token " in error.message


def test_smollm_is_recognised_by_its_hash(shared_data: Path, tree: Path) -> None:
    folder = shared_data / "tokenizers" / "smollm2_135m"  # Its file asks for truncation.
    assert pretokenizer.choose(folder, tree, None).how == "recognised by the converter"


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ([{"type": "ByteLevel", "use_regex": True}], "gpt-2"),
        ([{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}], "smollm"),
        ([{"type": "Digits", "individual_digits": False}, {"type": "ByteLevel"}], None),
        (
            [
                {"type": "Split", "pattern": {"Regex": tiny_models.LLAMA3_RULE}},
                {"type": "ByteLevel", "use_regex": False},
            ],
            "llama-bpe",
        ),
    ],
)
def test_splitting_rules_are_matched(parts: list[dict[str, Any]], name: str | None) -> None:
    definition = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}}
    assert pretokenizer.KNOWN_RULES.get(pretokenizer.splitting_rules(definition)) == name


def test_every_rule_leads_to_a_name_that_the_converter_knows(tree: Path) -> None:
    known = set(pretokenizer.recognised(tree).names.values())
    assert set(pretokenizer.KNOWN_RULES.values()) <= known
    assert len(known) > 50
    assert "LlamaForCausalLM" in checks.known_architectures(tree)


@pytest.mark.parametrize(
    ("ours", "theirs", "at"),
    [([1, 2], [1, 2], None), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([], [], None)],
)
def test_first_difference(ours: list[int], theirs: list[int], at: int | None) -> None:
    assert parity.first_difference(ours, theirs) == at


def test_only_the_converter_is_unpacked_and_only_from_the_reviewed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLDPRESS_CACHE", str(tmp_path))
    top = "llama_cpp_python-9.9"
    names = ["convert_hf_to_gguf.py", "conversion/base.py", "../../../evil", "src/llama.cpp"]
    sdist = tmp_path / "sdist" / f"{top}.tar.gz"
    sdist.parent.mkdir()
    with tarfile.open(sdist, "w:gz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(f"{top}/vendor/llama.cpp/{name}"))
    monkeypatch.setattr(upstream.libllama, "version", lambda: "9.9")
    tree = upstream.source_tree(None)
    found = sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file())
    assert found == ["conversion/base.py", "convert_hf_to_gguf.py"]
    shutil.rmtree(tree)
    monkeypatch.setitem(upstream.KNOWN_SDISTS, "9.9", "0" * 64)
    with pytest.raises(IntegrityError):
        upstream.source_tree(None)


def test_a_llama_cpp_folder_must_hold_the_converter(tmp_path: Path, model: Path) -> None:
    assert isinstance(error_of(model, ConvertOptions(llama_cpp=str(tmp_path))), UsageError)


def test_a_failing_converter_says_why_and_leaves_nothing(model: Path) -> None:
    edit_config(model, num_hidden_layers="two")
    error = error_of(model)
    assert isinstance(error, ToolError)


def test_a_hub_model_without_a_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ToolError, match="cannot reach the hub"):
        hub.resolve("coldpress-tests/no-such-model", None)


def test_a_path_that_does_not_exist_is_no_model() -> None:
    with pytest.raises(NotAModelError):
        hub.resolve("/no/such/folder", None)


def test_an_unknown_outtype_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        ConvertOptions(outtype="q4")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_a_name_that_is_a_path_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError):
        ConvertOptions(name=name)
