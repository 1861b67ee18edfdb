"""The page in a real browser: it renders, sorts, fits a phone, prints, and asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crowds import crowd
from PIL import Image
from synthetic_runs import experiment, requests, run, starved

from suite.report.html import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--virtual-time-budget=3000",
)  # fmt: skip
CLIENTS = tuple(f"client-{i}" for i in range(12))

Browse = Callable[..., str]


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Browse:
    """Run the browser on a page with more flags, and return what it wrote to standard output."""
    named = os.environ.get("SUITE_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium: install chromium, or name one in SUITE_CHROMIUM")
    profile = tmp_path_factory.mktemp("profile")

    def browser(page: Path, *flags: str) -> str:
        command = [found, *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    return browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"client": "a", "arrival": 0, "admitted": 0.1, "finish": 1}, starved("never-served", 0.0)]
    folder = experiment(
        tmp_path_factory.mktemp("report"),
        crowd("fcfs", CLIENTS),
        crowd("dlpm:quantum=1000", CLIENTS, speed=1.02),
        crowd("dlpm:quantum=1000", CLIENTS, seed=1, speed=1.03),
        run(requests(*rows), scheduler="favourite", workload="starving"),
    )
    return write_report(folder).page


def with_script(page: Path, script: str, name: str, allowed: bool = True) -> Path:
    """A copy of the page with one more script at its end, added to those that its policy allows."""
    text = page.read_text(encoding="utf-8")
    if allowed:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        text = text.replace("script-src ", f"script-src &#39;sha256-{digest}&#39; ", 1)
    copy = page.with_name(name)
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return copy


def probe(dom: str) -> dict[str, Any]:
    """What a script left in the page's `data-probe`."""
    found = re.search(r'data-probe="([^"]*)"', dom)
    assert found is not None, "the script did not run"
    return json.loads(html.unescape(found.group(1)))


REPORT = "document.body.dataset.probe = JSON.stringify({});"

LOADED = """
addEventListener("load", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  setTimeout(() => {
    document.body.dataset.probe = JSON.stringify({
      loaded: performance.getEntriesByType("resource").map(entry => entry.name),
      pictures: [...document.images].map(image => image.complete && image.naturalWidth > 0),
      answer: document.querySelector(".answer").innerText,
      border: getComputedStyle(document.querySelector(".card")).borderTopStyle,
    });
  }, 500);
});
"""

CLICK = """
const table = [...document.querySelectorAll("table.sortable")].find(t => t.textContent.includes("ROW"));
const heading = [...table.tHead.rows[0].cells].find(th => th.textContent === "HEADING");
const shown = () => [...table.tBodies[0].rows].map(row => row.cells[heading.cellIndex].textContent);
const before = shown(), state = [];
table.closest("details").open = true;
for (let k = 0; k < 2; k++) {
  heading.querySelector("button").focus();
  document.activeElement.click();
  state.push([heading.ariaSort, shown()]);
}
document.body.dataset.probe = JSON.stringify({before, state});
"""


def test_the_page_renders_with_its_answer_and_loads_nothing(browse: Browse, page: Path) -> None:
    found = probe(browse(with_script(page, LOADED, "loads.html"), "--dump-dom"))
    assert found["loaded"] == []
    assert found["answer"].startswith("The fastest of the fair schedulers, of 2 settings: dlpm")
    assert found["border"] == "solid"
    assert len(found["pictures"]) == len(list((page.parent / "figures").glob("*.png")))
    assert all(found["pictures"])


def test_a_script_that_is_not_the_page_s_own_does_not_run(browse: Browse, page: Path) -> None:
    script = "document.body.dataset.probe = JSON.stringify({});"
    dom = browse(with_script(page, script, "foreign.html", allowed=False), "--dump-dom")
    assert script in dom
    assert "data-probe=" not in dom


def sorted_by(browse: Browse, page: Path, heading: str, row: str) -> tuple[list[str], list[list[Any]]]:
    """A column of the table with such a row before any click, and after each of two clicks on its heading."""
    script = CLICK.replace("HEADING", heading).replace("ROW", row)
    found = probe(browse(with_script(page, script, "sorted.html"), "--dump-dom"))
    return found["before"], found["state"]


def test_a_click_on_a_heading_sorts_numbers_by_size(browse: Browse, page: Path) -> None:
    before, ((up, rising), (down, falling)) = sorted_by(browse, page, "TTFT P99 (s)", "client-11")
    assert (up, down) == ("ascending", "descending")
    numbers = sorted(map(float, before))
    assert [float(text) for text in rising] == numbers
    assert [float(text) for text in falling] == numbers[::-1]
    assert rising != before


def test_a_click_on_a_heading_sorts_words_and_numbers_in_them(browse: Browse, page: Path) -> None:
    _, ((_, rising), (_, falling)) = sorted_by(browse, page, "client", "client-11")
    names = [text.removesuffix(" (misbehaving)") for text in rising]
    assert list(dict.fromkeys(names)) == list(CLIENTS)  # client-2 before client-10
    assert falling[0] == CLIENTS[-1]


def test_what_is_no_number_comes_last_both_ways(browse: Browse, page: Path) -> None:
    before, ((up, rising), (down, falling)) = sorted_by(browse, page, "TTFT P99 (s)", "never-served")
    assert sorted(before) == ["1", "never"]
    assert (up, down) == ("ascending", "descending")
    assert rising == falling == ["1", "never"]


PHONE = """<!doctype html>
<body style="margin: 0">
<iframe src="{}" width="390" height="844" style="border: 0"></iframe>
<script>
addEventListener("message", event => {{ document.body.dataset.probe = JSON.stringify(event.data); }});
</script>
"""
"""A phone's window: the browser's own cannot be as narrow."""

WIDTHS = (
    "addEventListener('load', () => parent.postMessage({window: innerWidth,"
    " page: document.documentElement.scrollWidth, body: document.body.scrollWidth}, '*'));"
)


def test_on_a_phone_the_page_does_not_scroll_sideways(browse: Browse, page: Path) -> None:
    inner = with_script(page, WIDTHS, "inner.html")
    phone = page.with_name("phone.html")
    phone.write_text(PHONE.format(inner.name))
    assert probe(browse(phone, "--dump-dom")) == {"window": 390, "page": 390, "body": 390}


@pytest.mark.parametrize("size", ["1280,800", "500,844"])
def test_a_screenshot_shows_a_page_and_not_a_blank(
    browse: Browse, page: Path, tmp_path: Path, size: str
) -> None:
    picture = tmp_path / "page.png"
    browse(page, f"--screenshot={picture}", f"--window-size={size}")
    with Image.open(picture) as shot:
        assert shot.size == tuple(map(int, size.split(",")))
        colors = shot.convert("RGB").getcolors(1 << 24)
    assert colors is not None
    assert len(colors) > 50
    assert max(count for count, _ in colors) < 0.97 * shot.size[0] * shot.size[1]


def test_print_shows_what_the_screen_keeps_closed(browse: Browse, page: Path, tmp_path: Path) -> None:
    paper = tmp_path / "page.pdf"
    browse(page, f"--print-to-pdf={paper}")
    content = paper.read_bytes()
    assert content.startswith(b"%PDF")
    figures = len(list((page.parent / "figures").glob("*.png")))
    assert content.count(b"/Subtype /Image") >= figures
