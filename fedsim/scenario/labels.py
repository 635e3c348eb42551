"""Names for the runs of a comparison, and the folders that hold them.

Two settings of one policy are told apart by what differs between them: `stsyn(k=5)` and `stsyn(k=10)`.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,=()+-]{0,99}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # no file names on Windows


def automatic_labels(kinds: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """One label per policy: its kind, followed by what differs among the policies of that kind if there are several.

    settings: each policy's parameters by name. Equal policies get equal labels.
    """
    count = Counter(kinds)
    labels = []
    for kind, own in zip(kinds, settings, strict=True):
        peers = [other for k, other in zip(kinds, settings, strict=True) if k == kind]
        told = [f"{name}={in_brief(own[name])}" for name in own if any(_differs(own, peer, name) for peer in peers)]
        labels.append(f"{kind}({','.join(told)})" if count[kind] > 1 and told else kind)
    return labels


def _differs(own: Mapping[str, Any], peer: Mapping[str, Any], name: str) -> bool:
    return name not in peer or bool(peer[name] != own[name])


def in_brief(value: Any) -> str:
    """A parameter's value inside a label: 5.0 is 5, a block is its kind with what it holds."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, list | tuple):
        return f"[{','.join(in_brief(inner) for inner in value)}]"
    if is_dataclass(value):
        own = {f.name: getattr(value, f.name) for f in fields(value)}
        name = own.pop("kind", type(value).__name__)
        return f"{name}({','.join(f'{key}={in_brief(inner)}' for key, inner in own.items())})"
    return str(value)


def folder_name(label: str) -> str:
    """A label as the name of one folder, on any file system: harmless for any text, different for different labels.

    Labels of letters, digits and `_.,=()+-` keep their name; others get a fingerprint in place of what cannot stand.
    """
    if _SAFE.fullmatch(label) and not label.endswith(".") and not _RESERVED.fullmatch(label):
        return label
    readable = re.sub(r"[^A-Za-z0-9_=()+-]+", "-", label)[:60].strip("-")
    fingerprint = hashlib.sha256(label.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{readable or 'label'}~{fingerprint}"
