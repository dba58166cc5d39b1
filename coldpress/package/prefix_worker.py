"""Evaluate a prefix with one of ggml's CPU backends, the one that a host with another CPU would take.

Run as a program, ``python -m coldpress.package.prefix_worker BACKEND GGUF TOKENS PROBE``: a process
can load one CPU backend only. TOKENS is a file with a JSON list, PROBE the digest that the first few
of them must give, as old instruction sets are slow and differ at once. It prints the digest of the
state and ggml's list of features, or nothing where the bits differ or this CPU cannot run the backend.
"""

import json
import sys
from pathlib import Path

from coldpress import libllama
from coldpress.package import prefix_state
from coldpress.serve import prefix
from coldpress.serve.mapping import load
from coldpress.serve.place import shards


def main() -> None:
    """Evaluate and print one JSON line."""
    backend, gguf, listed = map(Path, sys.argv[1:4])
    if not libllama.register(backend):
        return
    model = load(shards(gguf), str(gguf))
    tokens = json.loads(listed.read_bytes())
    if prefix_state.probe(model, tokens) != sys.argv[4]:
        return
    digest = prefix_state.evaluate(model, tokens).digest
    print(json.dumps({"digest": digest, "cpu": prefix.cpu()}))


if __name__ == "__main__":
    main()
