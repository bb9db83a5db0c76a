"""Take the screenshots docs/images/app*.png. Start `maskgen app` first.

python scripts/app_screenshots.py [ADDRESS [FOLDER]]
The script needs playwright and a Chromium.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parents[1] / "docs" / "images"
# The points of a stroke, as shares of the editor's width and height.
EYES = [(0.3, 0.36), (0.4, 0.34), (0.5, 0.36), (0.6, 0.34), (0.7, 0.38)]


def run(page: Any, task: str) -> None:
    """Press the button of `task` and wait for its images."""
    page.click(f"#run-{task}")
    for word in ("Generating", "Done"):
        page.wait_for_function(f"document.querySelector('#status').innerText.includes('{word}')", timeout=120_000)


def paint(page: Any) -> None:
    """Paint a stroke with the mouse."""
    box = page.locator("#editor canvas").first.bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in EYES]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=8)
    page.mouse.up()


def choose_class(page: Any, name: str) -> None:
    """Choose a class in the settings."""
    page.fill("#class input", name)
    page.keyboard.press("Enter")


def generate(page: Any, name: str, seed: int) -> None:
    """Generate four images of a class."""
    choose_class(page, name)
    page.fill("#seed input", str(seed))
    run(page, "sample")


def completed(page: Any) -> None:
    """Paint over a result and inpaint it."""
    generate(page, "cat-face", 21)
    page.click("#take")
    page.wait_for_timeout(6000)
    paint(page)
    page.wait_for_timeout(500)
    run(page, "inpaint")


def extended(page: Any) -> None:
    """Extend a result to the right."""
    generate(page, "country-flag", 21)
    page.click("#take")
    page.wait_for_timeout(6000)
    page.get_by_role("tab", name="Extend").click()
    run(page, "outpaint")


def interpolated(page: Any) -> None:
    """Interpolate between two results."""
    page.get_by_role("tab", name="Two images").click()
    for seed, button in ((3, "#take"), (5, "#take-second")):
        generate(page, "plant-flower", seed)
        page.click(button)
        page.wait_for_timeout(6000)
    run(page, "interpolate")


SHOTS = {"app.png": ("light", completed), "app-extend.png": ("dark", extended), "app-two.png": ("light", interpolated)}


def main(address: str = "http://127.0.0.1:7860", folder: str | Path = IMAGES) -> None:
    """Take all screenshots."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    options = ["--enable-unsafe-swiftshader", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        for name, (scheme, work) in SHOTS.items():
            page = browser.new_page(viewport={"width": 1320, "height": 940}, color_scheme=scheme)
            page.goto(address)
            page.wait_for_selector("#run-sample")
            work(page)
            page.mouse.move(5, 5)
            page.wait_for_timeout(6200)  # wait for the GIF of the decode to reach its last frame
            page.add_style_tag(content="#status { visibility: hidden }")  # it shows a time
            page.screenshot(path=Path(folder) / name, full_page=True)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
