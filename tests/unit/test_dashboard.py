"""The report and its figures: what they show, that names stay text, that the page needs no network."""

from __future__ import annotations

import ast
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedsim.dashboard
from fedsim.dashboard import figures, findings, frames
from fedsim.dashboard.markup import json_for_script
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
        self.scripts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts.append(data)
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


def test_every_question_has_its_heading(page):
    for question in ("How sure is that?", "What does it cost?", "Where does the time go?", "Who takes part?"):
        assert question in page.words
    assert "What exactly was run?" in page.words


def test_a_name_from_a_file_is_text_and_never_markup(page):
    assert HOSTILE in page.words
    assert len(page.of("script")) == 3  # plotly.js, the data, the page's own
    assert not page.of("b")


def test_plotly_is_given_escaped_names(runs):
    figure = figures.accuracy_over_time(
        frames.accuracy_frame(runs, "time_s"), styles((run.label, run.kind) for run in runs)
    )
    names = [trace.name for trace in figure.data if trace.name]
    assert names[2].startswith("&lt;/script&gt;&lt;script&gt;")
    assert not any("<" in name for name in names)


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
    names = ["accuracy_over_time", "accuracy_over_bytes", "round_times", "layer_contributors"]
    assert [plot["id"] for plot in plots] == names
    assert all(plot["role"] == "img" and len(plot["aria-label"]) > 20 for plot in plots)
    downloads = {a["download"]: a["href"] for a in page.of("a") if "download" in a}
    assert list(downloads) == [f"{name}.csv" for name in names]
    csv = unquote(downloads["round_times.csv"].partition(",")[2])
    pd.testing.assert_frame_equal(
        pd.read_csv(io.StringIO(csv)), frames.round_times_frame(runs), rtol=1e-5, check_dtype=False
    )


def test_the_legend_names_every_policy_in_every_figure(page):
    boxes = [a["data-policy"] for a in page.of("input")]
    assert boxes == ["fedavg", "stsyn(k=15)", HOSTILE] * 4


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


@given(st.text())
def test_no_text_ends_the_script_that_holds_it(text):
    written = json_for_script({text: text})
    assert not set("<>&") & set(written)
    assert json.loads(written) == {text: text}


# ---- what is drawn --------------------------------------------------------------------------------------------------


def test_the_band_holds_the_extremes_of_few_seeds_and_the_line_their_median(tmp_path):
    for seed, accuracy in enumerate([0.1, 0.2, 0.6]):
        write_run(tmp_path / "s", "a", seed, [accuracy] * 3)
    row = frames.accuracy_frame(read_scenario(tmp_path / "s"), "time_s").iloc[1]
    assert (row["time_s"], row["low"], row["accuracy"], row["high"], row["n_seeds"]) == (10.0, 0.1, 0.2, 0.6, 3)


def test_a_curve_ends_where_the_first_of_its_seeds_ends(tmp_path):
    write_run(tmp_path / "s", "a", 0, [0.1] * 6)
    write_run(tmp_path / "s", "a", 1, [0.1] * 4)
    assert frames.accuracy_frame(read_scenario(tmp_path / "s"), "time_s")["time_s"].max() == 30.0


def test_accuracy_at_an_amount_of_bytes_is_that_of_the_last_evaluation_by_then(tmp_path):
    """Seeds evaluated at 0, 100, 200 bytes and at 0, 150, 300: at 150 the first one still holds its value of 100."""
    folder = tmp_path / "s"
    write_run(folder, "a", 0, [0.1, 0.2, 0.3])
    other = write_run(folder, "a", 1, [0.1, 0.4, 0.5])
    table = pd.read_parquet(other / "evaluations.parquet")
    table["uploaded_bytes"] = [0.0, 150.0, 300.0]
    table.to_parquet(other / "evaluations.parquet")
    frame = frames.accuracy_frame(read_scenario(folder), "uploaded_bytes")
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
    row = frames.phases_frame(runs).iloc[0]
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
    frame = frames.accuracy_frame(runs[:6], "time_s")
    frame.loc[frame["policy"] == "fedavg", "accuracy"] /= 2
    assert findings.accuracy_over_time(frame) == (
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
    assert len(figures.accuracy_over_time(frames.accuracy_frame(many, "time_s"), looks).data) == 9
    assert len(figures.accuracy_over_time(frames.accuracy_frame(many[:16], "time_s"), looks).data) == 8 * 3


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
    figure = figures.accuracy_over_time(frame, styles([("a", "a"), ("b", "b")]))
    assert figure.layout.xaxis.type == kind
    assert ("logarithmic" in figure.layout.xaxis.title.text) == (kind == "log")
