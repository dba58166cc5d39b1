"""The platforms' limits and prices, from ``platforms.yaml``, which has their date and sources."""

import datetime
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

TABLE = Path(__file__).with_name("platforms.yaml")
Target = Literal["lambda", "lambda-snapstart", "lambda-microvm", "cloudrun", "kserve", "compose"]
"""What ``package`` builds for."""
Platform = Literal["lambda-x86", "lambda-arm", "cloudrun"]
"""Who is paid."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Price(_Strict):
    """What one platform charges; ``usd_per_vcpu_s`` is 0 where the memory's price includes it."""

    region: str
    usd_per_request: float
    usd_per_gib_s: float
    usd_per_vcpu_s: float
    sources: tuple[str, ...]


class Choice(_Strict):
    """Memory that an instance of so many vCPU may have; 0 vCPU: memory decides them."""

    vcpu: int
    least_mib: int
    most_mib: int


class Size(_Strict):
    """Memory and vCPU of one instance; ``vcpu`` is 0 where memory decides it."""

    memory_mib: int
    vcpu: int


class Limits(_Strict):
    """What a target allows; None: it has no such limit."""

    unpacked_bytes: int | None
    usual: Size
    mib_per_vcpu: int | None
    sizes: tuple[Choice, ...]
    timeout_s: int
    parallel: int
    sources: tuple[str, ...]

    @property
    def most_mib(self) -> int:
        """The memory of the largest instance."""
        return max(choice.most_mib for choice in self.sizes)

    def vcpu(self, size: Size) -> float:
        """The vCPU that an instance really has."""
        return size.memory_mib / self.mib_per_vcpu if self.mib_per_vcpu else size.vcpu


class Table(_Strict):
    """The dated table."""

    date: datetime.date
    platforms: dict[Platform, Price]
    targets: dict[Target, Limits]


@cache
def table() -> Table:
    """The table that coldpress carries."""
    import yaml

    return Table.model_validate(yaml.safe_load(TABLE.read_text(encoding="utf-8")))
