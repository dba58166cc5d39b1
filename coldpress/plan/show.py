"""A plan as a table: each figure with how far it may be off."""

from coldpress.plan.stage import Figure, Planned


def lines(planned: Planned) -> list[str]:
    """The rows as aligned columns, then what does not fit and why, and what the figures rest on."""
    head = (
        "file",
        "target",
        "size",
        "memory",
        "instance",
        "cold start",
        "tok/s",
        "request",
        "month",
    )
    rows = [head]
    rows += [
        (
            row.variant,
            row.target,
            _with_error(row.size_bytes, 1e6, " MB", 2),
            _with_error(row.resident_mib, 1, " MiB", 0),
            f"{row.memory_mib:,} MiB, {row.vcpu:.3g} vCPU" if row.memory_mib else "too large",
            _with_error(row.cold_start_s, 1, " s", 1),
            _with_error(row.tok_per_s, 1, "", 1),
            _with_error(row.usd_per_request, 1, " USD", 6),
            _with_error(row.usd_per_month, 1, " USD", 2),
        )
        for row in planned.rows
    ]
    used = [i for i in range(len(head)) if i < 5 or any(row[i] != "–" for row in rows[1:])]
    widths = {i: max(len(row[i]) for row in rows) for i in used}
    shown = ["  ".join(row[i].ljust(widths[i]) for i in used).rstrip() for row in rows]
    for row in planned.rows:
        if row.problem:
            shown.append(f"{row.variant} on {row.target}: {row.problem}; instead: {row.instead}")
    shown.append(
        f"A context of {planned.context} tokens; limits and prices of {planned.prices_of};"
        f" speed of {planned.rates_of}. ± is how far a figure may be off."
    )
    return shown


def _with_error(figure: Figure | None, unit: float, name: str, digits: int) -> str:
    if figure is None:
        return "–"
    error = f" ±{figure.error_pct:.0f} %" if figure.error_pct else ""
    return f"{figure.value / unit:,.{digits}f}{name}{error}"
