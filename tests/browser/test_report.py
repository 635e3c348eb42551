"""The report in a real browser, without a network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import fedsim
from fedsim.dashboard.report import write_report
from fedsim.scenario.read import from_dict
from fedsim.statistics.reading import read_scenario
from tests.run_folders import add_classes, climb, write_run

sync_api = pytest.importorskip("playwright.sync_api", reason="no browser driver: playwright is not installed")

HOSTILE = "<script>window.harm = 1</script><img src=x onerror='window.harm = 1'>"


EXPECTED = [
    {"quantity": "round_s", "unit": "s", "mean": 2.3, "variance": 1.6, "cdf": [[1.0, 0.3], [2.0, 0.6], [4.0, 1.0]]},
    {"quantity": "n_contributors", "unit": "devices", "layer": 0, "mean": 2.5, "variance": 1.0},
    {"quantity": "n_contributors", "unit": "devices", "layer": 1, "mean": 3.5, "variance": 1.0},
]
"""Closed forms of the first policy and of the one that is drawn in ink."""


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("runs") / "demo"
    # The seventh kind is drawn in ink, black or white: its colour must follow the page.
    labels = ["fedavg", "stsyn(k=15)", HOSTILE, "salf", "k_sync", "fedpmt", "drop"]
    for position, label in enumerate(labels):
        for seed in range(3):
            curve, expected = climb(20 + 4 * position + seed), EXPECTED if position in (0, 6) else None
            run = write_run(folder, label, seed, curve, kind=label, position=position, expected=expected)
            add_classes(run, [[2 + position, 2]] * 3)
    return write_report(folder, read_scenario(folder)).as_uri()


@pytest.fixture(scope="module")
def clock_address(tmp_path_factory) -> str:
    """Real runs of the clock alone, which have rounds to draw: six devices, four rounds."""
    loaded = from_dict(
        {
            "name": "clock",
            "train": False,
            "fleet": {"n_devices": 6, "compute": {"step_s": 1.0, "task_factor": {"kind": "exponential"}}},
            "model": {"kind": "mlp", "widths": [8]},
            "data": {"kind": "digits"},
            "policies": [{"kind": "salf", "deadline_s": 0.9}, {"kind": "k_sync", "k": 2}],
            "stop": {"n_rounds": 4},
        }
    )
    folder = fedsim.run(loaded, out=tmp_path_factory.mktemp("runs"))
    return write_report(folder, read_scenario(folder)).as_uri()


@pytest.fixture
def visit(browser, address) -> Iterator:
    """Open the page offline in a window of that size and scheme; complaints gather in `page.complaints`."""
    contexts = []

    def open_page(width: int = 1200, scheme: str = "light", address: str = address):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.complaints = []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("requestfailed", lambda request: page.complaints.append(request.url))
        page.goto(address)
        page.wait_for_selector("html[data-drawn]")
        return page

    yield open_page
    for context in contexts:
        context.close()


def test_the_page_opens_offline_without_a_complaint(visit):
    page = visit()
    assert page.locator(".plot .main-svg").count() >= 5
    assert page.complaints == []


def test_a_hostile_name_is_shown_and_does_nothing(visit):
    page = visit()
    assert page.evaluate("window.harm") is None
    assert page.locator("fieldset").first.get_by_text(HOSTILE).is_visible()
    assert page.locator("main img").count() == 0


def test_the_legend_takes_a_policy_off_the_figure_by_keyboard(visit):
    page = visit()
    lines = page.locator("#curve .scatterlayer .trace")
    before = lines.count()
    page.locator("#place-curve fieldset input").first.focus()
    page.keyboard.press("Space")
    sync_api.expect(lines).to_have_count(before - 4)  # the line, both edges of its band, the ring at the target
    assert page.complaints == []


def test_the_page_does_not_scroll_sideways(visit):
    page = visit(400)
    for width in (400, 1200, 1600):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_page_and_figures_follow_the_scheme_as_it_changes(visit):
    """Text, ticks, and the line of the policy whose hue is ink."""
    page = visit(scheme="dark")
    for scheme, ink in [("dark", "rgb(236, 236, 236)"), ("light", "rgb(27, 27, 27)"), ("dark", "rgb(236, 236, 236)")]:
        page.emulate_media(color_scheme=scheme)
        sync_api.expect(page.locator("body")).to_have_css("color", ink)
        sync_api.expect(page.locator("#round_times .xtick text").first).to_have_css("fill", ink)
        sync_api.expect(page.locator("#curve path.js-line").last).to_have_css("stroke", ink)


def test_closed_forms_are_dashed_lines_and_diamonds_that_follow_the_scheme(visit):
    """Seven simulated lines, of which two have a dashed one over them; two policies with a diamond on each layer."""
    page = visit(scheme="dark")
    lines = page.locator("#round_times path.js-line")
    sync_api.expect(lines).to_have_count(7 + 2)
    sync_api.expect(lines.nth(7)).not_to_have_css("stroke-dasharray", "none")
    sync_api.expect(lines.first).to_have_css("stroke-dasharray", "none")
    marks = page.locator("#layer_contributors .scatterlayer path.point")
    sync_api.expect(marks).to_have_count(2 * 2)
    for scheme, ink in [("dark", "rgb(236, 236, 236)"), ("light", "rgb(27, 27, 27)")]:
        page.emulate_media(color_scheme=scheme)
        sync_api.expect(marks.first).to_have_css("fill", ink)
        sync_api.expect(lines.last).to_have_css("stroke", ink)
    assert page.complaints == []


def test_a_policy_taken_off_takes_its_closed_form_along(visit):
    page = visit()
    marks = page.locator("#layer_contributors .scatterlayer path.point")
    before_x = marks.last.bounding_box()["x"]
    page.locator("#layer_contributors").locator("xpath=..").locator("input").first.uncheck()
    sync_api.expect(marks).to_have_count(2)
    assert marks.last.bounding_box()["x"] == pytest.approx(before_x, abs=0.1)  # the others stay on their bars


def test_a_diamond_stands_over_the_middle_of_its_bar_at_the_expected_height(visit):
    page = visit()
    mark = page.locator("#layer_contributors .scatterlayer path.point").first.bounding_box()
    bar = page.locator("#layer_contributors .bars path").first.bounding_box()
    assert mark["x"] + mark["width"] / 2 == pytest.approx(bar["x"] + bar["width"] / 2, abs=1)
    # 2 contributors simulated, 2.5 expected: a quarter of the bar above its top.
    assert bar["y"] - (mark["y"] + mark["height"] / 2) == pytest.approx(bar["height"] / 4, abs=1)


def test_a_class_has_one_line_at_its_share_of_the_devices_that_follows_the_scheme(visit):
    """It stays when a policy is taken off."""
    page = visit(scheme="dark")
    bars, lines = page.locator("#who_was_heard .bars .point"), page.locator("#who_was_heard path.js-line")
    sync_api.expect(bars).to_have_count(7 * 2)
    page.locator("#who_was_heard").locator("xpath=..").locator("input").first.uncheck()
    sync_api.expect(bars).to_have_count(6 * 2)
    sync_api.expect(lines).to_have_count(2)
    for scheme, ink in [("dark", "rgb(236, 236, 236)"), ("light", "rgb(27, 27, 27)")]:
        page.emulate_media(color_scheme=scheme)
        sync_api.expect(lines.last).to_have_css("stroke", ink)
    assert page.complaints == []


def test_the_curve_can_be_drawn_against_anything_that_is_spent(visit, tmp_path):
    page = visit()
    title, axis = page.locator("#place-curve h3"), page.locator("#curve .xtitle")
    sync_api.expect(axis).to_have_text("simulated time (s)")
    page.get_by_label("against").select_option("uploaded_bytes")
    sync_api.expect(axis).to_have_text("uploaded by all devices")
    sync_api.expect(title).to_contain_text("With 6 kB uploaded the median accuracy")
    page.get_by_label("Show").select_option("loss")
    sync_api.expect(page.locator("#curve .ytitle")).to_have_text("loss (mean over seeds)")
    sync_api.expect(title).to_contain_text("the mean loss is 1 (every policy)")
    assert page.locator("#curve").get_attribute("aria-label") == title.inner_text()
    with page.expect_download() as download:
        page.locator("#place-curve a").first.click()
    assert download.value.suggested_filename == "loss_over_uploaded_bytes.csv"
    assert page.complaints == []


def test_a_policy_that_was_taken_off_stays_off_when_the_axis_is_switched(visit):
    page = visit()
    lines = page.locator("#curve path.js-line")
    n_before = lines.count()
    page.locator("#place-curve fieldset input").first.uncheck()
    sync_api.expect(lines).not_to_have_count(n_before)
    page.get_by_label("against").select_option("round")
    sync_api.expect(page.locator("#curve .xtitle")).to_have_text("rounds")
    sync_api.expect(page.locator("#curve .scatterlayer .trace")).to_have_count(6 * 3)


def test_the_time_budget_is_turned_by_the_arrow_keys(visit):
    """The earliest evaluation after the start is at 10 s; at the end, 600 s, everybody has 90 %."""
    page = visit()
    slider, said = page.locator("#place-budget input[type=range]"), page.locator("#place-budget output")
    slider.focus()
    page.keyboard.press("Home")
    sync_api.expect(said).to_have_text("10 s")
    sync_api.expect(page.locator("#place-budget h3")).to_have_text("With 10 s fedavg has the most: 4.29 % (median).")
    page.keyboard.press("ArrowRight")
    sync_api.expect(said).to_have_text("11.1 s")
    page.keyboard.press("End")
    sync_api.expect(page.locator("#place-budget h3")).to_have_text("With 600 s every policy has 90 % (median).")
    assert slider.get_attribute("aria-valuetext") == "600 s"
    points = page.locator("#budget .scatterlayer path.point")
    sync_api.expect(points).to_have_count(7)
    assert page.complaints == []


def test_any_of_the_shown_rounds_of_any_policy_can_be_chosen(visit, clock_address):
    page = visit(address=clock_address)
    title, rounds = (
        page.locator("#place-timeline h3"),
        page.locator("#place-timeline").get_by_label("round", exact=True),
    )
    sync_api.expect(title).to_contain_text("of salf, seed 0")
    assert rounds.locator("option:not([hidden])").count() == 4
    page.locator("#place-timeline").get_by_label("Run").select_option(label="k_sync, seed 0")
    sync_api.expect(title).to_contain_text("of k_sync, seed 0: the work of 2 of 6 devices entered the model")
    assert rounds.locator("option:not([hidden])").count() == 4
    rounds.focus()
    page.keyboard.press("Home")
    sync_api.expect(title).to_contain_text("Round 0 of k_sync")
    sync_api.expect(page.locator("#timeline .annotation-text")).to_contain_text("2nd arrival")
    page.locator("#timeline .bars path").first.hover(force=True)
    sync_api.expect(page.locator("#timeline .hovertext")).to_contain_text("device")
    assert page.complaints == []


def test_a_round_at_a_deadline_has_its_dotted_line(visit, clock_address):
    page = visit(address=clock_address)
    sync_api.expect(page.locator("#timeline .annotation-text")).to_have_text("deadline, 0.9 s")
    sync_api.expect(page.locator("#timeline path.js-line").last).not_to_have_css("stroke-dasharray", "none")


def test_pointing_at_a_bar_says_what_it_is_in_words_and_units(visit):
    page = visit()
    page.locator("#layer_contributors .bars path").first.hover(force=True)
    label = page.locator("#layer_contributors .hoverlayer .hovertext")
    sync_api.expect(label).to_contain_text("fedavg: 2 devices a round (mean) reach layer input")


def test_pointing_at_a_policy_with_a_hostile_name_says_it_as_text(visit):
    page = visit()
    page.locator("#layer_contributors .bars").nth(2).locator("path").first.hover(force=True)
    sync_api.expect(page.locator("#layer_contributors .hoverlayer .hovertext")).to_contain_text("<script>window.harm")
    assert page.evaluate("window.harm") is None


def test_the_data_of_a_figure_can_be_saved(visit, tmp_path):
    page = visit()
    with page.expect_download() as download:
        page.get_by_role("link", name="data (CSV)").first.click()
    assert download.value.suggested_filename == "accuracy_over_time_s.csv"
    download.value.save_as(tmp_path / "data.csv")
    assert (tmp_path / "data.csv").read_text().startswith("policy,time_s,accuracy,low,high,n_seeds\n")
    with page.expect_download() as download:
        page.get_by_role("link", name="exact expectation (CSV)").first.click()
    assert download.value.suggested_filename == "round_times_exact.csv"
    download.value.save_as(tmp_path / "exact.csv")
    assert (tmp_path / "exact.csv").read_text().startswith("policy,round_s,share\n")
