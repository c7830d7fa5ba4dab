"""The page of evaluate: what stands on it, and that a browser shows it without a network."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from deadlines import extend

from voxfleet.report.figures import mosaic
from voxfleet.report.page import Check, Page, Picture, Summary

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
PROBE = """<script>window.addEventListener("load", () => {
const images = [...document.images].map(image => image.naturalWidth);
const details = [...document.querySelectorAll("details")].map(one => one.open);
document.querySelectorAll("details").forEach(one => { one.open = true; });
const root = document.documentElement;
document.title = JSON.stringify({images, details, overflow: root.scrollWidth - root.clientWidth});
});</script>"""


def page(**changes):
    volumes = np.random.default_rng(0).random((6, 8, 9, 10))
    long = Check("a figure of a name so long that it takes more than a line " * 3, "1.23 [1.1, 1.4]", "<b>", False)
    fine = Check("fine", "0", "none", True, "32", "0.1")
    content = {
        "title": "Volumes & more",
        "lead": "lead",
        "verdicts": [Check("set", "release: fail", passed=False)],
        "tables": {"Release gate": [fine], "Distances": [long, Check("shown", "1")]},
        "sections": {
            "Mosaics": [Picture(mosaic(volumes, ["one"] * 6), "volumes"), Picture(mosaic(volumes, "abcdef"), "b")]
        },
        "commands": ["voxfleet evaluate " + "--key value " * 40],
        "summary": [Summary("Release gate", 1, 1, []), Summary("Distances", 1, 0, [long])],
        "opened": frozenset({"Release gate"}),
    }
    return Page(**(content | changes)).html()


def test_the_verdict_and_its_summary_come_before_all_figures_and_pictures():
    text = page()
    places = [text.index(part) for part in ("release: fail", "0 of 1", "<details open>", "<details>", "<h2>Mosaics")]
    assert places == sorted(places)
    assert text.count("<details open>") == 1
    assert "&lt;b&gt;" in text
    assert "Volumes &amp; more" in text
    assert "<script" not in text


def test_the_page_refers_to_no_other_place():
    links = re.findall(r"(?:src|href|url|srcset|action)\s*[=(]\s*[\"']?([^\"')>]{0,20})", page())
    assert links
    assert all(link.startswith("data:image/png") for link in links)
    assert "http" not in page()
    assert "@import" not in page()


@pytest.mark.skipif(CHROMIUM is None, reason=f"no browser: none of {', '.join(NAMES)} is installed")
@pytest.mark.parametrize("width", [480, 1280])
def test_a_browser_shows_all_pictures_and_nothing_is_wider_than_the_window(tmp_path, width):
    found = rendered(page(), tmp_path, width)
    assert len(found["images"]) == 2
    assert min(found["images"]) > 100
    assert found["details"] == [True, False]
    assert found["overflow"] <= 0


@pytest.mark.skipif(CHROMIUM is None, reason=f"no browser: none of {', '.join(NAMES)} is installed")
def test_a_browser_would_tell_a_picture_that_is_broken(tmp_path):
    found = rendered(page(sections={"Mosaics": [Picture(b"no picture", "broken")]}), tmp_path, 800)
    assert found["images"] == [0]


def rendered(text, folder, width):
    """What a browser says of the page, by a script in a copy of it."""
    (folder / "page.html").write_text(text.replace("</body>", f"{PROBE}</body>"))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=5000",
        f"--user-data-dir={folder}/p",
    ]
    command = [CHROMIUM, *options, f"--window-size={width},900", "--dump-dom", (folder / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=extend(300), check=True)
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.S)[1]))
