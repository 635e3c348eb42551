"""The live dashboard in a real browser that reaches nothing but this machine."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

import fedsim
from fedsim.dashboard.live.app import make_app
from tests.run_folders import add_lines, begin_run, climb, finish_run, journal_line, write_run
from tests.unit.test_live import state

sync_api = pytest.importorskip("playwright.sync_api", reason="no browser driver: playwright is not installed")
expect = sync_api.expect

HOSTILE = "<script>window.harm = 1</script><img src=x onerror='window.harm = 1'>"
WAIT_MS = 30_000


class Quiet(WSGIRequestHandler):
    def log_request(self, code="-", size="-"):
        pass


@pytest.fixture
def serve() -> Iterator:
    """Serve a folder of runs; gives the address. Ended when the test is."""
    servers = []

    def start(folder: Path) -> str:
        server = make_server("127.0.0.1", 0, make_app(folder).server, threaded=True, request_handler=Quiet)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def visit(browser) -> Iterator:
    """Open an address; complaints of the browser, and requests to anywhere else, gather in `page.complaints`."""
    contexts = []

    def open_page(address: str, width: int = 1200, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.complaints = []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        home = re.match(r"http://127\.0\.0\.1:\d+", address)[0] + "/"
        page.on("request", lambda r: r.url.startswith((home, "data:", "blob:")) or page.complaints.append(r.url))
        page.goto(address)
        page.locator("main > *").first.wait_for(state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()


def is_shown(page, what: str, n: int | None = None) -> None:
    if n is None:
        expect(page.locator(what).first).to_be_visible(timeout=WAIT_MS)
    else:
        expect(page.locator(what)).to_have_count(n, timeout=WAIT_MS)


def says(page, where: str, words: str) -> None:
    expect(page.locator(where)).to_contain_text(words, timeout=WAIT_MS)


@pytest.fixture
def runs(tmp_path) -> Path:
    """demo: three policies, of which one never gets to 90 %, under three seeds; another: one policy."""
    folder = tmp_path / "runs"
    for position, (label, k, reached) in enumerate([("fedavg", 4, 30), ("stsyn(k=2)", 2, 10), ("stsyn(k=3)", 3, None)]):
        for seed in (1, 2, 3):
            curve = climb(reached and reached + seed)
            kind = label.partition("(")[0]
            run = write_run(folder / "demo", label, seed, curve, kind=kind, position=position, with_tasks=False)
            state(run, {"k": k, "training.learning_rate": 0.1 * (1 + position % 2)})
            os.utime(run / "manifest.json", (2e9, 2e9))  # the scenario that changed last
    write_run(folder / "another", "salf", 1, climb(20), kind="salf")
    return folder


# ---- runs ---------------------------------------------------------------------------------------------------------------


def test_the_first_page_has_the_answer_the_curve_and_the_table_without_a_complaint(visit, serve, runs):
    page = visit(serve(runs))
    says(page, "#runs-answer", "stsyn(k=2) reached 90 %")
    is_shown(page, "#runs-curve .scatterlayer path.js-line")
    is_shown(page, "#runs-table tbody tr", 3)
    says(page, "#runs-table", "not within 600 s")
    assert page.title() == "Runs · fedsim"
    assert page.complaints == []


def test_every_page_opens_without_a_complaint_and_by_its_link(visit, serve, runs):
    page = visit(serve(runs))
    for name, sign in [
        ("Settings", "#settings-map g.xtick"),
        ("Watch", "#watch-answer"),
        ("Timeline", "#timeline-answer"),
        ("Runs", "#runs-table tr"),
    ]:
        page.get_by_role("link", name=name, exact=True).click()
        is_shown(page, sign)
        expect(page).to_have_title(f"{name} · fedsim", timeout=WAIT_MS)
        expect(page.locator("#pages a[aria-current]")).to_have_text(name)
    assert page.complaints == []


def test_a_policy_is_taken_off_by_keyboard_and_the_address_says_so(visit, serve, runs):
    address = serve(runs)
    page = visit(address)
    is_shown(page, "#runs-table tbody tr", 3)
    page.locator("#runs-policies input").first.focus()
    page.keyboard.press("Space")
    is_shown(page, "#runs-table tbody tr", 2)
    is_shown(page, "#runs-curve .scatterlayer path.js-line", 2 * 3)  # of each a line and both edges of its band
    page.wait_for_url("**/?*policy=*")
    shared = visit(page.url)
    is_shown(shared, "#runs-table tbody tr", 2)
    expect(shared.locator("#runs-policies input").first).not_to_be_checked()
    assert page.complaints == shared.complaints == []


def test_scenarios_seeds_and_axes_are_chosen(visit, serve, runs):
    page = visit(serve(runs))
    is_shown(page, "#runs-table tbody tr", 3)
    colour = page.locator("#runs-policies .swatch").first.evaluate("e => e.style.backgroundColor")
    page.locator("#runs-scenarios input[value=another]").check()
    is_shown(page, "#runs-table tbody tr", 4)
    own = page.locator("#runs-policies .policy", has_text="demo · fedavg").locator(".swatch")
    assert own.evaluate("e => e.style.backgroundColor") == colour  # though the new scenario stands before it
    says(page, "#runs-table", "another · salf")
    page.locator("#runs-scenarios input[value=another]").uncheck()
    is_shown(page, "#runs-table tbody tr", 3)
    page.get_by_label("bytes up").check()
    says(page, "#runs-curve .g-xtitle", "uploaded by all devices")
    page.get_by_label("loss").check()
    says(page, "#runs-curve .g-ytitle", "loss")
    page.locator("#runs-seeds").click()
    page.get_by_role("option", name="seed 2").click()
    expect(page.locator("#runs-table tbody tr").first.locator("td").last).to_have_text("1", timeout=WAIT_MS)
    page.wait_for_url("**/?*seed=2*over=uploaded_bytes*of=loss*")
    assert page.complaints == []


def test_broken_folders_are_listed_with_their_reasons_and_the_rest_is_shown(visit, serve, runs):
    (runs / "demo" / "policy-0" / "seed-1" / "layers.parquet").unlink()
    (runs / "demo" / "policy-1" / "seed-2" / "manifest.json").write_text("{", encoding="utf-8")
    (runs / "demo" / "policy-2" / "seed-3" / "evaluations.parquet").write_bytes(b"PAR1" + bytes(99) + b"PAR1")
    page = visit(serve(runs))
    is_shown(page, "#runs-table tbody tr", 3)
    says(page, "#runs-broken summary", "3 folders are left out")
    page.locator("#runs-broken summary").click()
    for reason in ("no layers.parquet", "manifest.json cannot be read", "evaluations.parquet cannot be read"):
        says(page, "#runs-broken", reason)
    assert "Traceback" not in page.content()
    assert page.complaints == []


def test_an_empty_folder_says_what_to_do_and_shows_the_first_run_by_itself(visit, serve, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    page = visit(serve(folder))
    says(page, "#runs-answer", "fedsim run")
    write_run(folder / "demo", "fedavg", 1, climb(20))
    page.get_by_label("demo").check(timeout=WAIT_MS)
    is_shown(page, "#runs-table tbody tr", 1)
    assert page.complaints == []


def test_a_folder_that_vanishes_is_told_in_a_line(visit, serve, runs):
    page = visit(serve(runs))
    is_shown(page, "#runs-table tbody tr", 3)
    shutil.rmtree(runs)
    says(page, "#alarm", "is not a folder")
    assert "Traceback" not in page.content()


def test_the_data_of_the_curve_can_be_saved(visit, serve, runs, tmp_path):
    page = visit(serve(runs))
    is_shown(page, "#runs-table tbody tr", 3)
    with page.expect_download() as download:
        page.locator("#runs-data").click()
    download.value.save_as(tmp_path / "curve.csv")
    assert (tmp_path / "curve.csv").read_text().startswith("policy,time_s,accuracy,low,high,n_seeds\nfedavg,0,")


def test_a_hostile_name_is_shown_and_does_nothing_on_any_page(visit, serve, tmp_path):
    folder = tmp_path / "runs"
    for position, label in enumerate([HOSTILE, HOSTILE + "2"]):
        run = write_run(folder / "demo", label, 1, climb(20), kind=HOSTILE, position=position)
        state(run, {"k": HOSTILE + str(position), "name": HOSTILE}, of="policy")
        shutil.copy(run / "rounds.parquet", run / "tasks.parquet")
    (folder / "demo").rename(folder / HOSTILE.replace("/", "_"))
    begin_run(folder / HOSTILE.replace("/", "_"), HOSTILE, 9, kind=HOSTILE, policy="policy-0")
    address = serve(folder)
    for path, sign in [
        ("/", "#runs-table tbody tr"),
        ("/settings", "#settings-lines .scatterlayer .trace"),
        ("/watch", "#watch-table tbody tr"),
        ("/timeline", "#timeline-answer:not(:empty)"),
    ]:
        page = visit(address + path)
        is_shown(page, sign)
        if path != "/timeline":
            assert page.get_by_text(HOSTILE).first.is_visible()
            page.locator(".nsewdrag").first.hover()
        assert page.evaluate("window.harm === undefined")
        assert page.locator("main img").count() == 0
        assert "<" not in page.title()
        assert page.complaints == []


# ---- settings -------------------------------------------------------------------------------------------------------------


def test_the_map_of_two_settings_says_where_the_target_was_not_reached(visit, serve, runs):
    page = visit(serve(runs) + "/settings?scenario=demo&x=policy.k&y=training.learning_rate")
    says(page, "#settings-answer", "Among 9 runs 3 settings differ")
    is_shown(page, "#settings-map .heatmaplayer image, #settings-map .hm")
    says(page, "#settings-map", "not within")
    says(page, "#settings-map", "600 s")
    says(page, "#settings-map-title", "shortest, 120 s, with policy.k 2")
    is_shown(page, "#settings-lines .scatterlayer .trace", 3)
    assert page.complaints == []


def test_one_setting_alone_is_shown_as_points_and_the_choice_stands_in_the_address(visit, serve, runs):
    page = visit(serve(runs) + "/settings?scenario=demo&x=policy.k&y=&measure=final_accuracy")
    says(page, "#settings-map-title", "Final accuracy over policy.k")
    is_shown(page, "#settings-map .scatterlayer path.point", 9)
    page.wait_for_url("**/settings?*x=policy.k&y=&measure=final_accuracy")
    assert page.complaints == []


def test_where_no_setting_differs_the_page_says_what_to_do(visit, serve, tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / "runs" / "demo", "fedavg", seed, climb(20))
    page = visit(serve(tmp_path / "runs") + "/settings")
    says(page, "#settings-answer", "the same settings")
    expect(page.locator("#settings-map-figure")).to_be_hidden()
    assert page.complaints == []


# ---- timeline ------------------------------------------------------------------------------------------------------------


def test_any_round_of_any_run_that_recorded_its_tasks_is_drawn_and_single_devices_too(visit, serve, runs, tiny):
    policies = [{"kind": "k_sync", "k": 2}, {"kind": "fedavg"}]
    fedsim.run(fedsim.from_dict(tiny(policies=policies, seeds=[1], record_tasks=True, train=False)), out=runs)
    page = visit(serve(runs) + "/timeline?round=1")
    says(page, "#timeline-answer", "Round 1 of k_sync")
    is_shown(page, "#timeline-round-picture .xtick text")
    rows = page.locator("#timeline-round-picture .ytick")
    expect(rows).to_have_count(5, timeout=WAIT_MS)
    page.locator("#timeline-round").press("ArrowUp")
    says(page, "#timeline-answer", "Round 2 of k_sync")
    page.locator("#timeline-last").fill("2")
    expect(rows).to_have_count(2, timeout=WAIT_MS)
    page.wait_for_url("**/timeline?run=*round=2*last=2")
    page.locator("#timeline-run").click()
    page.get_by_role("option", name="fedavg, seed 1").click()
    says(page, "#timeline-answer", "Round 2 of fedavg")
    page.locator("#timeline-round").fill("99")
    says(page, "#timeline-answer", "This run closed 3 rounds: give one from 0 to 2.")
    expect(page.locator("#timeline-round-picture-figure")).to_be_hidden()
    assert page.complaints == []


def test_without_recorded_tasks_the_page_says_how_to_have_them(visit, serve, runs):
    page = visit(serve(runs) + "/timeline")
    says(page, "#timeline-answer", "Set record_tasks: true")
    assert page.complaints == []


# ---- watch ----------------------------------------------------------------------------------------------------------------


def test_a_run_appears_grows_and_is_finished_while_the_page_is_open(visit, serve, runs, tmp_path):
    for old in runs.rglob("*"):
        os.utime(old, (1e9, 1e9))  # finished long ago
    page = visit(serve(runs) + "/watch")
    says(page, "#watch-answer", "Nothing is in progress")
    partial = begin_run(runs / "demo", "salf", 5, kind="salf", position=3)
    says(page, "#watch-table tbody tr", "begun; no round closed yet")
    seen = []
    page.evaluate("window.notReloaded = true")
    for number in range(3):
        add_lines(partial, journal_line(number, accuracy=0.2 * number, share=0.25 * (number + 1)))
        says(page, "#watch-table tbody tr", f"{25 * (number + 1)} %")
        seen.append(page.locator("#watch-table tbody tr td").nth(2).inner_text())
    assert seen == ["10 s", "20 s", "30 s"]
    is_shown(page, "#watch-curve .scatterlayer path.js-line", 1)
    add_lines(partial, journal_line(3, accuracy=0.7, share=0.9)[:40])  # half a line
    finish_run(partial, write_run(tmp_path / "elsewhere", "salf", 5, climb(10), kind="salf", position=3))
    says(page, "#watch-answer", "1 run finished in the last 30 min")
    says(page, "#watch-table tbody tr", "100 %")
    says(page, "#watch-table tbody tr", "finished")
    assert page.evaluate("window.notReloaded")
    assert page.complaints == []


def test_a_run_without_news_for_minutes_may_have_been_stopped(visit, serve, runs):
    partial = begin_run(runs / "demo", "salf", 5, kind="salf", position=3)
    add_lines(partial, journal_line(0, accuracy=0.3))
    journal = partial / "journal.jsonl"
    then_s = journal.stat().st_mtime - 7 * 60 - 5
    os.utime(journal, (then_s, then_s))
    page = visit(serve(runs) + "/watch")
    says(page, "#watch-table tbody tr >> nth=0", "no news for 7 min; it may have been stopped")
    says(page, "#watch-answer", "1 of them without news")
    assert page.complaints == []


def test_a_page_on_which_nothing_happens_is_sent_nothing(visit, serve, runs):
    page = visit(serve(runs) + "/watch")
    is_shown(page, "#watch-answer:not(:empty)")
    answers = []
    page.on("response", lambda response: answers.append(response.status))
    while len(answers) < 6:
        page.wait_for_timeout(200)
    assert set(answers[2:]) == {204}  # no content


# ---- how it looks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/settings", "/watch", "/timeline"])
def test_no_page_scrolls_sideways(visit, serve, runs, path):
    page = visit(serve(runs) + path, width=390)
    is_shown(page, "main .answer:not(:empty)")
    for width in (390, 1200):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_page_controls_and_figures_follow_the_scheme_as_it_changes(visit, serve, runs):
    page = visit(serve(runs), scheme="dark")
    is_shown(page, "#runs-curve .xtick text")
    for scheme, ink, ground in [
        ("dark", "rgb(236, 236, 236)", "rgb(22, 24, 27)"),
        ("light", "rgb(27, 27, 27)", "rgb(255, 255, 255)"),
    ]:
        page.emulate_media(color_scheme=scheme)
        expect(page.locator("body")).to_have_css("background-color", ground)
        expect(page.locator("#runs-curve .xtick text").first).to_have_css("fill", ink)
        expect(page.locator("#runs-curve .g-xtitle text")).to_have_css("fill", ink)


def test_every_control_has_a_name_that_is_read_out(visit, serve, runs):
    page = visit(serve(runs))
    is_shown(page, "#runs-table tbody tr", 3)
    for name in ("Scenarios", "Policies"):
        assert page.get_by_role("group", name=name).count() == 1
    assert page.get_by_role("checkbox", name="fedavg").count() == 1
    assert page.get_by_role("img", name=re.compile("median accuracy")).count() == 1
