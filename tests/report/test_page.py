"""The page of a report: complete, self-contained, and laid out for a phone."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mergekit_lite.report.page import page
from mergekit_lite.report.vectors import Sums, Touched, Vectors, Votes

VOID = {"meta"}


def sums(experts: int, angle: float) -> Sums:
    gram = np.full((experts, experts), angle) + np.eye(experts) * (1 - angle)
    both = np.full((experts, experts), 30) + np.eye(experts, dtype=np.int64) * 70
    return Sums(1, 1000, 400.0, gram, Votes(both, 50, 20), Votes(both // 2, 20, 5))


def vectors(experts: int = 3, layers: int = 30, name: str = "expert") -> Vectors:
    groups = {(None, "embedding"): sums(experts, 0.0)}
    groups |= {(i, "mlp.up"): sums(experts, i / layers) for i in range(layers)}
    names = {f"{name}-{i}": f"organisation/a-rather-long-model-name-{i}" for i in range(experts)}
    touched = [Touched("recipe.yaml:12:5", "take base for role norm", 61, 35136)]
    return Vectors("recipe.yaml", "zoo:smol", names, layers, groups, touched, trimmed=True)


class Checker(HTMLParser):
    """Follows the tags; raises where one is closed that is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        return None

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def text_of(html: str) -> str:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert not checker.open
    return " ".join(checker.text)


def test_the_page_tells_all_figures_and_nests_its_tags() -> None:
    text = text_of(page(vectors()))
    for wanted in ("40% of all", "25% of those kept", "take base for role norm", "35,136", "75%"):
        assert wanted in text
    # 0.5 is the cosine in the middle of the depth; 15 of 85 entries overlap in every layer.
    assert "layer 15: 0.50" in text
    assert "17.6%" in text


def test_nothing_is_fetched_and_nothing_runs() -> None:
    html = page(vectors())
    assert not re.search(r"<script|<link|<img|@import|url\(|https?://", html)


def test_names_from_a_recipe_cannot_add_tags() -> None:
    html = page(vectors(name="<script>alert(1)</script>"))
    assert "<script" not in html
    text_of(html)


@pytest.mark.parametrize("experts", [1, 2, 9])
def test_any_number_of_experts(experts: int) -> None:
    text = text_of(page(vectors(experts, layers=1)))
    assert ("Where do they disagree?" in text) == (experts > 1)


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_it_without_sideways_scrolling(tmp_path: Path, width: int) -> None:
    """A real browser lays the page out and reports what it measured through the page's title."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.fail("no chromium or google-chrome on the PATH")
    probe = """<script>addEventListener("load", () => {
      const seen = [...document.querySelectorAll("svg")].map(s => s.getBoundingClientRect());
      const low = [...document.querySelectorAll("svg text")]
        .map(t => t.getBoundingClientRect()).filter(r => r.height < 9).length;
      const out = [...document.querySelectorAll("body *")].filter(e => !e.closest(".wide"))
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1).length;
      document.title = [document.documentElement.scrollWidth <= innerWidth, out,
        seen.filter(r => r.width > 100 && r.height > 40).length, low].join(" ");
    })</script>"""
    frame = f'<iframe src="page.html" width="{width}" height="800" style="border:0"></iframe>'
    relay = """<script>addEventListener("load", () => {
      document.title = frames[0].document.title;
    })</script>"""
    (tmp_path / "page.html").write_text(page(vectors(4)) + probe)
    (tmp_path / "frame.html").write_text(f"<!doctype html>{frame}{relay}")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1400,1000", "--virtual-time-budget=5000", "--dump-dom",
        (tmp_path / "frame.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    fits, outside, charts, tiny = re.findall(r"<title>(.*)</title>", done.stdout)[0].split()
    assert (fits, outside, tiny) == ("true", "0", "0")
    assert int(charts) == 4
