"""Evaluate a prefix with one of ggml's CPU backends, the one that a host with another CPU would take.

Run as a program, ``python -m coldpress.package.prefix_worker BACKEND GGUF TOKENS``: a process can
load one CPU backend only. TOKENS is a file with a JSON list. It prints the digest of the state and
ggml's list of features, or exits with 3 where the backend does not run on this CPU.
"""

import json
import sys
from pathlib import Path

from coldpress import libllama
from coldpress.package import prefix_state
from coldpress.serve import prefix
from coldpress.serve.mapping import load
from coldpress.serve.place import shards

REFUSED = 3


def main() -> int:
    """Evaluate and print one JSON line."""
    backend, gguf, tokens = map(Path, sys.argv[1:])
    if not libllama.register(backend):
        return REFUSED
    model = load(shards(gguf), str(gguf))
    state = prefix_state.evaluate(model, json.loads(tokens.read_bytes()))
    print(json.dumps({"digest": state.digest, "cpu": prefix.cpu()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
