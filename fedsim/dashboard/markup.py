"""HTML made of text that is always escaped. Names come from files; on the page they are text, never markup."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from re import sub
from typing import Any
from urllib.parse import quote

from fedsim.dashboard.palette import STROKES, Style


def text(value: object) -> str:
    """`value` as text inside an element or a quoted attribute."""
    return escape(str(value), quote=True)


def paragraph(value: str, of_class: str = "") -> str:
    """A paragraph of text."""
    return f'<p class="{text(of_class)}">{text(value)}</p>' if of_class else f"<p>{text(value)}</p>"


def answer(value: str) -> str:
    """The sentence of the first screen; what stands in parentheses without a space is never broken over two lines."""
    kept_whole = sub(r"[(][^() ]+[)]", r'<span class="whole">\g<0></span>', text(value))
    return f'<p class="answer">{kept_whole}</p>'


def swatch(style: Style) -> str:
    """A short line in the policy's colour and dash; decoration, so hidden from screen readers."""
    colour = "currentColor" if style.hue.startswith("ink") else style.hue
    return (
        '<svg class="swatch" width="28" height="10" aria-hidden="true">'
        f'<line x1="1" y1="5" x2="27" y2="5" stroke="{colour}" stroke-width="4" '
        f'stroke-dasharray="{STROKES[style.dash]}"/></svg>'
    )


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in its own scrolling box. Its caption stands above the box, so that it does not scroll away. Header and caption are text; cells are markup, the first one names its row."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return (
        f'<p class="note">{text(caption)}</p><div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def details(summary: str, content: str) -> str:
    """A folded part; `content` is markup."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def json_block(value: Any, most_characters: int = 50_000) -> str:
    """A value as indented JSON for reading; what is longer is cut and says so."""
    written = json.dumps(value, indent=2, ensure_ascii=False)
    if len(written) > most_characters:
        written = f"{written[:most_characters]}\n... cut here; the whole is in manifest.json"
    return f'<pre tabindex="0">{text(written)}</pre>'


def download(name: str, csv_text: str, words: str = "data (CSV)") -> str:
    """A link that saves `csv_text` as `name`, without a network."""
    return f'<a class="data" download="{text(name)}" href="data:text/csv;charset=utf-8,{quote(csv_text, safe=",.@")}">{text(words)}</a>'
