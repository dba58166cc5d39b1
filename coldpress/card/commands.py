"""The commands that made an artifact, from its manifest and those of what it was made from.

An input that is an artifact is called by its stage, as the ``-o`` that made it; any other input is a name
in capitals, told by its digest.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coldpress.artifact import Manifest

_NAMES = {"source": "SOURCE", "gguf": "GGUF", "converter": "LLAMA_CPP"}


@dataclass
class Commands:
    """``lines`` in the order to run them; ``given``: (name in capitals, digest) of what they start from."""

    lines: list[str] = field(default_factory=list)
    given: list[tuple[str, str]] = field(default_factory=list)


def commands(manifest: Manifest, sources: Mapping[str, Manifest]) -> Commands:
    """Tell how an artifact was made.

    Args:
        sources: role → manifest of those inputs that are artifacts.
    """
    told = Commands()
    for role in ("source", "gguf", "calibration"):
        if role in sources:
            _tell(told, sources[role], {})
    _tell(told, manifest, {role: of.stage for role, of in sources.items()})
    return told


def _tell(told: Commands, manifest: Manifest, known: Mapping[str, str]) -> None:
    """Add one stage's command, with ``known`` names for the inputs that are told already."""
    names = {role: known.get(role) or _name(role) for role in manifest.inputs}
    told.given += [
        (names[role], digest)
        for role, digest in sorted(manifest.inputs.items())
        if role not in known and (names[role], digest) not in told.given
    ]
    words = ["coldpress", manifest.stage, *_words(manifest, names), "-o", manifest.stage]
    line = shlex.join(words)
    if line not in told.lines:
        told.lines.append(line)


def _name(role: str) -> str:
    return _NAMES.get(role, role.upper().replace(" ", "_"))


def _words(manifest: Manifest, names: Mapping[str, str]) -> list[str]:
    options, model = manifest.options, names.get("model", _name("model"))
    match manifest.stage:
        case "convert":
            outtype = None if options.get("outtype") == "bf16" else options.get("outtype")
            about = {"outtype": outtype, "llama-cpp": names.get("converter")}
            about |= {"pre-tokenizer": options.get("pre_tokenizer")}
            return [model, *_flags(about), *_flags({"revision": options.get("revision")})]
        case "calibrate":
            against = [names[role] for role in sorted(names) if role.startswith("against")]
            about = {"text": names.get("text"), "context": options.get("context")}
            about |= {"max-tokens": options.get("max_tokens"), "against": against}
            return [model, *_flags(about)]
        case "quantize" if options.get("format") == "gptq":
            about = {"format": "gptq", "bits": options.get("bits")}
            return [model, *_flags(about | {"calibration": names.get("calibration")})]
        case "quantize":
            return [names.get("source", _name("source")), *_flags(_quantize(options, names))]
        case _:
            return [names[role] for role in sorted(names)]


def _quantize(options: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    about = {name: options.get(name) for name in ("type", "size", "bpw", "fit", "context")}
    about |= {"min-tok-s": options.get("min_tok_s"), "calibration": names.get("calibration")}
    if "calibration" in names:
        about["rounding"] = options.get("rounding")
    return about | {"model": names.get("model"), "heal": bool(options.get("heal"))}


def _flags(about: Mapping[str, Any]) -> list[str]:
    """``--name value`` of what is there; a list repeats the flag, True is the flag alone."""
    words: list[str] = []
    for name, value in about.items():
        match value:
            case None | False:
                pass
            case True:
                words.append(f"--{name}")
            case list():
                words += [word for each in value for word in (f"--{name}", str(each))]
            case _:
                words += [f"--{name}", str(value)]
    return words
