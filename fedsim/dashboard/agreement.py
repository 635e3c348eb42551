"""The report's answer to "Does it agree with theory?": a sentence, a table, and why the rest has no closed form.

Words and markup only; what agrees is decided in `fedsim.statistics.agreement`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor, log10

from fedsim.dashboard.markup import details, download, paragraph, swatch, table, text
from fedsim.dashboard.palette import Styles
from fedsim.statistics.agreement import FAMILY_ERROR, Agreement, threshold
from fedsim.statistics.summary import as_csv
from fedsim.statistics.words import listed

NOTHING_EXPECTED = "These runs hold no closed forms (expected.json). Run the scenario again (--again) to have them."
_NOTE = (
    "Each closed form is that of the fleets which were drawn; nothing is fitted. The standard error is that of the "
    "simulated mean over rounds. z is the difference in standard errors, or what is as unlikely for rare events and "
    "skewed sums; a quantity that does not vary must be equal to nine digits. Of layers, the one furthest off is "
    "shown; local steps and single devices, which these tables do not hold, are compared by fedsim validate. A run that ended at a time counts only as many rounds as were sure to be over by then: the round that time "
    "cuts off is longer than most."
)
_CAPTION = "Means over rounds, all seeds together, beside their closed forms"
_PINNED = "The same in every round of a seed"
_WORDS = {
    "round_s": "round time",
    "n_contributions": "contributions",
    "staleness": "staleness of a contribution",
    "is_empty": "probability of no contribution",
    "inverse_n_contributions": "1 / contributions (0 if none)",
    "n_contributors": "contributors to a layer",
    "is_layer_empty": "probability that a layer is left out",
    "weight_sum": "sum of a layer's weights",
    "used_flops": "FLOPs used",
    "uploaded_bytes": "uploaded",
    "downloaded_bytes": "downloaded",
    "n_steps": "local steps of a device",
    "participation": "how often a device takes part",
    "settled_after": "rounds until the start is forgotten",
    "loss": "loss",
}
_PREFIXES = ("", "k", "M", "G", "T", "P", "E")
_PREFIXED = {"bytes": "B", "FLOPs": ""}


def section(rows: Sequence[Agreement], styles: Styles, layer_names: Mapping[str, Sequence[str]]) -> str:
    """Markup of the whole answer. layer_names: of each policy's model, from the input."""
    if not rows:
        return paragraph(NOTHING_EXPECTED)
    shown = _shown(rows)
    pinned = [row for row in shown if row.agrees and row.deviation and row.deviation.z is None]
    varying = [row for row in shown if row not in pinned]
    answer = paragraph(sentence(rows, layer_names))
    if varying:
        answer += agreement_table(_CAPTION, varying, rows, styles, layer_names)
    if pinned:
        answer += details(
            "What does not vary, and is equal", agreement_table(_PINNED, pinned, rows, styles, layer_names)
        )
    if shown:
        answer += f'<p class="note">{text(_NOTE)} {download("agreement.csv", as_csv([_flat(row) for row in rows]))}</p>'
    return answer + _reasons(rows)


def sentence(rows: Sequence[Agreement], layer_names: Mapping[str, Sequence[str]]) -> str:
    """How many quantities agree, how closely, and which do not."""
    found = [row for row in rows if row.deviation]
    if not found:
        return "Nothing can be compared: no quantity of these runs has a closed form."
    refused = [row for row in found if not row.agrees]
    z = [abs(row.deviation.z) for row in found if row.deviation and row.deviation.z is not None]
    closeness = (
        f"The largest |z| is {max(z):.2f}; one beyond {threshold(rows):.2f} would disagree, which happens in "
        f"{100 * FAMILY_ERROR:.0f} of 100 such reports if everything is right."
        if z
        else "None of them varies, so each must be equal to its closed form."
    )
    if not refused:
        said = "The one quantity" if len(found) == 1 else f"All {len(found)} quantities"
        return f"{said} with a closed form {'agrees' if len(found) == 1 else 'agree'} with it. {closeness}"
    names = [f"{_quantity(row, layer_names)} of {row.policy}" for row in refused[:4]]
    names += [f"{len(refused) - 4} more"] if len(refused) > 4 else []
    verb = "does" if len(refused) == 1 else "do"
    n_agree = f"{len(found) - len(refused)} of {len(found)} quantities with a closed form"
    return f"{n_agree} {'agrees' if len(found) - len(refused) == 1 else 'agree'} with it; {listed(names)} {verb} not. {closeness}"


def agreement_table(
    caption: str,
    shown: Sequence[Agreement],
    rows: Sequence[Agreement],
    styles: Styles,
    layer_names: Mapping[str, Sequence[str]],
) -> str:
    """A row for each of `shown`. rows: all, to say of how many layers one is shown."""
    body = []
    for row in shown:
        if row.deviation is None:
            continue
        factor, unit = _scale(row)
        error = row.deviation.standard_error / factor
        values = [row.deviation.expected / factor, row.deviation.simulated / factor]
        body.append(
            [
                f'<span class="policy">{swatch(styles[row.policy])} {text(row.policy)}</span>',
                f"{text(_quantity(row, layer_names) + unit)}{_of_layers(row, rows)}",
                *(text(_in_digits_of(error, value)) for value in values),
                text(_in_digits_of(error, error)) if error else "",
                "does not vary" if row.deviation.z is None else f"{row.deviation.z:+.2f}",
                f"{row.deviation.n:,}",
                "agrees" if row.agrees else "<strong>disagrees</strong>",
            ]
        )
    header = ["policy", "of a round", "closed form", "simulated", "standard error", "z", "rounds", "verdict"]
    return table(caption, header, body)


def _shown(rows: Sequence[Agreement]) -> list[Agreement]:
    """Of each policy's quantity all layers that disagree, else the one furthest off."""
    groups: dict[tuple[str, str], list[Agreement]] = {}
    for row in rows:
        if row.deviation:
            groups.setdefault((row.policy, row.quantity), []).append(row)
    return [
        row
        for group in groups.values()
        for row in ([row for row in group if not row.agrees] or [max(group, key=_distance)])
    ]


def _distance(row: Agreement) -> float:
    return abs(row.deviation.z) if row.deviation and row.deviation.z is not None else 0.0


def _quantity(row: Agreement, layer_names: Mapping[str, Sequence[str]]) -> str:
    """ "round time", "contributors to layer fc1"."""
    words = _WORDS.get(row.quantity, row.quantity)
    if row.layer is None:
        return words
    return words.replace("a layer", f"layer {layer_names[row.policy][row.layer]}")


def _of_layers(row: Agreement, rows: Sequence[Agreement]) -> str:
    same = [one for one in rows if (one.policy, one.quantity) == (row.policy, row.quantity) and one.deviation]
    if len(same) == 1 or not row.agrees:
        return ""
    return f"<small>furthest off of {len(same)} layers</small>"


def _scale(row: Agreement) -> tuple[float, str]:
    """What to divide a row's numbers by, and the unit that they then have, in parentheses."""
    if row.unit not in _PREFIXED:
        return 1.0, f" ({row.unit})" if row.unit == "s" else ""
    largest = max(row.deviation.expected, row.deviation.simulated) if row.deviation else 0.0
    i = min(max(0, floor(log10(largest) / 3)), len(_PREFIXES) - 1) if largest > 0 else 0
    unit = f"{_PREFIXES[i]}{_PREFIXED[row.unit]}"
    return 1000.0**i, f" ({unit})" if unit else ""


def _in_digits_of(error: float, value: float) -> str:
    """As many decimals as show the standard error to two digits; five digits if nothing varies."""
    if not error:
        return f"{value:.5g}"
    n_decimals = 1 - floor(log10(error))
    return f"{value:.2g}" if n_decimals > 9 else f"{value:,.{max(0, n_decimals)}f}"


def _reasons(rows: Sequence[Agreement]) -> str:
    """Folded away: what has no closed form. Policies that lack the same for the same reason share a line."""
    lacking: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        if row.reason:
            words = _WORDS.get(row.quantity, row.quantity)
            lacking.setdefault((row.policy, row.reason), {})[words] = None
    lines: dict[tuple[str, str], list[str]] = {}
    for (policy, reason), quantities in lacking.items():
        lines.setdefault((listed(list(quantities)), reason), []).append(policy)
    if not lines:
        return ""
    items = "".join(
        f"<li>{text(listed(policies))}: {text(quantities)}: {text(reason)}.</li>"
        for (quantities, reason), policies in lines.items()
    )
    return details("What is not compared, and why", f"<ul>{items}</ul>")


def _flat(row: Agreement) -> dict[str, object]:
    flat: dict[str, object] = {"policy": row.policy, "quantity": row.quantity, "layer": row.layer, "unit": row.unit}
    if row.deviation is not None:
        names = ("n", "expected", "simulated", "standard_error", "z")
        flat |= {("n_rounds" if name == "n" else name): getattr(row.deviation, name) for name in names}
    return flat | {"agrees": row.agrees, "no_closed_form": row.reason}
