"""What all pages share: the catalogue of runs, and which of its runs somebody has chosen.

Choices come from a browser. They are looked up in the catalogue, and what it does not have is ignored.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from urllib.parse import parse_qs, urlencode

from fedsim.dashboard.palette import Style, styles
from fedsim.statistics.catalogue import Entry
from fedsim.statistics.reading import Run
from fedsim.statistics.results import Comparison

Query = Mapping[str, Sequence[str]]
"""The state of a page as it stands in its address."""


N_REMEMBERED = 64
"""Choices whose comparisons are kept."""


@dataclass(frozen=True)
class Choice:
    """Runs that somebody has chosen, and how their policies are called and drawn.

    entries: in the catalogue's order. names: policy id -> its name on the page, unique. looks: name -> style, the same
    whatever else is chosen in these scenarios.
    """

    entries: tuple[Entry, ...]
    names: Mapping[str, str]
    looks: Mapping[str, Style]

    def named(self, entry: Entry) -> str:
        """The name of an entry's policy."""
        return self.names[entry.policy_id]


def choice(
    entries: Sequence[Entry],
    scenarios: Sequence[str],
    policies: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> Choice:
    """The entries of these scenarios, policy ids and seeds. policies, seeds: None or none at all stands for every seed,
    None for every policy.
    """
    own = [entry for entry in entries if entry.scenario in set(scenarios)]
    names = policy_names(own)
    # In the order in which scenarios were ticked: one more leaves the colours of those before as they are.
    ticked = sorted(own, key=lambda entry: list(scenarios).index(entry.scenario))
    looks = styles((names[entry.policy_id], entry.kind) for entry in ticked)
    wanted = set(names if policies is None else policies)
    chosen = [e for e in own if e.policy_id in wanted and (not seeds or e.seed in set(seeds))]
    return Choice(tuple(chosen), names, looks)


def policy_names(entries: Sequence[Entry]) -> dict[str, str]:
    """Policy id -> its label, with what tells it apart in front where labels are not enough."""
    labels: dict[str, str] = {}
    for entry in entries:
        # A broken run may not know its label; a sound one beside it does.
        if entry.policy_id not in labels or entry.facts:
            labels[entry.policy_id] = entry.label
    scenario_of = {entry.policy_id: entry.scenario for entry in entries}
    several = len(set(scenario_of.values())) > 1
    named = {i: f"{scenario_of[i]} · {label}" if several else label for i, label in labels.items()}
    seen = list(named.values())
    return {i: name if seen.count(name) == 1 else f"{name} ({i.rpartition('/')[2]})" for i, name in named.items()}


def renamed(runs: Sequence[Run], chosen: Choice) -> list[Run]:
    """The runs under the names that their policies have on the page."""
    names = {entry.folder: chosen.named(entry) for entry in chosen.entries}
    return [
        run
        if run.label == names[run.folder]
        else replace(run, manifest={**run.manifest, "policy": {**run.manifest["policy"], "label": names[run.folder]}})
        for run in runs
    ]


@dataclass
class Remembered:
    """What was made of the same runs before, so that turning an axis does not compare them again."""

    make: Callable[[Sequence[Run]], list[Comparison]]
    _made: OrderedDict[tuple[object, ...], list[Comparison]] = field(default_factory=OrderedDict)

    def of(self, runs: Sequence[Run], chosen: Choice) -> list[Comparison]:
        """`make(runs)`. chosen: whose finished runs these are."""
        signatures = {entry.folder: entry.signature for entry in chosen.entries}
        key = tuple((run.folder, run.label, signatures[run.folder]) for run in runs)
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = self.make(runs)
            while len(self._made) > N_REMEMBERED:
                self._made.popitem(last=False)
        return made


def token(entries: Sequence[Entry]) -> str:
    """A short text that changes when a run appears, finishes, breaks or is written anew; not while one merely grows."""
    digest = blake2b(digest_size=8)
    for entry in entries:
        seen = () if entry.state == "in_progress" else entry.signature
        digest.update(repr((entry.id, entry.state, entry.label, seen)).encode())
    return digest.hexdigest()


def asked_policies(entries: Sequence[Entry], scenarios: Sequence[str], policies: Sequence[str]) -> list[str] | None:
    """What an address says of the policies: None if all of these scenarios are ticked, those to come included."""
    every = {entry.policy_id for entry in choice(entries, scenarios).entries}
    return None if set(policies) >= every else list(policies)


def nothing_yet(folder: Path) -> str:
    """What to do in a folder without runs."""
    return (
        f"There are no runs in {folder} yet. Start some, for example with "
        f"fedsim run scenarios/quickstart.yaml --out {folder}; they appear here by themselves."
    )


def parsed(search: str | None) -> dict[str, list[str]]:
    """The query part of an address, "?a=1&a=2"."""
    return parse_qs((search or "").removeprefix("?"), max_num_fields=2_000, keep_blank_values=True)


def written(query: Mapping[str, str | Sequence[str] | None]) -> str:
    """The query part of an address; what is None is left out."""
    kept = {key: value for key, value in query.items() if value is not None}
    return "?" + urlencode(kept, doseq=True) if kept else ""


def whole_numbers(texts: Sequence[str]) -> list[int]:
    """Those of the texts that are whole numbers."""
    return [int(text) for text in texts if text.isascii() and text.isdigit()]
