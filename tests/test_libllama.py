"""The door to llama.cpp: its functions without what its package imports, and the package whole after."""

import importlib.metadata
import subprocess
import sys

from coldpress import libllama


def test_its_version_is_the_distributions() -> None:
    assert libllama.version() == importlib.metadata.version("llama-cpp-python")


def test_the_functions_come_alone_and_the_package_whole() -> None:
    code = """
import sys
from coldpress import libllama
lib = libllama.load()
assert lib.llama_vocab_n_tokens and libllama.load() is lib
print(*sorted({"numpy", "jinja2", "diskcache", "llama_cpp"} & set(sys.modules)))
import llama_cpp
assert llama_cpp.llama_cpp is lib and llama_cpp.Llama.__module__ == "llama_cpp.llama"
assert llama_cpp.llama_decode is lib.llama_decode
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_package_imported_before_is_used() -> None:
    code = """
import llama_cpp
from coldpress import libllama
assert libllama.load() is llama_cpp.llama_cpp
"""
    subprocess.run([sys.executable, "-c", code], check=True)
