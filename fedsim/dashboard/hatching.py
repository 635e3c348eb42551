"""Hatches as lines: an SVG whose patterns are drawn out tile by tile.

A browser prints a pattern as a picture of 72 pixels to the inch; lines it prints as lines. Only what Plotly draws is
handled, upright rectangles with tiles at right angles; anything else keeps its pattern.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import ceil, floor
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

_SVG = "http://www.w3.org/2000/svg"
_FILL = re.compile(r"fill: url\(['\"]?#([^'\")]+)['\"]?\)")
_STEP = re.compile(r"([A-Za-z])([^A-Za-z]*)")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
_SCALE = re.compile(r"scale\(([\d.]+)\)")


def drawn_out(svg: bytes) -> bytes:
    """The same drawing without patterns."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(svg)
    patterns = {str(one.get("id")): one for one in root.iter(f"{{{_SVG}}}pattern")}
    filled = [
        (parent, one, patterns[found[1]])
        for parent in root.iter()
        for one in parent
        if (found := _FILL.search(one.get("style", ""))) and found[1] in patterns
    ]
    for i, (parent, shape, pattern) in enumerate(filled):
        box, scale = _box(shape.get("d", "")), _scale(pattern)
        if box is not None and scale is not None:
            parent.insert(list(parent).index(shape), _tiles(shape, pattern, box, scale, f"hatched-{i}"))
            shape.set("style", _FILL.sub("fill: none", shape.get("style", "")))
    return bytes(ElementTree.tostring(root, encoding="utf-8"))


def _tiles(
    shape: Element, pattern: Element, box: tuple[float, float, float, float], scale: float, name: str
) -> Element:
    """The tiles over the shape, cut to it."""
    group = Element(f"{{{_SVG}}}g", {"transform": shape.get("transform", "")})
    SubElement(SubElement(group, f"{{{_SVG}}}clipPath", {"id": name}), f"{{{_SVG}}}path", {"d": shape.get("d", "")})
    cut = SubElement(group, f"{{{_SVG}}}g", {"clip-path": f"url(#{name})"})
    scaled = SubElement(cut, f"{{{_SVG}}}g", {"transform": f"scale({scale:g})"})
    for x, y in _corners(pattern, box, scale):
        tile = SubElement(scaled, f"{{{_SVG}}}g", {"transform": f"translate({x:g},{y:g})"})
        tile.extend(pattern)
    return group


def _corners(pattern: Element, box: tuple[float, float, float, float], scale: float) -> Iterator[tuple[float, float]]:
    """Where tiles begin, in the pattern's own units."""
    width, height = (float(pattern.get(side, "").removesuffix("px")) for side in ("width", "height"))
    left, top, right, bottom = (edge / scale for edge in box)
    for i in range(floor(left / width), ceil(right / width)):
        for j in range(floor(top / height), ceil(bottom / height)):
            yield i * width, j * height


def _box(path: str) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom of a path of upright and level lines; None for any other."""
    x, y = [], []
    for command, rest in _STEP.findall(path):
        numbers = [float(one) for one in _NUMBER.findall(rest)]
        if command == "M" and len(numbers) == 2:
            x.append(numbers[0])
            y.append(numbers[1])
        elif command == "H" and len(numbers) == 1:
            x += numbers
        elif command == "V" and len(numbers) == 1:
            y += numbers
        elif command != "Z":
            return None
    return (min(x), min(y), max(x), max(y)) if x and y else None


def _scale(pattern: Element) -> float | None:
    """By how much the tiles are shrunk; None if they are moved or turned as well."""
    transform = pattern.get("patternTransform")
    found = _SCALE.fullmatch(transform or "scale(1)")
    return float(found[1]) if found else None
