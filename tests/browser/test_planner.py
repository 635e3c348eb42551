"""The planner in a real browser: what is moved is what is asked, and what is written is what is on the screen."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest
from werkzeug.serving import make_server

from fedsim import cli
from fedsim.commands.planner import Planner
from fedsim.dashboard.live.app import make_app
from fedsim.dashboard.plan_page import FORMATS
from fedsim.statistics.words import format_s

sync_api = pytest.importorskip("playwright.sync_api", reason="no browser driver: playwright is not installed")


HOSTILE = "<img src=x onerror='window.harm = 1'>"
SCENARIO = {
    "name": "small",
    "fleet": {
        "n_devices": 6,
        "compute": {"step_s": 1.0, "task_factor": {"kind": "exponential"}},
        "uplink": {"rate_bits_per_s": 1e6},
    },
    "model": {"kind": "mlp", "widths": [6, 5]},
    "data": {"kind": "gaussian_blobs", "n_samples": 120, "n_features": 4, "n_classes": 2},
    "training": {"local_steps": 3, "batch_size": 16, "batches": "with_replacement"},
    "policies": [
        {"kind": "fedavg", "label": HOSTILE},
        {"kind": "k_sync", "k": 3},
        {"kind": "salf", "deadline_s": 0.7},
    ],
    "seeds": [1],
    "stop": {"n_rounds": 10},
    "train": False,
}
ROUND, K_SYNC = 0, 1


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("runs")
    for name in ("other", "small"):
        run = folder / name / "fedavg" / "seed-1"
        run.mkdir(parents=True)
        policies = SCENARIO["policies"] if name == "small" else [{"kind": "stsyn", "k": 2}]
        run.joinpath("manifest.json").write_text(
            json.dumps({"scenario": {**SCENARIO, "name": name, "policies": policies}})
        )
    server = make_server("127.0.0.1", 0, make_app(folder, Planner.of_folder(folder)).server, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/planner"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def visit(browser, address) -> Iterator:
    """Open the planner at the scenario small, with all of it computed; complaints gather in `page.complaints`."""
    contexts = []

    def open_page(width: int = 1200):
        context = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.complaints = []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(address)
        page.locator("#planner-start").click()
        page.get_by_role("option", name="small").click()
        sync_api.expect(page.locator("#planner-table tbody tr")).to_have_count(3)
        settled(page)
        return page

    yield open_page
    for context in contexts:
        context.close()


def settled(page) -> None:
    sync_api.expect(page.locator("#planner-table")).not_to_contain_text("computing", timeout=20_000)
    sync_api.expect(page.locator("#planner-bends")).not_to_contain_text("Computing", timeout=20_000)


def box(page, key):
    return page.locator(f'input[id*="{key}"]')


def thumb(page, key):
    return page.locator(f'[id*="planner-slider"][id*="{key}"] [role=slider]')


def cell(page, row, column):
    return page.locator("#planner-table tbody tr").nth(row).locator("td").nth(column)


def write(page, key, text) -> None:
    box(page, key).fill(text)
    box(page, key).press("Enter")


def problems(page):
    return page.locator(".problem:visible")


def planned(path, capsys, label):
    """What `fedsim plan` says of a policy at the stated value of its first setting."""
    with pytest.raises(SystemExit) as end:
        cli.main(["plan", str(path), "--json"])
    assert not end.value.code
    curve = next(one for one in json.loads(capsys.readouterr().out) if one["policy"] == label)
    return next(point for point in curve["points"] if point["value"] == curve["stated"])


def downloaded(page, path):
    with page.expect_download() as download:
        page.get_by_role("button", name="Write the scenario file").click()
    assert download.value.suggested_filename == "small-what-if.yaml"
    download.value.save_as(path)
    return path


def test_moving_k_by_the_keyboard_shows_what_plan_says_of_the_file_that_is_written(visit, tmp_path, capsys):
    page = visit()
    stated = cell(page, K_SYNC, ROUND).inner_text()
    thumb(page, "policies/1/k").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    sync_api.expect(box(page, "policies/1/k")).to_have_value("5")
    sync_api.expect(cell(page, K_SYNC, ROUND)).not_to_have_text(stated)
    settled(page)
    point = planned(downloaded(page, tmp_path / "file.yaml"), capsys, "k_sync")
    assert cell(page, K_SYNC, ROUND).inner_text() == format_s(point["round_s"])
    assert cell(page, K_SYNC, 1).inner_text() == FORMATS["participation_share"](point["participation_share"])
    assert page.complaints == []


def test_the_file_that_is_written_passes_check(visit, tmp_path):
    page = visit()
    write(page, "fleet/n_devices", "8")
    write(page, "policies/2/deadline_s", "1.5")
    sync_api.expect(page.locator("#planner-text")).to_contain_text("deadline_s: 1.5")
    path = downloaded(page, tmp_path / "file.yaml")
    with pytest.raises(SystemExit) as end:
        cli.main(["check", str(path)])
    assert not end.value.code
    assert "n_devices: 8" in path.read_text()


def test_what_is_written_into_a_box_moves_its_slider_and_more_devices_leave_room_for_a_larger_k(visit):
    page = visit()
    write(page, "policies/1/k", "4")
    sync_api.expect(thumb(page, "policies/1/k")).to_have_attribute("aria-valuenow", "4")
    write(page, "fleet/n_devices", "12")
    sync_api.expect(thumb(page, "policies/1/k")).to_have_attribute("aria-valuemax", "12")
    sync_api.expect(box(page, "policies/1/k")).to_have_value("4")


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "nothing is written"), ("many", "is no number"), ("-1", "must be at least 1"), ("7", "choose 1..6")],
)
def test_a_number_that_cannot_be_used_is_told_beside_its_control_and_the_last_picture_stays(visit, text, said):
    page = visit()
    before = page.locator("#planner-table").inner_text()
    write(page, "policies/1/k", text)
    sync_api.expect(problems(page)).to_contain_text(said)
    told = page.locator(".control", has=box(page, "policies/1/k")).locator(".problem")
    sync_api.expect(told).to_contain_text(said)
    assert page.locator("#planner-table").inner_text() == before
    write(page, "policies/1/k", "3")
    sync_api.expect(problems(page)).to_have_count(0)
    assert page.complaints == []


def test_curves_follow_the_setting_that_is_asked_about_and_the_policies_that_are_ticked(visit):
    page = visit()
    titles = page.locator("#planner-round_s .xtitle")
    sync_api.expect(titles).to_have_text("devices waited for")
    page.get_by_label("How long a deadline?").check()
    sync_api.expect(titles).to_have_text("deadline (s), logarithmic")
    page.locator('[id*="planner-ticked"] input').nth(2).uncheck()
    sync_api.expect(page.locator("#planner-table tbody tr")).to_have_count(2)
    sync_api.expect(page.locator("#planner-round_s-figure")).to_be_hidden()
    assert page.complaints == []


def test_a_label_is_text(visit):
    page = visit()
    sync_api.expect(page.locator("#planner-table")).to_contain_text(HOSTILE)
    assert page.evaluate("window.harm") is None


def test_nothing_is_wider_than_a_phone(visit):
    page = visit(width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
