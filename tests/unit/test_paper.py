"""Figures for print: what they look like without colour, and that nothing else changes."""

from __future__ import annotations

import copy

import plotly.graph_objects as go
import pytest

from fedsim.dashboard.monochrome import DASHES, HATCHES, grey_of
from fedsim.dashboard.palette import HUES
from fedsim.dashboard.paper import paper

LABELS = [f"policy {i}" for i in range(6)]
POINT_PX = 96 / 72


def curves(n: int = 6, dashes: tuple[str, ...] = ("solid",)) -> go.Figure:
    """Lines with bands, told apart by hue alone."""
    figure = go.Figure(layout={"height": 420, "xaxis": {"title": {"text": "time (s)"}}})
    for i, label in enumerate(LABELS[:n]):
        edge = {"x": [0, 1], "mode": "lines", "line": {"width": 0}, "showlegend": False, "meta": {"policy": label}}
        figure.add_scatter(**edge, y=[0, 1])
        line = {"color": HUES[i % len(HUES)], "width": 2, "dash": dashes[i % len(dashes)]}
        figure.add_scatter(x=[0, 1], y=[0, i], mode="lines", name=label, meta={"policy": label}, line=line)
    return figure


def bars(colours: list[str]) -> go.Figure:
    figure = go.Figure()
    for label, colour in zip(LABELS, colours, strict=False):
        figure.add_bar(x=[0, 1], y=[1, 2], name=label, marker={"color": colour})
    return figure


def seen(figure: go.Figure) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.line.width > 0]


@pytest.mark.parametrize("width", ["single", "double"])
def test_the_given_figure_is_left_as_it_is(width):
    figure = curves()
    before = copy.deepcopy(figure.to_plotly_json())
    paper(figure, width)
    assert figure.to_plotly_json() == before


@pytest.mark.parametrize(("width", "inches"), [("single", 3.4), ("double", 7.0)])
def test_a_figure_is_as_wide_as_its_columns(width, inches):
    assert paper(curves(), width).layout.width == pytest.approx(96 * inches)


def test_a_height_is_whole_points_and_whole_pixels_of_300_to_the_inch():
    heights_px = {paper(curves(n), width).layout.height for n in range(2, 7) for width in ("single", "double")}
    assert len(heights_px) > 2
    assert all(height_px * 72 % 96 == 0 and height_px * 300 % 96 == 0 for height_px in heights_px)


def test_lines_that_only_hue_told_apart_have_a_dash_each():
    assert len({line.line.dash for line in seen(paper(curves()))}) == len(LABELS)


def test_lines_keep_their_colours():
    assert [line.line.color for line in seen(paper(curves()))] == list(HUES[:6])


def test_lines_that_differ_in_dash_already_are_left_so():
    dashes = ("dot", "solid", "dash")
    assert tuple(line.line.dash for line in seen(paper(curves(3, dashes)))) == dashes


def test_a_policy_has_its_dash_also_where_others_are_missing():
    whole, part = paper(curves()), curves()
    part.data = part.data[4:]
    assert [line.line.dash for line in seen(paper(part))] == [line.line.dash for line in seen(whole)][2:]


def test_two_settings_of_one_hue_differ_in_dash():
    figure = curves(2, ("solid",))
    figure.update_traces(line_color=HUES[0])
    assert len({line.line.dash for line in seen(paper(figure))}) == 2


def test_the_dash_goes_to_the_line_over_a_pale_one():
    """What was simulated is wide and pale, its closed form thin over it; two dashes on top of each other show neither."""
    figure = curves(3)
    for i, label in enumerate(LABELS[:3]):
        pale = {"width": 6, "color": HUES[i]}
        figure.add_scatter(x=[0, 1], y=[1, 2], mode="lines", name=label, meta={"policy": label}, line=pale, opacity=0.4)
    drawn = seen(paper(figure))
    assert len({line.line.dash for line in drawn if line.opacity is None}) == 3
    assert {line.line.dash for line in drawn if line.opacity} == {None}


def test_a_pale_line_that_stands_alone_has_a_dash_too():
    figure = curves(3)
    figure.update_traces(opacity=0.5)
    assert len({line.line.dash for line in seen(paper(figure))}) == 3


def test_more_lines_than_dashes_are_drawn_all_the_same():
    figure = go.Figure()
    for i in range(len(DASHES) + 2):
        figure.add_scatter(x=[0, 1], y=[0, i], mode="lines", name=f"{i}")
    assert len(seen(paper(figure))) == len(DASHES) + 2


def test_bars_of_like_grey_are_hatched_each_in_its_own_way():
    drawn = paper(bars(["#0072B2", "#D55E00", "#009E73", "#E69F00"])).data
    looks = [(bar.marker.pattern.shape or "", round(grey_of(bar.marker.color), 1)) for bar in drawn]
    assert len(set(looks)) == 4
    assert looks[1][0] in HATCHES[1:]


def test_bars_that_differ_as_greys_are_left_plain():
    drawn = paper(bars(["#000000", "#888888", "#ffffff"])).data
    assert [bar.marker.pattern.shape for bar in drawn] == [None] * 3


def test_bars_of_colours_by_name_are_hatched():
    drawn = paper(bars(["red", "green"])).data
    assert drawn[0].marker.pattern.shape != drawn[1].marker.pattern.shape


def test_markers_have_a_symbol_each_and_open_ones_stay_open():
    figure = go.Figure()
    for label in LABELS[:3]:
        figure.add_scatter(x=[0], y=[1], mode="markers", name=label, marker={"symbol": "circle-open", "size": 11})
    symbols = [trace.marker.symbol for trace in paper(figure).data]
    assert len(set(symbols)) == 3
    assert all(symbol.endswith("-open") for symbol in symbols)


def test_closed_forms_in_ink_are_black_and_keep_their_symbol():
    figure = bars(["#0072B2"])
    for label in LABELS[:2]:
        mark = {"symbol": "diamond", "color": "#7F7F7F"}
        figure.add_scatter(
            x=[0], y=[1], mode="markers", name=label, marker=mark, meta={"policy": label, "is_ink": True}
        )
    marks = paper(figure).data[1:]
    assert [(mark.marker.symbol, mark.marker.color) for mark in marks] == [("diamond", "#000000")] * 2


def test_all_text_is_black_and_no_larger_than_eight_points():
    figure = curves()
    figure.update_layout(font={"size": 14, "color": "#888888"}, xaxis={"tickfont": {"size": 20, "color": "#888888"}})
    figure.add_annotation(text="here", font={"size": 30, "color": "#ff0000"})
    layout = paper(figure).layout
    fonts = [layout.font, layout.xaxis.tickfont, layout.xaxis.title.font, layout.annotations[0].font]
    assert [font.size for font in fonts] == pytest.approx([8 * POINT_PX] * 4)
    assert {font.color for font in fonts} == {"#000000"}


def test_nothing_is_painted_behind_a_figure():
    figure = go.Figure(curves().data, layout={"paper_bgcolor": "#ffffff", "plot_bgcolor": "#eeeeee"})
    layout = paper(figure).layout
    assert (layout.paper_bgcolor, layout.plot_bgcolor) == ("rgba(0,0,0,0)", "rgba(0,0,0,0)")


def test_a_name_stands_in_the_legend_once():
    figure = curves(2)
    figure.add_scatter(x=[0, 1], y=[1, 2], mode="lines", name=LABELS[0], meta={"policy": LABELS[0]})
    shown = [trace.name for trace in paper(figure).data if trace.showlegend]
    assert shown == LABELS[:2]


def test_there_is_no_legend_where_the_axis_names_everybody():
    figure = go.Figure(layout={"yaxis": {"tickvals": [0, 1], "ticktext": LABELS[:2]}, "showlegend": True})
    for label in LABELS[:2]:
        figure.add_scatter(x=[0], y=[1], mode="markers", name=label)
    assert paper(figure).layout.showlegend is False


def test_a_longer_legend_makes_the_figure_higher_and_not_the_plot_smaller():
    assert paper(curves(6)).layout.height > paper(curves(2)).layout.height
    assert paper(curves(6), "double").layout.height == paper(curves(2), "double").layout.height  # one row is enough


def test_what_is_written_at_the_right_edge_has_room():
    figure = curves(2)
    figure.add_annotation(x=1, xref="paper", xanchor="left", xshift=4, y=0.9, text="a long target", showarrow=False)
    assert paper(figure).layout.margin.r > 60 > paper(curves(2)).layout.margin.r


def test_a_long_title_of_an_axis_is_folded_but_markup_is_not():
    words = "share of all of the updates that were used in the end"
    figure = curves(2)
    figure.update_layout(yaxis_title_text=words, xaxis_title_text=f"<b>{words} {words}</b>")
    layout = paper(figure).layout
    assert layout.yaxis.title.text.replace("<br>", " ") == words
    assert "<br>" in layout.yaxis.title.text
    assert layout.xaxis.title.text == f"<b>{words} {words}</b>"


def test_buttons_and_sliders_are_gone():
    figure = curves(2)
    figure.update_layout(updatemenus=[{"buttons": [{"label": "all"}]}], sliders=[{"steps": [{"label": "1"}]}])
    layout = paper(figure).layout
    assert (len(layout.updatemenus), len(layout.sliders)) == (0, 0)


def test_greys_are_those_of_luma():
    assert grey_of("#000000") == 0
    assert grey_of("#ffffff") == pytest.approx(1)
    assert grey_of("rgba(0, 255, 0, 0.2)") == pytest.approx(0.587)
    assert grey_of("steelblue") is None
