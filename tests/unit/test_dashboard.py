"""The report and its figures: what they show, that names stay text, that the page needs no network."""

from __future__ import annotations

import ast
import io
import json
from base64 import b64decode
from gzip import decompress
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedsim.dashboard
from fedsim.dashboard import device_frames, figures, findings, frames
from fedsim.dashboard.figure_parts import hover
from fedsim.dashboard.page import page as whole_page
from fedsim.dashboard.palette import HUES, INK, Style, styles
from fedsim.dashboard.report import report, write_report
from fedsim.statistics.comparison import compare
from fedsim.statistics.reading import read_scenario
from tests.run_folders import climb, write_run

HOSTILE = "</script><script>alert(1)</script><b>%{x}\"'&"


class Page(HTMLParser):
    """Every element with its attributes, and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words, self._inside = "", ""
        self.scripts: dict[str | None, str] = {}
        self.feed(html)

    def places(self) -> dict:
        """What the page's script draws: element -> choice of the controls -> view."""
        return json.loads(decompress(b64decode(self.scripts["places"])))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[self.elements[-1][1].get("id")] = data
        elif self._inside != "style":
            self.words += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def runs(tmp_path):
    """Three policies, three seeds; the last one has a hostile name and was seen least."""
    folder = tmp_path / "demo"
    for position, (label, at) in enumerate([("fedavg", 40), ("stsyn(k=15)", 20), (HOSTILE, 50)]):
        for seed in range(3):
            curve = climb(at + seed)
            write_run(folder, label, seed, curve, kind=label[:5], position=position, with_tasks=True)
    return read_scenario(folder)


@pytest.fixture
def page(runs):
    return Page(report("demo", runs))


# ---- the page -------------------------------------------------------------------------------------------------------


def test_the_page_opens_with_the_sentence_of_the_comparison(runs, page):
    sentence = compare(runs, 0.9).sentence
    assert sentence.startswith("3 seeds: no claim.")
    assert page.words.index(sentence) < page.words.index("Each policy: median over seeds")


def test_the_first_table_has_a_row_for_each_policy_best_first(page):
    table = page.words[page.words.index("wasted share") : page.words.index("After 600 s")]
    assert table.index("stsyn(k=15)") < table.index("fedavg") < table.index(HOSTILE)
    assert "210 s" in table
    assert "(200-220)" in table
    assert "25 %" in table


def test_costs_stand_at_the_target_and_not_at_the_end(tmp_path):
    """100 bytes and 1,000 FLOPs for each evaluation: 20 of them to the target; one of two seeds never gets there."""
    write_run(tmp_path / "s", "a", 0, climb(20))
    write_run(tmp_path / "s", "never", 0, climb(None), position=1)
    words = Page(report("s", read_scenario(tmp_path / "s"))).words
    row = words[words.index("device FLOPs to 90 %") : words.rindex("How sure is that?")]
    assert "2 kB20k" in row
    assert "more than 300 Bmore than 3k" in row  # what the closed rounds of a whole run cost


def test_a_policy_that_never_got_there_is_said_to_be_later_and_not_a_fraction_sooner(tmp_path):
    for seed in range(3):
        write_run(tmp_path / "s", "best", seed, climb(10))
        write_run(tmp_path / "s", "reference", seed, climb(20), position=1)
        write_run(tmp_path / "s", "never", seed, climb(None), position=2)
    words = Page(report("s", read_scenario(tmp_path / "s"))).words
    assert "at least 3 times later" in words  # followed for 600 s, the reference took 200 s
    assert "at most 0." not in words


def test_the_first_screen_says_what_was_simulated_and_what_each_policy_does(tmp_path):
    path = write_run(tmp_path / "s", "a<b>", 0, climb(20)) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["policy"]["summary"] = "It waits <i>for all</i>."
    manifest["scenario"] |= {"data": {"kind": "digits"}, "model": {"kind": "mlp"}}
    path.write_text(json.dumps(manifest))
    page = Page(report("s", read_scenario(tmp_path / "s")))
    assert "4 devices, data set digits, model mlp of 2 layers, 1 seed. All times are simulated." in page.words
    assert "a<b>: It waits <i>for all</i>." in page.words
    assert not page.of("i")


def test_every_question_has_its_heading(page):
    for question in ("How sure is that?", "What does it cost?", "Where does the time go?", "Who takes part?"):
        assert question in page.words
    assert "Is the clock right?" in page.words
    assert "What exactly was run?" in page.words


def test_a_name_from_a_file_is_text_and_never_markup(page):
    assert HOSTILE in page.words
    assert len(page.of("script")) == 3  # plotly.js, the data, the page's own
    assert not page.of("b")


def test_plotly_is_given_escaped_names(runs):
    figure = figures.curve(frames.curve_frame(runs, "time_s"), styles((run.label, run.kind) for run in runs))
    names = [trace.name for trace in figure.data if trace.name]
    assert names[2].startswith("&lt;/script&gt;&lt;script&gt;")
    assert not any("<" in name for name in names)


def test_a_name_is_text_in_what_plotly_shows_at_a_point():
    assert hover("<b>%{x}</b>", "%{y} devices") == {
        "hovertemplate": "&lt;b&gt;&#37;{x}&lt;/b&gt;: %{y} devices<extra></extra>"
    }


def test_the_page_is_one_file_under_six_megabytes_that_asks_for_nothing(runs, page, tmp_path):
    path = write_report(tmp_path / "demo", runs)
    assert path.stat().st_size < 6_000_000
    sources = [value for _, attributes in page.elements for key, value in attributes.items() if key in ("src", "href")]
    assert sources
    assert all(source.startswith(("#", "data:")) for source in sources)
    policies = [a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies[0].startswith("default-src 'none'")


def test_long_runs_still_fit_on_the_page(tmp_path):
    rng = np.random.default_rng(8)
    for position in range(8):
        for seed in range(2):
            curve = rng.uniform(size=20_000)
            write_run(
                tmp_path / "s", f"policy {position}", seed, curve, position=position, round_s=rng.uniform(size=9_999)
            )
    assert write_report(tmp_path / "s", read_scenario(tmp_path / "s")).stat().st_size < 6_000_000


def test_the_same_runs_give_the_same_bytes(runs):
    assert report("demo", runs) == report("demo", runs)


def test_every_figure_has_a_text_alternative_and_its_data(runs, page):
    plots = [a for a in page.of("div") if a.get("class") == "plot"]
    names = ["curve", "budget", "pareto_front", "round_times", "timeline", "time_shares", "layer_contributors"]
    assert [plot["id"] for plot in plots] == names
    assert all(plot["role"] == "img" and len(plot["aria-label"]) > 20 for plot in plots)
    assert [a["href"] for a in page.of("a") if a.get("data-csv") == "frame"] == [f"#{name}" for name in names]
    assert all(view["csv"]["frame"].count("\n") > 1 for place in page.places().values() for view in place.values())
    csv = page.places()["round_times"][""]["csv"]["frame"]
    pd.testing.assert_frame_equal(
        pd.read_csv(io.StringIO(csv)), frames.round_times_frame(runs), rtol=1e-5, check_dtype=False
    )


def test_the_legend_names_every_policy_in_every_figure(page):
    boxes = [a["data-policy"] for a in page.of("input") if "data-policy" in a]
    assert boxes == [
        *["fedavg", "stsyn(k=15)", HOSTILE],
        *["stsyn(k=15)", "fedavg", HOSTILE],  # at a budget: best first
        *["fedavg", "stsyn(k=15)", HOSTILE] * 3,
    ]


def test_runs_that_ended_at_different_times_are_said_to(runs, page, tmp_path):
    assert "Runs ended between" not in page.words
    write_run(tmp_path / "demo", "salf", 0, climb(2, n_points=7), position=3)
    words = Page(report("demo", read_scenario(tmp_path / "demo"))).words
    assert "Runs ended between 60 s and 600 s: final accuracy" in words


def test_an_unfinished_run_is_named_on_the_page(runs, tmp_path):
    (tmp_path / "demo" / "policy-0" / "seed-7").mkdir()
    assert "policy-0/seed-7: no manifest.json" in Page(write_report(tmp_path / "demo", runs).read_text()).words


def test_a_page_without_runs_says_what_to_do(tmp_path):
    assert "Run the scenario first: fedsim run SCENARIO." in Page(write_report(tmp_path, []).read_text()).words


def test_a_run_of_the_clock_alone_is_reported_without_accuracy(tmp_path):
    write_run(tmp_path / "s", "a", 0, [])
    words = Page(report("s", read_scenario(tmp_path / "s"))).words
    assert "the clock ran alone" in words
    assert "not evaluated" in words
    assert "The median round takes 2 s (a)." in words


def test_a_scenario_without_targets_says_how_to_set_one(tmp_path):
    write_run(tmp_path / "s", "a", 0, climb(3), targets=())
    assert "for example evaluation.targets: [0.8, 0.9]" in Page(report("s", read_scenario(tmp_path / "s"))).words


def test_a_run_without_rounds_says_what_to_do(tmp_path):
    write_run(tmp_path / "s", "a", 0, climb(None), round_s=())
    assert "No round was closed." in Page(report("s", read_scenario(tmp_path / "s"))).words


# ---- beside theory --------------------------------------------------------------------------------------------------


ROUND_S = {
    "quantity": "round_s",
    "unit": "s",
    "mean": 2.0,
    "variance": 1.0,
    "cdf": [[1.0, 0.25], [2.0, 0.5], [4.0, 1.0]],
}
LAYERS = [
    {"quantity": "n_contributors", "unit": "devices", "layer": layer, "mean": mean, "variance": 1.0}
    for layer, mean in enumerate([2.5, 4.0])
]
BYTES = {"quantity": "uploaded_bytes", "unit": "bytes", "mean": 100.0, "variance": 0.0}
REASON = "needs exponential steps; got <b>Pareto</b>"


def beside_theory(folder, entries, labels=("a",), **settings):
    for position, label in enumerate(labels):
        write_run(folder, label, 0, [], kind=label, position=position, expected=entries, **settings)
    return read_scenario(folder)


def test_the_page_says_how_many_quantities_agree_and_how_closely(tmp_path):
    settings = {"round_s": [1.0, 2.0, 3.0] * 20, "simulated_s": None}
    words = Page(report("s", beside_theory(tmp_path / "s", [ROUND_S, *LAYERS, BYTES], **settings))).words
    assert "3 of 4 quantities with a closed form agree with it; contributors to layer input of a does not." in words
    assert "The largest |z| is 3.84; one beyond 2.94 would disagree" in words  # 0.5 * sqrt(60), skewed; three that vary
    table = words[words.index("standard error") :]
    assert "contributors to layer input2.502.00" in table.replace("furthest off of 2 layers", "")
    assert "-3.8460disagrees" in table
    assert "round time (s)2.002.000.13+0.0060agrees" in table
    assert "uploaded (B)100100does not vary60agrees" in words[words.index("What does not vary, and is equal") :]


def test_why_there_is_no_closed_form_is_said_once_and_stays_text(tmp_path):
    entries = [{"quantity": q, "unit": "1", "no_closed_form": REASON} for q in ("round_s", "is_empty")]
    entries += [{"quantity": "weight_sum", "layer": i, "unit": "1", "no_closed_form": REASON} for i in (0, 1)]
    page = Page(report("s", beside_theory(tmp_path / "s", entries, labels=["a", "b"])))
    assert "Nothing can be compared: no quantity of these runs has a closed form." in page.words
    said = f"a and b: round time, probability of no contribution and sum of a layer's weights: {REASON}."
    assert page.words.count(said) == 1
    assert page.words.count(REASON) == 1
    assert not page.of("b")


def test_runs_from_before_there_were_closed_forms_say_how_to_have_them(page):
    assert "These runs hold no closed forms (expected.json)." in page.words
    assert "nothing fitted" not in page.words


def test_the_law_of_the_round_time_is_drawn_dashed_over_the_rounds(tmp_path):
    own = beside_theory(tmp_path / "s", [ROUND_S])
    law = frames.round_law_frame(own)
    figure = figures.round_times(frames.round_times_frame(own), law, styles([("a", "a")]))
    simulated, exact = figure.data
    assert (exact.line.dash, exact.line.width, exact.line.color) == ("dash", 1.5, simulated.line.color)
    assert simulated.opacity < 1  # pale, so that the dashes over it are seen
    assert list(zip(exact.x, exact.y, strict=True))[1:] == [(1.0, 0.25), (2.0, 0.5), (4.0, 1.0)]
    assert exact.hovertemplate == "a: exact expectation: %{y:.1%} of rounds take at most %{x:.4~g} s<extra></extra>"
    words = Page(report("s", own)).words
    assert "The thin dashed line is the exact expectation, nothing fitted." in words
    assert "exact expectation (CSV)" in words
    assert "lacks its last round" not in words
    own[0].manifest["outcome"]["simulated_s"] += 0.5
    assert "A run that ended at a time lacks its last round, which is longer than most" in Page(report("s", own)).words


def test_a_jump_of_the_law_is_drawn_upright(tmp_path):
    """Nine of ten rounds end at a deadline of 3 s: its quantiles come as one point again and again."""
    cdf = [[1.0, 0.05], [2.0, 0.1], *[[3.0, 1.0]] * 20]
    law = frames.round_law_frame(beside_theory(tmp_path / "s", [ROUND_S | {"cdf": cdf}]))
    assert law["share"].tolist() == pytest.approx([0.0, 0.05, 0.1, 0.1, 1.0])
    assert law["round_s"].tolist() == pytest.approx([1.0, 1.0, 2.0, 3.0, 3.0])
    assert law["round_s"].is_monotonic_increasing
    certain = frames.round_law_frame(beside_theory(tmp_path / "t", [ROUND_S | {"cdf": [[3.0, 1.0]] * 43}]))
    assert certain["share"].tolist() == [0.0, 1.0]


def test_laws_of_several_fleets_are_mixed_by_their_rounds(tmp_path):
    """1 round of a fleet that is through at 1 s, 3 rounds of one through at 2 s; without a third seed's law, none."""
    for seed, (at_s, n) in enumerate([(1.0, 1), (2.0, 3)]):
        cdf = [[at_s, 1.0]] * 2
        write_run(tmp_path / "s", "a", seed, [], round_s=[at_s] * n, expected=[ROUND_S | {"cdf": cdf}])
    law = frames.round_law_frame(read_scenario(tmp_path / "s"))
    assert law["share"].tolist() == [0.0, 0.25, 0.25, 1.0]
    write_run(tmp_path / "s", "a", 2, [])
    assert frames.round_law_frame(read_scenario(tmp_path / "s")).empty


def test_expected_contributors_are_marked_on_the_middle_of_their_bars(tmp_path):
    own = beside_theory(tmp_path / "s", LAYERS, labels=["a", "b", "c"])
    figure = figures.layer_contributors(frames.layers_frame(own), styles([("a", "a"), ("b", "b"), ("c", "c")]))
    bars, marks = figure.data[:3], figure.data[3:]
    assert [mark.y for mark in marks] == [(2.5, 4.0)] * 3
    assert {mark.marker.symbol for mark in marks} == {"diamond"}
    assert all(mark.meta["is_ink"] for mark in marks)
    for bar, mark in zip(bars, marks, strict=True):
        assert np.array(mark.x) == pytest.approx(np.array(bar.x) + bar.offset + bar.width / 2)
    assert "The diamonds are the exact expectations, nothing fitted." in Page(report("s", own)).words


def test_contributors_without_closed_form_are_drawn_without_marks(runs):
    figure = figures.layer_contributors(frames.layers_frame(runs), styles((run.label, run.kind) for run in runs))
    assert {trace.type for trace in figure.data} == {"bar"}


def without_classes(folder, losses, entry=None, **settings):
    """Runs whose model has only a loss: `losses[seed][i]` at i * 10 s, after i rounds."""
    for seed, values in enumerate(losses):
        expected = [] if entry is None else [{"quantity": "loss", "unit": "1"} | entry]
        path = write_run(folder, "a", seed, [0.0] * len(values), targets=(), expected=expected, **settings)
        table = pd.read_parquet(path / "evaluations.parquet")
        table.assign(accuracy=np.nan, loss=values).to_parquet(path / "evaluations.parquet")
    return read_scenario(folder)


def test_a_model_without_classes_is_drawn_by_its_loss_with_the_expected_one_dashed(tmp_path):
    entry = {"rounds": [0, 1, 2], "mean": [4.0, 2.5, 1.5], "times_s": [0.0, 10.0, 20.0], "mean_at": [4.0, 2.0, 1.0]}
    own = without_classes(tmp_path / "s", [[4.0, 2.0, 1.0], [4.0, 1.0, 1.0], [4.0, 6.0, 1.0]], entry)
    frame, exact = frames.curve_frame(own, "time_s", "loss"), frames.expected_loss_frame(own, "time_s")
    assert frame["loss"].tolist() == [4.0, 3.0, 1.0]  # means, as the closed form is one
    assert (frame["low"].tolist(), frame["high"].tolist()) == ([4.0, 1.0, 1.0], [4.0, 6.0, 1.0])
    assert exact["loss"].tolist() == [4.0, 2.0, 1.0]
    line, dashed = figures.curve(frame, styles([("a", "a")]), of="loss", expected=exact).data[-2:]
    assert (line.line.dash, dashed.line.dash) == ("solid", "dash")
    page = Page(report("s", own))
    assert "After 20 s the mean loss is 1 (a)." in page.words
    assert page.places()["curve"]["loss|time_s"]["csv"]["exact"].startswith("policy,time_s,loss\n")
    assert "exact" in page.places()["curve"]["loss|round"]["csv"]
    assert not any("exact_loss" in str(a.get("id")) for a in page.of("div"))


def test_a_loss_that_is_known_only_after_rounds_is_drawn_over_rounds(tmp_path):
    own = without_classes(tmp_path / "s", [[4.0, 2.0, 1.0]], {"rounds": [0, 1, 2], "mean": [4.0, 2.5, 1.5]})
    plots = [a["id"] for a in Page(report("s", own)).of("div") if a.get("class") == "plot"]
    assert plots == ["curve", "round_times", "layer_contributors", "exact_loss_over_rounds"]
    assert frames.expected_loss_frame(own, "round")["loss"].tolist() == [4.0, 2.5, 1.5]


def test_an_expected_loss_is_not_drawn_over_times_at_which_the_loss_held_is_an_old_one(tmp_path):
    entry = {"rounds": [0, 5, 10], "mean": [4.0, 2.5, 1.5], "times_s": [0.0, 10.0], "mean_at": [4.0, 2.0]}
    own = without_classes(tmp_path / "s", [[4.0, 2.0, 1.0]], entry)
    own[0].manifest["scenario"]["evaluation"]["every_n_rounds"] = 5
    assert frames.expected_loss_frame(own, "time_s").empty
    assert len(frames.expected_loss_frame(own, "round")) == 3


def test_a_model_without_classes_and_without_closed_form_still_has_its_curve(tmp_path):
    words = Page(report("s", without_classes(tmp_path / "s", [[4.0, 2.0, 1.0]]))).words
    assert "Each line joins the losses at the evaluations" in words
    assert "nothing fitted" not in words


def test_a_loss_is_drawn_on_a_logarithmic_axis_once_it_falls_to_an_eighth(tmp_path):
    for last, kind in [(0.5, "log"), (0.51, None), (0.0, None)]:
        own = without_classes(tmp_path / str(last), [[4.0, last]])
        frame, exact = frames.curve_frame(own, "time_s", "loss"), frames.expected_loss_frame(own, "time_s")
        assert figures.curve(frame, styles([("a", "a")]), of="loss", expected=exact).layout.yaxis.type == kind


@given(st.text())
def test_no_text_ends_the_script_that_holds_it(text):
    html = whole_page(title="t", opening="", sections=[], places={"a": {text: {"title": text}}})
    assert Page(html).places() == {"a": {text: {"title": text}}}


# ---- what is drawn --------------------------------------------------------------------------------------------------


def test_the_band_holds_the_extremes_of_few_seeds_and_the_line_their_median(tmp_path):
    for seed, accuracy in enumerate([0.1, 0.2, 0.6]):
        write_run(tmp_path / "s", "a", seed, [accuracy] * 3)
    row = frames.curve_frame(read_scenario(tmp_path / "s"), "time_s").iloc[1]
    assert (row["time_s"], row["low"], row["accuracy"], row["high"], row["n_seeds"]) == (10.0, 0.1, 0.2, 0.6, 3)


def test_a_curve_ends_where_the_first_of_its_seeds_ends(tmp_path):
    write_run(tmp_path / "s", "a", 0, [0.1] * 6)
    write_run(tmp_path / "s", "a", 1, [0.1] * 4)
    assert frames.curve_frame(read_scenario(tmp_path / "s"), "time_s")["time_s"].max() == 30.0


def test_accuracy_at_an_amount_of_bytes_is_that_of_the_last_evaluation_by_then(tmp_path):
    """Seeds evaluated at 0, 100, 200 bytes and at 0, 150, 300: at 150 the first one still holds its value of 100."""
    folder = tmp_path / "s"
    write_run(folder, "a", 0, [0.1, 0.2, 0.3])
    other = write_run(folder, "a", 1, [0.1, 0.4, 0.5])
    table = pd.read_parquet(other / "evaluations.parquet")
    table["uploaded_bytes"] = [0.0, 150.0, 300.0]
    table.to_parquet(other / "evaluations.parquet")
    frame = frames.curve_frame(read_scenario(folder), "uploaded_bytes")
    assert frame["uploaded_bytes"].tolist() == [0, 100, 150, 200]
    assert frame["high"].tolist() == [0.1, 0.2, 0.4, 0.4]
    assert frame["low"].tolist() == [0.1, 0.1, 0.2, 0.3]


def test_the_round_times_are_a_distribution_over_all_rounds_of_all_seeds(tmp_path):
    write_run(tmp_path / "s", "a", 0, [], round_s=(4.0, 1.0))
    write_run(tmp_path / "s", "a", 1, [], round_s=(2.0, 2.0))
    frame = frames.round_times_frame(read_scenario(tmp_path / "s"))
    assert frame["round_s"].tolist() == [1, 1, 2, 2, 4]
    assert frame["share"].tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_empty_rounds_count_among_the_contributors_of_a_layer(tmp_path):
    folder = write_run(tmp_path / "s", "a", 0, [], round_s=(1.0, 1.0), n_contributors=(2, 6))
    layers = pd.read_parquet(folder / "layers.parquet")
    layers[layers["round"] == 0].to_parquet(folder / "layers.parquet")
    frame = frames.layers_frame(read_scenario(tmp_path / "s"))
    assert dict(zip(frame["layer_name"], frame["n_contributors"], strict=True)) == {"input": 1.0, "output": 3.0}


def test_the_phases_are_means_over_the_tasks_that_were_used(runs):
    row = device_frames.phases_frame(runs).iloc[0]
    assert (row["n_tasks"], row["download_s"], row["compute_s"], row["upload_s"]) == (6, 1.0, 6.0, 2.0)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=400), st.integers(8, 60))
def test_thinning_keeps_the_ends_and_the_extremes(values, n_points):
    column = np.array(values)
    kept = frames.thinned([column], n_points)
    assert {0, len(column) - 1} <= set(kept)
    assert (column[kept].min(), column[kept].max()) == (column.min(), column.max())
    assert len(kept) <= max(n_points, 4)
    assert (np.diff(kept) > 0).all()


def test_findings_name_the_ends_of_the_range(runs):
    frame = frames.curve_frame(runs[:6], "time_s")
    frame.loc[frame["policy"] == "fedavg", "accuracy"] /= 2
    assert findings.curve(frame, "time_s", "accuracy") == (
        "After 600 s the median accuracy lies between 45 % (fedavg) and 90 % (stsyn(k=15))."
    )
    assert findings.layer_contributors(frames.layers_frame(runs[:3])) == (
        "At the input, layer input hears from 2 (fedavg) devices a round."
    )


# ---- colours --------------------------------------------------------------------------------------------------------


def test_policies_differ_in_hue_and_settings_of_one_in_dash():
    found = styles([("fedavg", "fedavg"), ("stsyn(k=5)", "stsyn"), ("salf", "salf"), ("stsyn(k=15)", "stsyn")])
    assert found["fedavg"] == Style(HUES[0])
    assert found["stsyn(k=5)"] == Style(HUES[1], dash=0)
    assert found["stsyn(k=15)"] == Style(HUES[1], dash=1)
    assert found["salf"] == Style(HUES[2])


def test_no_two_of_fourteen_policies_look_alike():
    found = styles((f"policy {i}", f"kind {i}") for i in range(14))
    assert len(set(found.values())) == 14
    assert found["policy 6"].hue == INK


def test_more_than_eight_policies_are_drawn_without_bands(tmp_path):
    for position in range(9):
        for seed in range(2):
            write_run(tmp_path / "s", f"p{position}", seed, [0.1 * seed] * 3, position=position)
    many = read_scenario(tmp_path / "s")
    looks = styles((run.label, run.kind) for run in many)
    assert len(figures.curve(frames.curve_frame(many, "time_s"), looks).data) == 9
    assert len(figures.curve(frames.curve_frame(many[:16], "time_s"), looks).data) == 8 * 3


@pytest.mark.parametrize("folder", ["dashboard", "statistics"])
def test_nothing_here_imports_what_simulates_or_trains(folder):
    banned = ("torch", "simpy", "fedsim.timing", "fedsim.training", "fedsim.run", "fedsim.scenario", "fedsim.records")
    for path in (Path(fedsim.dashboard.__file__).parents[1] / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith(banned)], path


@pytest.mark.parametrize(("longest_s", "kind"), [(79.0, None), (80.0, "log")])
def test_the_time_axis_is_logarithmic_once_the_longest_run_is_eight_times_the_shortest(longest_s, kind):
    rows = [("a", 0.0), ("a", 10.0), ("b", 0.0), ("b", longest_s)]
    frame = pd.DataFrame(rows, columns=["policy", "time_s"]).assign(accuracy=0.5, low=0.5, high=0.5, n_seeds=1)
    figure = figures.curve(frame, styles([("a", "a"), ("b", "b")]))
    assert figure.layout.xaxis.type == kind
    assert ("logarithmic" in figure.layout.xaxis.title.text) == (kind == "log")
