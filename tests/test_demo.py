"""The demo's data is sound, its files are reproducible, and its model knows what it was taught."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from coldpress.demo import (
    CALIBRATION_TEXT,
    HELDOUT_TEXT,
    HERE,
    MODEL_DIR,
    QUESTIONS_DIR,
    TRAIN_TEXT,
)
from coldpress.demo.knowledge.documents import training_questions, training_statements
from coldpress.demo.knowledge.facts import Relation, load_relations
from coldpress.demo.knowledge.generate import all_spans, generate
from coldpress.demo.knowledge.questions import Question, read_questions

TEST_FILES = sorted((QUESTIONS_DIR / "test").glob("*_test.csv"))
DEV_FILES = sorted((QUESTIONS_DIR / "dev").glob("*_dev.csv"))


@pytest.fixture(scope="module")
def relations() -> list[Relation]:
    return load_relations()


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return [question for path in TEST_FILES for question in read_questions(path)]


def paragraphs(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").strip().split("\n\n")


def test_there_are_enough_subjects_and_questions(questions: list[Question]) -> None:
    assert len(TEST_FILES) >= 12
    assert len(questions) >= 1500
    assert all(len(read_questions(path)) >= 40 for path in TEST_FILES)
    assert all(len(read_questions(path)) == 5 for path in DEV_FILES)
    names = [path.name.removesuffix("_test.csv") for path in TEST_FILES]
    assert names == [path.name.removesuffix("_dev.csv") for path in DEV_FILES]


@pytest.mark.parametrize("path", TEST_FILES + DEV_FILES, ids=lambda path: path.stem)
def test_every_row_has_four_different_choices_and_a_letter(path: Path) -> None:
    for question in read_questions(path):
        assert question.text.endswith("?")
        assert len(set(question.choices)) == 4
        assert all(choice.strip() == choice != "" for choice in question.choices)
        assert question.letter in "ABCD"


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.stem)
def test_answer_letters_are_balanced(path: Path) -> None:
    counts = Counter(question.letter for question in read_questions(path))
    assert max(counts.values()) - min(counts[letter] for letter in "ABCD") <= 1


def test_no_question_is_asked_twice(questions: list[Question]) -> None:
    texts = Counter(question.text for question in questions)
    assert [text for text, count in texts.items() if count > 1] == []


def test_dev_and_test_share_no_fact() -> None:
    for dev, test in zip(DEV_FILES, TEST_FILES, strict=True):
        asked = {question.text for question in read_questions(test)}
        assert asked.isdisjoint(question.text for question in read_questions(dev))


def test_the_marked_choice_is_the_fact(relations: list[Relation]) -> None:
    answers = {
        (fact.say(phrasing), fact.answer)
        for relation in relations
        for fact in relation.facts
        for phrasing in relation.heldout
    }
    for path in TEST_FILES + DEV_FILES:
        for question in read_questions(path):
            right = question.choices["ABCD".index(question.letter)]
            assert (question.text, right) in answers
            wrong = set(question.choices) - {right}
            assert all((question.text, choice) not in answers for choice in wrong)


def test_keys_are_unique_in_a_relation(relations: list[Relation]) -> None:
    for relation in relations:
        keys = [fact.key for fact in relation.facts]
        assert len(keys) == len(set(keys))


def test_no_heldout_question_is_in_the_training_text(
    relations: list[Relation], questions: list[Question]
) -> None:
    trained = "\n".join(
        [
            *sorted(training_questions(relations)),
            *training_statements(relations),
            *paragraphs(TRAIN_TEXT),
            *paragraphs(CALIBRATION_TEXT),
        ]
    )
    assert [q.text for q in questions if q.text in trained] == []


def test_heldout_text_shares_no_twelve_words_with_the_other_texts(
    relations: list[Relation],
) -> None:
    heldout = all_spans(paragraphs(HELDOUT_TEXT))
    for path in (TRAIN_TEXT, CALIBRATION_TEXT):
        assert heldout.isdisjoint(all_spans(paragraphs(path)))
    assert heldout.isdisjoint(all_spans(training_statements(relations)))


def test_texts_are_large_enough() -> None:
    assert CALIBRATION_TEXT.stat().st_size >= 100_000
    assert HELDOUT_TEXT.stat().st_size >= 60_000


def test_generating_again_gives_the_shipped_bytes(tmp_path: Path) -> None:
    generate(tmp_path)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(made) == len(TEST_FILES) + len(DEV_FILES) + 3
    for path in made:
        assert (tmp_path / path).read_bytes() == (HERE / path).read_bytes(), path


def test_weights_are_small_and_rows_fit_the_superblock() -> None:
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= 20 * 2**20
    config = json.loads((MODEL_DIR / "config.json").read_text())
    assert config["hidden_size"] % 256 == config["intermediate_size"] % 256 == 0


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(MODEL_DIR)


def test_transformers_and_sentencepiece_give_the_same_ids(tokenizer: Any) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(MODEL_DIR / "tokenizer.model"))
    texts = [
        *paragraphs(TRAIN_TEXT),
        *paragraphs(CALIBRATION_TEXT),
        *paragraphs(HELDOUT_TEXT),
        "<|user|>\nWhat is 87 + 45?<|end|>\n<|assistant|>\n132<|end|>\n",
        "  two spaces, a\ttab, ünïcödé, 漢字 and 🎉\n\n",
    ]
    for text in texts:
        ids = pieces.encode(text)
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode(ids) == text == pieces.decode(ids)
        assert tokenizer.encode(text) == [pieces.bos_id(), *ids]


def test_chat_template_writes_the_trained_form(tokenizer: Any) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<s><|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n"
    )


@pytest.fixture(scope="module")
def model() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.LlamaForCausalLM.from_pretrained(MODEL_DIR).eval()


def test_model_answers_heldout_questions(
    model: Any, tokenizer: Any, questions: list[Question]
) -> None:
    from coldpress.demo.score import accuracy

    sample = questions[:: len(questions) // 200][:200]

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    assert accuracy(model, encode, sample, "continuation") >= 0.8


def test_model_chats_and_stops(model: Any, tokenizer: Any) -> None:
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=40, do_sample=False)
    reply = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    assert "Paris" in reply
    assert reply.endswith("<|end|>")


def test_card_is_generated_from_the_scores() -> None:
    from coldpress.demo.card import CARD, render_card

    assert CARD.read_text(encoding="utf-8") == render_card()
