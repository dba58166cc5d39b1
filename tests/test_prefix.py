"""The shipped system prompt: the same bits as reading it again, or not used."""

import json
import queue
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldpress import libllama
from coldpress.checkpoint import CheckpointOptions, checkpoint
from coldpress.errors import IntegrityError, UnsupportedModelError
from coldpress.package import prefix as build
from coldpress.serve import chat, loader, prefix
from coldpress.serve.engine import Engine, EngineOptions
from coldpress.serve.generation import Delta, Event
from coldpress.serve.model import CHUNK_TOKENS, Context, Model
from coldpress.serve.reply import Reply
from coldpress.serve.sampling import GenerateOptions
from coldpress.serve.trace import Trace
from tests import tiny_gguf, tiny_models

SYSTEM = tiny_models.own_text()[:1300]
ASKED = ["", "a", "the sea of " * 30, "x" * 119, "日本 " * 40]


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory, random_gguf: Path) -> Path:
    """A checkpoint at Q4_K_M without a prefix: the type whose kernels are the most particular."""
    folder = tmp_path_factory.mktemp("prefix")
    lib = libllama.load()
    params = lib.llama_model_quantize_default_params()
    params.ftype = 15
    source = str(random_gguf / "model.gguf").encode()
    assert lib.llama_model_quantize(source, str(folder / "q.gguf").encode(), params) == 0
    checkpoint(folder / "q.gguf", folder / "checkpoint", CheckpointOptions())
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def model(plain_folder: Path) -> Model:
    return loader.load(plain_folder / "model.gguf")
