"""Run llama.cpp's converter with the BPE pre-tokenizer already decided.

    python run_upstream.py CONVERT_HF_TO_GGUF.PY PRE_TOKENIZER ARGUMENT...

The converter recognises a pre-tokenizer by a hash over token ids, which no retrained vocabulary
matches, and has no option for it. This program replaces that one method and then runs the converter
unchanged. It is a process of its own because PYTHONPATH must lead to the converter's gguf package,
not to the installed one.
"""

import runpy
import sys
from pathlib import Path


def main() -> None:
    """Replace the method, then hand over to the converter's own command line."""
    script, pre_tokenizer, *arguments = sys.argv[1:]
    sys.path[0] = str(Path(script).parent)  # As if that script had been started, not this one.
    from conversion.base import TextModel  # type: ignore[import-not-found]  # the converter's, on PYTHONPATH

    TextModel.get_vocab_base_pre = lambda _model, _tokenizer: pre_tokenizer
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
