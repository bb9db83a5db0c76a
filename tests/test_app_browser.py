"""The web page in headless Chromium, as people use it: generate, paint, complete, save, open again, err."""

import os
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

import numpy as np
import pytest
from PIL import Image

from given import an_image, array
from maskgen.app.painting import PAINT
from maskgen.images import parameters_of, sources_of

sync_playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").sync_playwright

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
    pytest.mark.skipif(find_spec("gradio") is None, reason="Gradio is not installed: pip install 'maskgen[app]'"),
]
WAIT = 240_000  # milliseconds: other processes may hold the machine


def until(true):
    """Wait for it."""
    end = time.monotonic() + WAIT / 1000
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def answers(address):
    """Past any proxy: urlopen's own opener keeps those that were in the environment when another test first used it."""
    try:
        build_opener(ProxyHandler({})).open(address, timeout=5).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def address(make_pipeline, tmp_path_factory):
    """`maskgen app` with a model of 16x16 images, 8x8 tokens and random weights."""
    folder = tmp_path_factory.mktemp("browser")
    make_pipeline(side=8).save_pretrained(folder / "run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "maskgen", "app", str(folder / "run"), "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        until(lambda: server.poll() is not None or answers(f"http://127.0.0.1:{port}"))
        assert server.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}"
        assert "Traceback" not in (folder / "log").read_text()
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def page(address):
    """The page, loaded, in a browser to which no other host exists; what it asked for is in `page.asked`."""
    options = ["--enable-unsafe-swiftshader", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
    if os.geteuid() == 0:
        options.append("--no-sandbox")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(viewport={"width": 1320, "height": 1010})
        page.set_default_timeout(WAIT)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(address)
        page.wait_for_selector("#run-sample")
        yield page
        browser.close()


def draw(page, task):
    """Press the task's button and wait for its images."""
    page.click(f"#run-{task}" if task != "again" else "#remake")
    page.wait_for_function("document.querySelector('#status').innerText.includes('Generating')")
    page.wait_for_function("document.querySelector('#status').innerText.includes('Done')")


def saved(page, path):
    """The chosen image's file, through the button."""
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(path)
    return path


def middle(page):
    """The 64x64 pixels in the middle of the editor, as they are on the screen."""
    canvas = Image.open(BytesIO(page.locator("#editor canvas").first.screenshot())).convert("RGB")
    return np.asarray(
        canvas.crop((canvas.width // 2 - 32, canvas.height // 2 - 32, *[n // 2 + 32 for n in canvas.size]))
    )


def upload(page, button, file):
    with page.expect_file_chooser() as chooser:
        page.click(button)
    chooser.value.set_files(file)


@pytest.fixture(scope="module")
def generated(page, tmp_path_factory):
    """Four images are drawn; the second is chosen and saved."""
    draw(page, "sample")
    page.wait_for_function("document.querySelectorAll('#gallery .thumbnail-item').length == 4")
    page.locator("#gallery .thumbnail-item").nth(1).click()
    page.get_by_text("Save number 2").wait_for()
    return saved(page, tmp_path_factory.mktemp("saved") / "generated.png")


@pytest.fixture(scope="module")
def completed(page, generated, tmp_path_factory):
    """It is taken into the editor, painted on by the mouse, and completed."""
    page.click("#take")
    page.wait_for_function("document.querySelector('#caption').innerText.includes('16x16 pixels')")
    until(lambda: middle(page).std() > 10)
    box = page.locator("#editor canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2  # the middle of the image
    page.mouse.move(x - 30, y)
    page.mouse.down()
    for i in range(10):
        page.mouse.move(x - 30 + 6 * i, y)
    page.mouse.up()
    until(lambda: (middle(page)[32, 32] == PAINT).all())
    draw(page, "inpaint")
    return saved(page, tmp_path_factory.mktemp("saved") / "completed.png")


def test_a_generated_image_says_what_made_it(generated, page):
    assert Image.open(generated).size == (16, 16)
    kept = parameters_of(generated)
    assert {"task": "sample", "class": "ant", "seed": 1, "steps": 4}.items() <= kept.items()
    assert "seeds 0 to 3" in page.inner_text("#status")
    shown = page.locator("#gallery img").first
    assert shown.evaluate("e => getComputedStyle(e).imageRendering") == "pixelated"
    assert shown.bounding_box()["width"] > 64


def test_what_is_painted_is_drawn_anew_and_the_rest_stays(generated, completed):
    before, after = array(generated), array(completed)
    sources = sources_of(completed)
    np.testing.assert_array_equal(array(sources["image"]), before)
    hidden = array(sources["mask"]) > 0
    assert hidden[7:9, 7:9].all()
    assert not hidden[:5].any()
    assert not hidden[11:].any()
    np.testing.assert_array_equal(after[~hidden], before[~hidden])
    changed = (after != before).any(-1)
    assert changed[hidden].mean() > 0.5


def test_a_saved_image_is_made_again_from_its_file(page, completed, tmp_path):
    page.fill("#seed input", "99")
    page.get_by_text("Make again", exact=True).click()
    upload(page, "#reopen", completed)
    page.wait_for_function("document.querySelector('#summary').innerText.includes('inpaint of ant')")
    assert page.input_value("#seed input") == str(parameters_of(completed)["seed"])
    draw(page, "again")
    np.testing.assert_array_equal(array(saved(page, tmp_path / "again.png")), array(completed))


def test_a_bad_file_is_told_and_the_page_goes_on(page, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    upload(page, "#upload", tmp_path / "bad.png")
    page.get_by_text("bad.png cannot be read as an image").wait_for()
    good = an_image(20, 12)
    good.save(tmp_path / "good.png")
    upload(page, "#upload", tmp_path / "good.png")
    page.wait_for_function("document.querySelector('#caption').innerText.includes('20x12 pixels')")
    page.get_by_role("tab", name="Extend").click()
    draw(page, "outpaint")
    made = array(saved(page, tmp_path / "wide.png"))
    assert made.shape == (12, 30, 3)  # half of its width on the right
    np.testing.assert_array_equal(made[:, :20], array(good))


def test_a_result_and_a_file_are_joined_and_pass_into_each_other(page, generated, tmp_path):
    page.get_by_role("tab", name="Two images").click()
    upload(page, "#upload", generated)
    page.wait_for_function("document.querySelector('#caption').innerText.includes('16x16 pixels')")
    second = an_image(16, 16, seed=1)
    second.save(tmp_path / "second.png")
    upload(page, "#upload-second", tmp_path / "second.png")
    page.wait_for_function("document.querySelector('#second img')?.naturalWidth == 16")
    page.get_by_role("tab", name="Join").click()
    draw(page, "join")
    joined = saved(page, tmp_path / "joined.png")
    made = array(joined)
    assert made.shape == (16, 16, 3)  # a quarter of the model's width of each, and half of it between
    np.testing.assert_array_equal(made[:, :4], array(generated)[:, :4])
    np.testing.assert_array_equal(made[:, -4:], array(second)[:, -4:])
    source = page.get_attribute("#second img", "src")
    page.click("#take-second")  # the joined one
    page.wait_for_function("old => document.querySelector('#second img')?.src != old", arg=source)
    page.get_by_role("tab", name="Interpolate").click()
    page.fill("#frames input[type=number]", "3")
    draw(page, "interpolate")
    page.get_by_text("frame 3", exact=True).wait_for()
    assert page.locator("#gallery .thumbnail-item").count() == 3
    frame = saved(page, tmp_path / "frame.png")
    assert {"task": "interpolate", "frames": 3, "number": 0}.items() <= parameters_of(frame).items()
    np.testing.assert_array_equal(array(sources_of(frame)["image_2"]), made)


def test_a_model_without_a_critic_says_so_and_the_other_orders_are_there(page):
    page.get_by_text("Order of the tokens").click()
    page.get_by_text("This model has no critic, so it has no order critic.").wait_for()
    page.click("#order input")
    offered = page.locator("[role=option]").all_inner_texts()
    assert [name.split()[-1] for name in offered] == ["confidence", "random", "halton", "raster"]
    page.keyboard.press("Escape")


def test_the_page_asks_no_other_host_and_shows_something(page, address, tmp_path):
    hosts = {urlsplit(url).netloc for url in page.asked if url.startswith("http")}
    assert hosts == {urlsplit(address).netloc}
    page.screenshot(path=tmp_path / "page.png")
    colours = Image.open(tmp_path / "page.png").getcolors(2**24)
    assert len(colours) > 100
