"""What a file is, told from its path and its first bytes."""

import re
import struct

HEAD_BYTES = 64 << 10
_PEM_NAME = re.compile(r"(^|/)(id_(rsa|dsa|ecdsa|ed25519)|[^/]+\.(pem|key))$")
_PEM = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----")
# Name → what must be inside, so that an empty or a sample file is none.
_SECRET_FILES = {
    re.compile(r"(^|/)\.env(\.(local|prod|production))?$"): re.compile(
        rb"(?im)^\s*(export\s+)?\w*(KEY|TOKEN|SECRET|PASSWORD)\w*\s*=\s*['\"]?[^\s'\"]"
    ),
    re.compile(r"(^|/)\.aws/credentials$"): re.compile(rb"aws_secret_access_key"),
    re.compile(r"(^|/)\.docker/config\.json$"): re.compile(rb"\"(auth|identitytoken)\""),
    re.compile(r"(^|/)\.netrc$"): re.compile(rb"password"),
    re.compile(r"(^|/)\.git-credentials$"): re.compile(rb"://[^/\s]+@"),
    re.compile(r"(^|/)\.pypirc$"): re.compile(rb"password"),
    re.compile(r"(^|/)\.npmrc$"): re.compile(rb"_authToken"),
    re.compile(r"(^|/)\.?huggingface/token$"): re.compile(rb"\w"),
    re.compile(r"application_default_credentials\.json$"): re.compile(
        rb"refresh_token|private_key"
    ),
}
# Words that a text must have before the slower form is tried.
_TOKENS = {
    "a Hugging Face token": (b"hf_", re.compile(rb"\bhf_[A-Za-z0-9]{34}\b")),
    # Amazon's own documentation, and so botocore, has keys that end in EXAMPLE.
    "an AWS access key": (b"AKIA", re.compile(rb"\bAKIA(?!\w{9}EXAMPLE)[A-Z0-9]{16}\b")),
    "a GitHub token": (b"ghp_", re.compile(rb"\bghp_[A-Za-z0-9]{36}\b")),
}
# Installed packages ship keys, public tokens (transformers) and pickles (joblib) for their own tests.
_SHIPPED_TEST = re.compile(
    r"(site-packages|dist-packages|node_modules|lib/python3[^/]*)/(.*/)?"
    r"((tests?|testing|test_?data)/|(test|testing)_[^/]*$)"
)
_PICKLE_NAME = re.compile(r"\.(pkl|pickle|pt|pth|ckpt|joblib)$|(^|/)pytorch_model[^/]*\.bin$")
_PICKLE = re.compile(rb"\x80[\x02-\x05]")


def secret(path: str, head: bytes) -> str | None:
    """What secret a file holds."""
    if _SHIPPED_TEST.search(path):
        return None
    for found in tokens(head):
        return found
    if _PEM_NAME.search(path) and _PEM.search(head):
        return "a private key"
    for name, inside in _SECRET_FILES.items():
        if name.search(path) and inside.search(head):
            return "credentials"
    return None


def tokens(data: bytes) -> list[str]:
    """What access tokens there are in a text."""
    return [what for what, (hint, form) in _TOKENS.items() if hint in data and form.search(data)]


def is_pickle(path: str, head: bytes) -> bool:
    """Whether a file is a model that is loaded by running what it says; torch zips its pickles."""
    if not _PICKLE_NAME.search(path) or _SHIPPED_TEST.search(path):
        return False
    return bool(_PICKLE.match(head)) or (head[:2] == b"PK" and b"data.pkl" in head)


def elf(head: bytes) -> tuple[int, int, int] | None:
    """Class in bits, machine and type of an ELF file."""
    if head[:4] != b"\x7fELF" or len(head) < 20 or head[4] not in (1, 2) or head[5] not in (1, 2):
        return None
    kind, machine = struct.unpack_from("<HH" if head[5] == 1 else ">HH", head, 16)
    return 32 * head[4], machine, kind


def interpreter(head: bytes) -> str:
    """The program in a script's first line."""
    if head[:2] != b"#!":
        return ""
    words = head[2:256].partition(b"\n")[0].split()
    return words[0].decode("utf-8", "replace") if words else ""
