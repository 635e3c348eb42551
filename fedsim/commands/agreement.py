"""The table that `fedsim validate` ends with, and the sentence under it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from fedsim.commands.comparing import Compared
from fedsim.statistics.agreement import FAMILY_ERROR


def agreement(rows: Sequence[Compared]) -> tuple[Table, str]:
    """A line for each quantity, and what they say together."""
    has_variants = any(row.variant is not None for row in rows)
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name in (*(["variant"] if has_variants else []), "policy", "quantity"):
        table.add_column(name, overflow="fold")
    for name in ("closed form", "simulated", "standard error", "z", "sees"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for row in rows:
        lead = [escape(row.variant or "")] if has_variants else []
        table.add_row(*lead, escape(row.policy), escape(quantity(row)), *_numbers(row), _verdict(row))
    return table, sentence(rows)


def quantity(row: Compared) -> str:
    """`n_contributors[layer 2] (devices)`."""
    about = "".join(f"[{name} {n}]" for name, n in (("layer", row.layer), ("device", row.device)) if n is not None)
    return f"{row.quantity}{about}" + ("" if row.unit == "1" else f" ({row.unit})")


def sentence(rows: Sequence[Compared]) -> str:
    """How many agree, how closely, and who does not."""
    compared = [row for row in rows if row.agrees is not None]
    refused = [row for row in compared if not row.agrees]
    n_open = len(rows) - len(compared)
    largest = max((abs(row.z) for row in compared if row.z is not None), default=0.0)
    open_ = f" {_quantities(n_open)} without a closed form." if n_open else ""
    if not compared:
        return f"Nothing was compared.{open_}"
    said = f"{len(compared) - len(refused)} of {_quantities(len(compared))} agree"
    chance = f"; were everything right, a refusal would come up once in {1 / FAMILY_ERROR:.0f} validations"
    if not refused:
        return f"{said}: the largest |z| is {largest:.2f}{chance}.{open_}"
    names = ", ".join(f"{row.policy} {quantity(row)}" for row in refused[:5])
    more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
    return f"{said}. These do not: {names}{more}{chance}.{open_}"


def _quantities(n: int) -> str:
    return f"{n} quantity" if n == 1 else f"{n} quantities"


def _numbers(row: Compared) -> list[str]:
    shown = [f"{value:.6g}" if value is not None else "" for value in (row.expected, row.simulated)]
    if row.agrees is None:
        return [shown[0], shown[1], "", "", ""]
    is_exact = row.z is None
    z = "exact" if is_exact else f"{row.z:+.2f}"
    sees = "" if is_exact or row.detectable_share is None else f"{100 * row.detectable_share:.2g} %"
    return [*shown, "0" if is_exact else f"{row.standard_error:.2g}", z, sees]


def _verdict(row: Compared) -> str:
    if row.no_closed_form is not None:
        return f"[dim]{escape(row.no_closed_form)}[/dim]"
    return "agrees" if row.agrees else "[bold red]DISAGREES[/bold red]"
