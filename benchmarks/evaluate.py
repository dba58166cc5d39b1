"""How far our evaluator is from transformers and llama.cpp, and what sharing saves: ``reports/evaluate.json``.

``python -m benchmarks.evaluate`` needs ../shared/data: MMLU, WikiText-2, a trained tiny Llama, and a tokenizer of
32,000 pieces, which a random model of one small layer wears. ``--mmlu`` adds the whole of MMLU on the demo model.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import judge
from benchmarks.conditions import conditions
from benchmarks.second_model import SHARED
from coldpress import demo
from coldpress.convert import ConvertOptions, convert
from coldpress.evaluate import EvaluateOptions, evaluate, mmlu, questions, result
from coldpress.evaluate.libllama_lm import LibllamaLM
from coldpress.evaluate.questions import Subject
from coldpress.evaluate.session import MAX_SEQUENCES, open_context, open_model
from coldpress.quantize import QuantizeOptions, quantize

REPORT = Path(__file__).resolve().parents[1] / "reports/evaluate.json"
MMLU, WIKITEXT = SHARED / "mmlu", SHARED / "wikitext2/wiki.test.raw"
N_CTX, CHUNK, N_CHUNKS = 4096, 512, 200
# Sharing saves of their tokens what it saves of all of MMLU's, 7.1 times.
WALL_SUBJECTS = ("business_ethics", "college_computer_science")
_TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
# Layers as of Llama-3.2-1B, a few of them: in narrower models attention takes what weights take in real ones. Of
# 110 M parameters, 12 layers of 768, sharing saved 5.6 times the seconds.
_LAYERS_OF_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
DEFINITIONS = {
    "max_loglikelihood_diff_vs_transformers": "nats, over the four letters of 200 MMLU questions without examples,"
    " F32 GGUF of stories260K in profile exact against lm-eval's hf model in float32, which writes its softmax"
    " out as we do (eager); transformers' own distance from its float64 is beside it in loglikelihoods",
    "mmlu_5shot_tokens": "decoded for all 14,042 questions with five examples, 32,000-piece tokenizer",
    "mmlu_wall_ratio_vs_one_pass_per_question": "seconds of one whole prompt per question over ours, same"
    f" library, {_LAYERS_OF_1B['num_hidden_layers']} random layers of Llama-3.2-1B's dimensions at Q8_0,"
    f" {', '.join(WALL_SUBJECTS)}",
    "perplexity_rel_diff_vs_llama_perplexity": f"first {N_CHUNKS} chunks of {CHUNK} of WikiText-2 test,"
    " demo model",
    "kl_rel_diff_vs_llama_perplexity": "the same chunks, Q3_K against bf16: the larger of the mean's and the"
    " median's relative difference",
    "kl_base_file_ratio": "bytes of llama-perplexity's logits file over our base file's, 32,000 pieces",
}


def short_questions(per_subject: int, n_subjects: int) -> list[Subject]:
    """Questions that fit into the 512 tokens of the tiny Llama."""
    found = []
    for subject in questions.read(MMLU):
        fitting = [q for q in subject.test if len(q.question) + sum(map(len, q.choices)) < 400]
        if len(fitting) >= per_subject and len(found) < n_subjects:
            found.append(Subject(subject.name, tuple(fitting[:per_subject]), subject.dev))
    return found


def loglikelihoods(work: Path) -> dict[str, Any]:
    """Ours against lm-eval's own model on transformers."""
    from lm_eval.models.huggingface import HFLM

    model = SHARED / "models/stories260K"
    convert(model, work / "stories", ConvertOptions(outtype="f32", verify=False))
    subjects = short_questions(4, 50)
    with (
        open_model(work / "stories/model.gguf") as opened,
        open_context(opened, n_cells=1024, threads=2, n_sequences=MAX_SEQUENCES) as context,
    ):
        lm = LibllamaLM(opened, context, 512)
        ours = [sample for each in subjects for sample in mmlu.ask(lm, each, "letter", 0)]
    peers = {"eager": "float32", "sdpa": "float32", "float64": "float64"}
    asked = {}
    for name, dtype in peers.items():
        attention = "sdpa" if name == "sdpa" else "eager"
        peer = HFLM(
            pretrained=str(model),
            device="cpu",
            dtype=dtype,
            batch_size=1,
            attn_implementation=attention,
        )
        asked[name] = [sample for each in subjects for sample in mmlu.ask(peer, each, "letter", 0)]
    theirs = asked["eager"]

    def furthest(a: Sequence[mmlu.Sample], b: Sequence[mmlu.Sample]) -> float:
        x, y = (np.array([sample.log_likelihoods for sample in of]) for of in (a, b))
        return float(np.abs(x - y).max())

    return {
        "n_questions": len(ours),
        "max_difference_nats": furthest(ours, theirs),
        "max_difference_from_sdpa_nats": furthest(ours, asked["sdpa"]),
        "max_difference_from_float64_nats": furthest(ours, asked["float64"]),
        "max_difference_of_transformers_from_its_float64_nats": furthest(theirs, asked["float64"]),
        "accuracy": [mmlu.accuracy(of).accuracy for of in (ours, theirs)],
        "answered_alike": sum(x.correct == y.correct for x, y in zip(ours, theirs, strict=True)),
    }


def random_32k(work: Path, name: str, sizes: dict[str, int]) -> Path:
    """A random Llama with a tokenizer of 32,000 pieces, in the folder ``name``; its bf16 GGUF."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = work / name
    config = LlamaConfig(
        vocab_size=32000, max_position_embeddings=N_CTX, tie_word_embeddings=True, **sizes
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    source = SHARED / "tokenizers/mistral/tokenizer.model.v1"
    (folder / "tokenizer.model").write_bytes(source.read_bytes())
    convert(folder, work / f"{name}-gguf", ConvertOptions(verify=False))
    return work / f"{name}-gguf/model.gguf"


def walls(work: Path) -> dict[bool, tuple[int, float]]:
    """Tokens and seconds of the same questions with (True) and without shared beginnings."""
    random_32k(work, "layers", _LAYERS_OF_1B)
    quantize(work / "layers-gguf", work / "layers-q8", QuantizeOptions(type="Q8_0"))
    few = [each for each in questions.read(MMLU) if each.name in WALL_SUBJECTS]
    model = work / "layers-q8/model.gguf"
    # Imports and the file's first reading belong to neither.
    mmlu_tokens(model, [replace(few[0], test=few[0].test[:1])], share=True)
    return {share: mmlu_tokens(model, few, share=share) for share in (True, False)}


def mmlu_tokens(gguf: Path, subjects: Sequence[Subject], *, share: bool) -> tuple[int, float]:
    """Tokens decoded and seconds for subjects with five examples."""
    with (
        open_model(gguf) as model,
        open_context(
            model,
            n_cells=N_CTX + 256,
            threads=2,
            profile="fast",
            n_sequences=MAX_SEQUENCES,
        ) as context,
    ):
        lm = LibllamaLM(model, context, N_CTX, share=share)
        began = time.perf_counter()
        for subject in subjects:
            mmlu.ask(lm, subject, "letter", 5)
        return context.n_decoded, time.perf_counter() - began


def text_measures(work: Path) -> dict[str, Any]:
    """Perplexity and KL of the demo model on WikiText-2, ours and llama-perplexity's."""
    convert(demo.MODEL_DIR, work / "demo", ConvertOptions(verify=False))
    quantize(work / "demo", work / "q3", QuantizeOptions(type="Q3_K"))
    options = EvaluateOptions(scoring=(), speed=False, chunk_tokens=CHUNK, n_chunks=N_CHUNKS)
    evaluate(work / "demo", work / "e-base", options, text=WIKITEXT)
    evaluate(work / "q3", work / "e-q3", options, text=WIKITEXT, base=work / "e-base")
    base = work / "logits.bin"
    judge.write_base(work / "demo/model.gguf", WIKITEXT, base, CHUNK, N_CHUNKS)
    theirs = judge.judge(work / "q3/model.gguf", base, CHUNK)
    ours = result.read(work / "e-q3")
    assert ours.kl is not None and ours.perplexity is not None
    pairs = {
        "perplexity": (ours.perplexity.value, theirs.perplexity),
        "kl_mean": (ours.kl.mean, theirs.kl),
        "kl_median": (ours.kl.median, theirs.kl_median),
        "kl_p99": (ours.kl.p99, theirs.kl_p99),
        "same_top1": (ours.kl.same_top1, theirs.same_top1),
    }
    return {
        name: {"ours": a, "llama_perplexity": b, "relative_difference": abs(a - b) / b}
        for name, (a, b) in pairs.items()
    }


def base_files(gguf: Path, work: Path) -> dict[str, int]:
    """Bytes that each keeps of a base, for 32,000 pieces."""
    chunks = 4
    options = EvaluateOptions(scoring=(), speed=False, chunk_tokens=CHUNK, n_chunks=chunks)
    evaluate(gguf, work / "e-32k", options, text=WIKITEXT)
    judge.write_base(gguf, WIKITEXT, work / "logits-32k.bin", CHUNK, chunks)
    return {
        "ours_bytes": (work / "e-32k/kl-base.npz").stat().st_size,
        "llama_perplexity_bytes": (work / "logits-32k.bin").stat().st_size,
    }


def whole_mmlu(out: Path) -> dict[str, Any]:
    """All of MMLU on the demo model, five examples each; an interrupted run goes on.

    Its 4,096 pieces make long prompts; positions beyond its training count as any others.
    """
    convert_out = out / "bf16"
    if not convert_out.is_dir():
        convert(demo.MODEL_DIR, convert_out, ConvertOptions(verify=False))
    options = EvaluateOptions(profile="fast", scoring=("letter",), n_ctx=8192, speed=False)
    began = time.perf_counter()
    evaluate(convert_out, out / "mmlu", options, questions=MMLU)
    found = result.read(out / "mmlu").questions["letter"]
    return {
        "n": found.n,
        "accuracy": found.accuracy,
        "stderr": found.stderr,
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    """Measure and write the report."""
    known = json.loads(REPORT.read_text()) if REPORT.is_file() else {}
    if "--mmlu" in sys.argv:
        out = Path(__file__).resolve().parents[1] / "runs/evaluate"
        known["whole_mmlu_demo"] = whole_mmlu(out)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            work = Path(scratch)
            likelihoods, texts = loglikelihoods(work), text_measures(work)
            tiny = random_32k(work, "tiny", _TINY)
            everything = questions.read(MMLU)
            tokens, seconds = mmlu_tokens(tiny, everything, share=True)
            timed = walls(work)
            bases = base_files(tiny, work)
        known |= {
            "headline": {
                "max_loglikelihood_diff_vs_transformers": likelihoods["max_difference_nats"],
                "mmlu_5shot_tokens": tokens,
                "mmlu_wall_ratio_vs_one_pass_per_question": timed[False][1] / timed[True][1],
                "perplexity_rel_diff_vs_llama_perplexity": texts["perplexity"][
                    "relative_difference"
                ],
                "kl_rel_diff_vs_llama_perplexity": max(
                    texts[name]["relative_difference"] for name in ("kl_mean", "kl_median")
                ),
                "kl_base_file_ratio": bases["llama_perplexity_bytes"] / bases["ours_bytes"],
            },
            "definitions": DEFINITIONS,
            "conditions": {**conditions("python -m benchmarks.evaluate"), "judge": judge.COMMAND},
            "loglikelihoods": likelihoods,
            "mmlu": {
                "n": sum(len(each.test) for each in everything),
                "seconds_of_the_tiny_model": seconds,
                "subset_tokens_and_seconds": {"shared": timed[True], "one_pass": timed[False]},
            },
            "text": texts,
            "base_files": bases,
        }
    REPORT.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
