"""Hold an image against every rule of the platforms it is for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from coldpress import progress
from coldpress.errors import GateError, UsageError, one_line
from coldpress.package.lint import file_rules, form_rules, image, start_rules
from coldpress.package.lint.rule import Host, Rule, Severity, Subject
from coldpress.package.lint.scan import scan
from coldpress.package.stores import Store, open_store

RULES: tuple[Rule, ...] = tuple(
    value
    for module in (form_rules, file_rules, start_rules)
    for value in vars(module).values()
    if isinstance(value, Rule)
)


@dataclass(frozen=True)
class LintOptions:
    """``target`` is the platform, by default both; ``limit_bytes`` replaces its unpacked size."""

    target: Host | None = None
    limit_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.target is not None and self.target not in get_args(Host):
            raise UsageError(f"no target {self.target!r}", f"one of: {', '.join(get_args(Host))}")
        if self.limit_bytes is not None and self.limit_bytes <= 0:
            raise UsageError(f"limit_bytes is {self.limit_bytes}", "give a positive number")


@dataclass(frozen=True)
class Finding:
    """A broken rule: what it says, for which platforms, and where it is broken."""

    rule: str
    severity: Severity
    targets: tuple[Host, ...]
    sentence: str
    where: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Linted:
    """What was found in an image; ``unpacked_bytes`` counts the files of all layers."""

    path: str
    holds: bool
    n_rules: int
    n_layers: int
    n_entries: int
    unpacked_bytes: int
    findings: tuple[Finding, ...]


def lint(source: Path | Store, options: LintOptions | None = None) -> Linted:
    """Check an image without unpacking it.

    Args:
        source: an OCI layout, an OCI archive, what `docker save` wrote, or an image's files.

    Raises:
        InputError: there is no image, or a part of it is missing.
    """
    options = options or LintOptions()
    store = open_store(source) if isinstance(source, Path) else source
    read = image.read(store)
    sizes = [store.size_bytes(layer.place) or 0 for layer in read.layers]
    with progress.task("reading the layers", sum(sizes)) as tick:
        scanned = scan(store, read, tick)
    subject = Subject(read, scanned, options.limit_bytes)
    targets = (options.target,) if options.target else get_args(Host)
    findings = [finding for rule in RULES for finding in _check(rule, subject, targets)]
    return Linted(
        path=store.name,
        holds=all(it.severity == "warning" for it in findings),
        n_rules=len(RULES),
        n_layers=len(read.layers),
        n_entries=scanned.rootfs.count,
        unpacked_bytes=scanned.file_bytes,
        findings=tuple(sorted(findings, key=lambda it: (it.severity, it.rule))),
    )


def enforce(linted: Linted) -> None:
    """Raise when a rule of severity error is broken.

    Raises:
        GateError: naming the rules.
    """
    broken = [it.rule for it in linted.findings if it.severity == "error"]
    if broken:
        raise GateError(
            f"{linted.path} breaks {len(broken)} of {linted.n_rules} rules: {', '.join(broken)}",
            "mend the image; each finding names its source",
        )


def lines(linted: Linted) -> list[str]:
    """What was found, for people."""
    shown = []
    for it in linted.findings:
        shown.append(f"  {it.severity:<8}{it.rule} ({', '.join(it.targets)}): {it.sentence}")
        shown += [f"          {where}" for where in it.where]
        shown.append(f"          see {it.source}")
    verdict = "holds" if linted.holds else "does not hold"
    shown.append(
        f"  {linted.path} {verdict}: {linted.n_rules} rules, {linted.n_layers} layers,"
        f" {linted.n_entries:,} entries, {linted.unpacked_bytes:,} bytes unpacked"
    )
    return shown


def _check(rule: Rule, subject: Subject, targets: Sequence[Host]) -> list[Finding]:
    """One finding per rule, of its gravest severity among the platforms."""
    broken: dict[Host, tuple[str, ...]] = {}
    for target in targets:
        if target in rule.severities and (where := tuple(rule.check(subject, target))):
            broken[target] = where
    if not broken:
        return []
    severity: Severity = min(rule.severities[target] for target in broken)
    where = tuple(dict.fromkeys(one_line(it) for found in broken.values() for it in found))
    return [Finding(rule.id, severity, tuple(broken), rule.sentence, where, rule.source)]
