"""What the platforms allow: the size of an image, and an instance that holds a model."""

from coldpress.errors import TooLargeError
from coldpress.platforms import Limits, Size, Target, table

_MIB = 1 << 20


def image_bytes(target: Target) -> int | None:
    """The largest unpacked image, or none where the platform sets no limit."""
    return table().targets[target].unpacked_bytes


def instance(target: Target, needed_bytes: int, memory_mib: int | None) -> Size:
    """Choose an instance for a model.

    Args:
        needed_bytes: of weights and ``memory.Memory.needed_bytes``.
        memory_mib: the caller's choice; by default the usual size of the platform, or more.

    Raises:
        TooLargeError: no instance of the platform holds it, or the chosen memory does not.
    """
    limits = table().targets[target]
    needed = -(-needed_bytes // _MIB)
    memory = max(limits.usual.memory_mib, needed) if memory_mib is None else memory_mib
    if memory > limits.most_mib or needed > memory:
        raise TooLargeError(
            f"the model needs {needed} MiB of memory; {target} is given"
            f" {min(memory, limits.most_mib)} MiB",
            f"a smaller type, or more memory ({target} has up to {limits.most_mib} MiB)",
        )
    return _smallest(limits, memory)


def _smallest(limits: Limits, memory_mib: int) -> Size:
    """The least memory that there is from here on, with the usual number of vCPUs or what it allows."""
    choices = [choice for choice in limits.sizes if memory_mib <= choice.most_mib]
    memory = min(max(memory_mib, choice.least_mib) for choice in choices)
    allowed = [choice.vcpu for choice in choices if choice.least_mib <= memory]
    vcpu = min((n for n in allowed if n >= limits.usual.vcpu), default=max(allowed))
    return Size(memory_mib=memory, vcpu=vcpu)
