"""What the platforms allow, and the memory that a model needs on them."""

from dataclasses import dataclass
from typing import Literal, assert_never

from coldpress.errors import TooLargeError

Target = Literal["lambda", "cloudrun"]

# AWS writes "10 GB uncompressed" without saying which GB. The smaller reading fails here, in a
# second, what the larger one would let fail after a long upload.
LAMBDA_IMAGE_BYTES = 10_000_000_000
_LAMBDA_MIB = (128, 10_240)
# New accounts get no more; a function this size also has 1.7 vCPU (one per 1,769 MB).
_LAMBDA_COMMON_MIB = 3008
# vCPU → most MiB; with 4 vCPU or more Cloud Run asks for at least 2 GiB.
_CLOUDRUN_MIB = {4: 16_384, 8: 32_768}
_CLOUDRUN_LEAST_MIB = 2048
# Python, libraries, KV cache and compute buffers of the default context.
_RUNTIME_MIB = 512


@dataclass(frozen=True)
class Size:
    """Memory and vCPU of one instance; ``vcpu`` is 0 where memory decides it."""

    memory_mib: int
    vcpu: int


def image_bytes(target: Target) -> int | None:
    """The largest unpacked image, or none where the platform sets no limit."""
    match target:
        case "lambda":
            return LAMBDA_IMAGE_BYTES
        case "cloudrun":
            return None
        case _:
            assert_never(target)


def instance(target: Target, weights_bytes: int, memory_mib: int | None) -> Size:
    """Choose an instance for a model.

    Args:
        memory_mib: the caller's choice; by default the common size of the platform, or more.

    Raises:
        TooLargeError: no instance of the platform holds it, or the chosen memory does not.
    """
    needed = -(-weights_bytes // (1 << 20)) + _RUNTIME_MIB
    match target:
        case "lambda":
            most, common = _LAMBDA_MIB[1], _LAMBDA_COMMON_MIB
        case "cloudrun":
            most, common = max(_CLOUDRUN_MIB.values()), _CLOUDRUN_LEAST_MIB
        case _:
            assert_never(target)
    memory = max(common, needed) if memory_mib is None else memory_mib
    if memory > most or needed > memory:
        raise TooLargeError(
            f"the model needs {needed} MiB of memory; {target} is given {min(memory, most)} MiB",
            f"a smaller type, or more memory ({target} has up to {most} MiB)",
        )
    if target == "lambda":
        return Size(memory, 0)
    return Size(memory, next(cpu for cpu, top in _CLOUDRUN_MIB.items() if memory <= top))
