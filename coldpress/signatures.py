"""Sign a statement with a local key, as Sigstore's tools keep it: a DSSE envelope in a bundle.

The bundle says which key it was by a digest of its public half; no certificate, no log and no network
take part. Signatures are deterministic, so that signing twice gives the same bytes.

Source: DSSE 1.0.2, github.com/secure-systems-lab/dsse/blob/master/protocol.md; Sigstore bundle 0.3,
docs.sigstore.dev/about/bundle; RFC 6979 (deterministic ECDSA).
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.errors import InputError, SignatureError, ToolError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_MAX_KEY_BYTES = 1 << 16
_MAX_BUNDLE_BYTES = 64 << 20
_MAKE = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
_PUBLISH = "openssl ec -in key.pem -pubout -out key.pub"


def sign(payload: bytes, key: Path) -> bytes:
    """Sign a statement; return the bundle.

    Args:
        key: an EC private key as PEM (P-256, P-384 or P-521), not encrypted.

    Raises:
        InputError: it is no such key.
        ToolError: cryptography is not installed.
    """
    _need_cryptography()
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(_read(key, _MAX_KEY_BYTES), password=None)
    except TypeError as error:
        raise InputError(
            f"{key} is encrypted", "decrypt it: openssl ec -in KEY -out KEY"
        ) from error
    except ValueError as error:
        raise InputError(f"{key} is no private key in PEM", _MAKE) from error
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise InputError(f"{key} is no EC key", _MAKE)
    public = private.public_key()
    method = ec.ECDSA(_hash(public, key), deterministic_signing=True)
    signature = private.sign(_encoded(payload), method)
    bundle = {
        "mediaType": _BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": _hint(public)}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(bundle, sort_keys=True).encode() + b"\n"


def opened(bundle: Path, public_key: Path) -> bytes:
    """The statement in a bundle, proven to be signed with this key.

    Raises:
        SignatureError: another key has signed it, or it was changed afterwards.
        InputError: there is no bundle, or the key is no EC public key.
        ToolError: cryptography is not installed.
    """
    _need_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec

    public = _public(public_key)
    try:
        found = json.loads(_read(bundle, _MAX_BUNDLE_BYTES))
        if found["mediaType"] != _BUNDLE_TYPE:
            raise ValueError(f"it is a {str(found['mediaType'])[:80]}")
        payload, signature = _envelope(found["dsseEnvelope"])
        hint = str(found["verificationMaterial"]["publicKey"]["hint"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SignatureError(
            f"{bundle} is no signature made with a key: {error}", "sign it again"
        ) from error
    if hint != _hint(public):
        raise SignatureError(
            f"{bundle} is signed with another key than {public_key}",
            "give the key of who signed it; if that is this one, do not use the files",
        )
    try:
        public.verify(signature, _encoded(payload), ec.ECDSA(_hash(public, public_key)))
    except InvalidSignature as error:
        raise SignatureError(
            f"{bundle} was changed after it was signed", "do not use it; fetch it again"
        ) from error
    return payload


def statement(payload: bytes, predicate_type: str, where: str) -> dict[str, Any]:
    """Read an in-toto statement of one kind.

    Raises:
        SignatureError: it is something else.
    """
    try:
        found = json.loads(payload)
        kind = found["_type"], found["predicateType"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SignatureError(f"{where} holds no statement", "sign it again") from error
    if kind != (STATEMENT_TYPE, predicate_type):
        raise SignatureError(f"{where} is a statement of {str(kind[1])[:100]!r}", "sign it again")
    return dict(found)


def _envelope(envelope: dict[str, Any]) -> tuple[bytes, bytes]:
    (signed,) = envelope["signatures"]
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise ValueError(f"its payload is a {str(envelope['payloadType'])[:80]}")
    payload = base64.b64decode(envelope["payload"], validate=True)
    return payload, base64.b64decode(signed["sig"], validate=True)


def _encoded(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is really signed."""
    return b"DSSEv1 %d %s %d %s" % (
        len(PAYLOAD_TYPE),
        PAYLOAD_TYPE.encode(),
        len(payload),
        payload,
    )


def _public(path: Path) -> "ec.EllipticCurvePublicKey":
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        found = load_pem_public_key(_read(path, _MAX_KEY_BYTES))
    except ValueError as error:
        raise InputError(f"{path} is no public key in PEM", _PUBLISH) from error
    if not isinstance(found, ec.EllipticCurvePublicKey):
        raise InputError(f"{path} is no EC key", _PUBLISH)
    return found


def _hint(public: "ec.EllipticCurvePublicKey") -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _hash(public: "ec.EllipticCurvePublicKey", path: Path) -> Any:
    """The hash that goes with a curve."""
    from cryptography.hazmat.primitives import hashes

    match public.curve.name:
        case "secp256r1":
            return hashes.SHA256()
        case "secp384r1":
            return hashes.SHA384()
        case "secp521r1":
            return hashes.SHA512()
        case other:
            raise InputError(f"{path} has the curve {other}", _MAKE)


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "check the path") from error
    if len(data) > limit:
        raise InputError(f"{path} has more than {limit:,} bytes", "check the path")
    return data


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise ToolError("cryptography is not installed", "pip install 'coldpress[sign]'") from error
