"""Hatches drawn out as lines, for printing."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from fedsim.dashboard.hatching import drawn_out

SVG = "{http://www.w3.org/2000/svg}"
STROKE = '<path d="M0,4L4,0" stroke="red"/>'


def drawing(
    path: str, transform: str = "scale(0.5)", style: str = "fill: url('#p'); stroke: red"
) -> ElementTree.Element:
    """A shape at (3, 7) filled with 4 x 4 tiles, after it was drawn out."""
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg"><defs><pattern id="p" width="4px" height="4px" '
        f'patternUnits="userSpaceOnUse" patternTransform="{transform}">{STROKE}</pattern></defs>'
        f'<g><path class="bar" transform="translate(3,7)" d="{path}" style="{style}"/></g></svg>'
    )
    return ElementTree.fromstring(drawn_out(svg.encode()))


def bar_of(root: ElementTree.Element) -> ElementTree.Element:
    return next(one for one in root.iter(f"{SVG}path") if one.get("class") == "bar")


def test_a_hatched_bar_is_tiles_cut_to_it_under_its_outline():
    """From (1, 1) to (4, 5) in tiles of 2 x 2, which begin at the origin: two across and three down."""
    root = drawing("M1,1V5H4V1Z")
    group, bar = list(root.find(f"{SVG}g"))
    assert bar.get("style") == "fill: none; stroke: red"
    assert group.get("transform") == bar.get("transform") == "translate(3,7)"
    clip, cut = group
    assert clip[0].get("d") == "M1,1V5H4V1Z"
    assert cut.get("clip-path") == f"url(#{clip.get('id')})"
    (scaled,) = cut
    assert scaled.get("transform") == "scale(0.5)"
    corners = [tile.get("transform") for tile in scaled]
    assert corners == [f"translate({x},{y})" for x in (0, 4) for y in (0, 4, 8)]
    assert all(tile[0].attrib == {"d": "M0,4L4,0", "stroke": "red"} for tile in scaled)


def test_a_bar_below_the_origin_is_covered_too():
    group = drawing("M-6,6H6V-6H-6Z", transform="scale(1)").find(f"{SVG}g")[0]
    corners = {tile.get("transform") for tile in group[1][0]}
    assert corners == {f"translate({x},{y})" for x in (-8, -4, 0, 4) for y in (-8, -4, 0, 4)}


@pytest.mark.parametrize(
    ("path", "transform"), [("M0,0L4,4V0Z", "scale(1)"), ("M1,1V5H4V1Z", "rotate(45)"), ("", "scale(1)")]
)
def test_what_is_shaped_otherwise_keeps_its_pattern(path, transform):
    root = drawing(path, transform)
    assert len(root.find(f"{SVG}g")) == 1
    assert "url('#p')" in bar_of(root).get("style")


def test_a_plain_bar_stays_as_it_is():
    root = drawing("M1,1V5H4V1Z", style="fill: rgb(0, 0, 0)")
    assert len(root.find(f"{SVG}g")) == 1
    assert bar_of(root).get("style") == "fill: rgb(0, 0, 0)"
