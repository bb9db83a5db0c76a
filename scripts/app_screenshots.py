"""docs/images/app*.png: start `maskgen app` first, then give its address: `python scripts/app_screenshots.py`.

Needs playwright and a Chromium.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parents[1] / "docs" / "images"
# Strokes over the picture, in shares of the editor's width and height.
EYES = [(0.3, 0.36), (0.4, 0.34), (0.5, 0.36), (0.6, 0.34), (0.7, 0.38)]


def draw(page: Any, task: str) -> None:
    """Press the task's button and wait for its pictures."""
    page.click(f"#draw-{task}")
    for word in ("Drawing", "Done"):
        page.wait_for_function(f"document.querySelector('#status').innerText.includes('{word}')", timeout=120_000)


def paint(page: Any) -> None:
    """A stroke by the mouse."""
    box = page.locator("#editor canvas").first.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in EYES]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=8)
    page.mouse.up()


def choose_class(page: Any, name: str) -> None:
    """In the settings."""
    page.fill("#class input", name)
    page.keyboard.press("Enter")


def main(address: str = "http://127.0.0.1:7860") -> None:
    """Both pictures."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    options = ["--enable-unsafe-swiftshader", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        for scheme, name in (("light", "app.png"), ("dark", "app-extend.png")):
            page = browser.new_page(viewport={"width": 1320, "height": 940}, color_scheme=scheme)
            page.goto(address)
            page.wait_for_selector("#draw-sample")
            choose_class(page, "cat-face" if scheme == "light" else "country-flag")
            page.fill("#seed input", "21")
            draw(page, "sample")
            page.click("#take")
            page.wait_for_timeout(3000)
            if scheme == "light":
                paint(page)
                page.wait_for_timeout(500)
                draw(page, "inpaint")
            else:
                page.get_by_role("tab", name="Extend").click()
                draw(page, "outpaint")
            page.mouse.move(5, 5)
            page.wait_for_timeout(5200)  # the decode's last frame stands still for a while
            page.screenshot(path=IMAGES / name, full_page=True)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
