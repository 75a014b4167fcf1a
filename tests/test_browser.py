"The explorer widgets as a user has them: in Chromium, in JupyterLab and Voila, with mouse and keyboard, on the tiny corpus and the models that come with the package."
import base64
import io
import json
import time

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from fsrvos.apps.player import ClipView
from fsrvos.apps.still import without_kernel
from fsrvos.data.corpus import Corpus
from tests.browsing import LAPTOP, QUIET, chromium, needs_chromium, serving
from tests.tiny import make_tiny_corpus, tiny_evaluation

pytestmark = needs_chromium
SAVING = {"@jupyter-widgets/jupyterlab-manager:plugin": {"saveState": True}}
LAB = ("jupyterlab", "--no-browser", "--allow-root", "--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=", "--LanguageServerManager.autodetect=False")
CELLS = ("from fsrvos.apps.explore import CorpusBrowser, EpisodeExplorer, RunComparer\nfrom fsrvos.data.corpus import Corpus\ncorpus = Corpus.load('corpus')",
         "CorpusBrowser(corpus)",
         "EpisodeExplorer(corpus, {'single': 'fsrvos-demo', 'several': 'fsrvos-demo-multi'})",
         "RunComparer('results', corpus)")
PIXELS = """async picture => {
    try { await picture.decode(); } catch { return null; }      // just now another took its place
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
    canvas.getContext('2d').drawImage(picture, 0, 0);
    return canvas.toDataURL('image/png');
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A tiny corpus, the results of two models on it, and a notebook with the widgets."
    root = tmp_path_factory.mktemp("explore")
    make_tiny_corpus(root / "corpus")
    (root / "results").mkdir()
    for cell, values in (("cma-1", {"cat_0": [.2, .4], "cat_1": [.8, .8]}), ("cma_plus-1", {"cat_0": [.4, .6], "cat_1": [.3, .3]})):
        tiny_evaluation(cell, values).to_json(root / "results" / f"{cell}.json")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in CELLS], metadata=kernel), root / "explore.ipynb")
    return root


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def lab(folder, browser):
    "The notebook in JupyterLab, run from top to bottom, on the screen of a laptop."
    with serving(*LAB, folder=folder, settings=QUIET | SAVING) as address:
        page = new_page(browser)
        page.goto(f"{address}/lab/tree/explore.ipynb?reset")
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        wait_for_cells(page)
        yield page


def new_page(browser):
    page = browser.new_page(viewport=LAPTOP)
    page.set_default_timeout(300_000)
    return page


def wait_for_cells(page) -> None:
    "Wait until every cell has run, without an error."
    errors = page.locator("[data-mime-type='application/vnd.jupyter.error'], [data-mime-type='application/vnd.jupyter.stderr']")
    until(lambda: errors.count() or page.locator(".jp-CodeCell .jp-InputPrompt").last.inner_text() == f"[{len(CELLS)}]:")
    assert not errors.count(), errors.first.inner_text()
    part(page, 3).get_by_role("listbox").wait_for()


def part(page, number):
    "The output of code cell `number` of the notebook."
    return page.locator(".jp-CodeCell").nth(number).locator(".jp-Cell-outputArea")


def pixels(picture) -> np.ndarray:
    "A picture as the browser decoded it, uint8 [H, W, 3]."
    png = until(lambda: picture.evaluate(PIXELS)).split(",")[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))


def until(condition, seconds: float = 300):
    "Wait for a condition to hold -> what it gave. A busy machine takes long; only what is broken takes this long."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(.1)
    raise AssertionError(f"did not come true within {seconds} s")


def changed(picture, before: np.ndarray) -> np.ndarray:
    "Wait for a picture to become another -> the new one."
    return until(lambda: (now := pixels(picture)).shape == before.shape and not np.array_equal(now, before) and [now])[0]


def slider(within, label: str):
    "The handle of the slider with that label."
    return within.locator(".widget-slider").filter(has_text=label).get_by_role("slider")


def drag(page, handle, share: float) -> None:
    "Drag a slider's handle with the mouse to a share of its track."
    handle.scroll_into_view_if_needed()
    at, track = handle.bounding_box(), handle.locator("xpath=ancestor::*[contains(@class, 'noUi-base')]").bounding_box()
    y = at["y"] + at["height"] / 2
    page.mouse.move(at["x"] + at["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(track["x"] + share * track["width"], y, steps=4)
    page.mouse.up()


def chosen_pixel(explorer) -> tuple[int, int]:
    "x and y as the sliders have them."
    return tuple(int(float(slider(explorer, name).get_attribute("aria-valuenow"))) for name in ("pixel x", "pixel y"))


def segment(explorer) -> str:
    "Press the button and wait for another answer than is shown -> what the status line says."
    lines = explorer.get_by_text("computed in")
    before = lines.all_inner_texts()
    explorer.get_by_role("button", name="Segment").click()
    return until(lambda: (now := lines.all_inner_texts()) != before and now)[0]


@pytest.fixture(scope="module")
def explorer(lab):
    "The explorer with the answer to the question that it opens with."
    segment(part(lab, 2))
    return part(lab, 2)


# ---- JupyterLab

def test_every_widget_is_shown(lab):
    assert [menu.evaluate("menu => menu.value") for menu in part(lab, 1).get_by_role("combobox").all()] == ["all classes", "any", "any number"]
    assert part(lab, 1).locator("img:visible").count() == 12 and part(lab, 1).get_by_text("1–12 of 20 videos").is_visible()
    assert part(lab, 2).get_by_role("button", name="Segment").is_enabled() and part(lab, 3).get_by_text("2 queries").is_visible()


def test_a_video_is_opened_and_its_objects_are_shown(lab):
    browser = part(lab, 1)
    browser.get_by_role("button", name="fish_1").wait_for(state="detached")
    browser.get_by_label("class").select_option("fish")
    browser.get_by_label("words").fill("moving ri")
    browser.get_by_role("button", name="fish_1").click()
    player = browser.locator(".fsrvos-clip")
    both = pixels(player)
    browser.get_by_role("listbox").select_option("the one moving to the right")
    one = changed(player, both)
    rows = np.flatnonzero((one.astype(int) - both).any((1, 2)))
    assert rows.min() >= 14, "object 2 is below, and it alone has lost its mask"
    browser.get_by_role("checkbox").first.click()
    bare = changed(player, one)
    drag(lab, slider(browser, "opacity"), 0)
    assert np.array_equal(pixels(player), bare), "where no object is shown, opacity changes nothing"
    browser.get_by_label("words").fill("")
    browser.get_by_label("class").select_option("any")
    browser.get_by_text("of 20 videos").wait_for()
    assert browser.get_by_label("class").evaluate("menu => menu.value") == "any"


def test_a_thumbnail_is_clicked_itself(lab, folder):
    browser = part(lab, 1)
    browser.get_by_label("class").select_option("hat")
    browser.get_by_text("1–4 of 4 videos").wait_for()
    browser.get_by_role("button", name="hat_2").locator("img").click()
    browser.get_by_role("option", name="hat_2: all objects").wait_for(state="attached")
    drag(lab, slider(browser, "opacity"), 1)
    corpus = Corpus.load(folder / "corpus")
    view = ClipView(corpus.read_frames("hat_2", ["00000"]), corpus.read_masks("hat_2", ["00000"], [1, 2]), opacity=1)
    until(lambda: np.abs(pixels(browser.locator(".fsrvos-clip")).astype(int) - view.picture(0)).mean() < 3)      # but for what a JPEG changes
    browser.get_by_label("class").select_option("any")


def test_thumbnails_are_opened_with_the_keyboard(lab):
    browser = part(lab, 1)
    browser.get_by_label("class").select_option("dog")
    browser.get_by_text("1–4 of 4 videos").wait_for()
    until(lambda: browser.get_by_role("button", name="dog_").count() == browser.get_by_role("button", name="open ").count() == 4)
    for key, video in (("Enter", "dog_1"), ("Space", "dog_2")):
        lab.keyboard.press("Tab") if video == "dog_2" else browser.get_by_role("button", name="dog_1").focus()
        assert lab.evaluate("document.activeElement.innerText") == video
        assert lab.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px", "seen to have the keyboard"
        lab.keyboard.press(key)
        browser.get_by_role("option", name=f"{video}: all objects").wait_for(state="attached")
    assert lab.locator(".jp-Notebook.jp-mod-commandMode").count() == 1, "Enter has not gone to JupyterLab, which would edit a cell"
    browser.get_by_label("class").select_option("any")


def test_sentences_and_sigma_change_the_masks(lab, explorer):
    first = explorer.get_by_text("computed in").inner_text()
    assert first.startswith("1 of 5 sequences") and "J " in first
    prediction, truth = explorer.locator(".fsrvos-prediction"), explorer.locator(".fsrvos-truth")
    best = pixels(prediction)
    assert best.shape == pixels(truth).shape == (32, 48, 3)
    drag(lab, slider(explorer, "σ"), 0)
    changed(prediction, best)
    count = until(lambda: not (line := explorer.get_by_text("computed in").inner_text()).startswith("1 of") and line)
    assert count.split(" computed")[0] != first.split(" computed")[0] and count.split("computed")[1] == first.split("computed")[1], "chosen again, not computed again"
    drag(lab, slider(explorer, "σ"), 1)
    until(lambda: np.array_equal(pixels(prediction), best))
    until(lambda: explorer.get_by_text("computed in").inner_text() == first)

    explorer.get_by_label("or your own").fill("the thing that is red and below")
    second = segment(explorer)
    assert " J " not in second and explorer.get_by_text("the truth is not known").is_visible()
    changed(prediction, best)


def test_the_keyboard_is_enough(lab, explorer):
    prediction, look = explorer.locator(".fsrvos-prediction"), explorer.locator(".fsrvos-look")
    before, looked = pixels(prediction), pixels(look)
    explorer.get_by_role("button", name="Segment").focus()
    for _ in range(4):      # past play, stop and repeat; Cancel has nothing to cancel and is passed over
        lab.keyboard.press("Tab")
    frame = slider(explorer, "frame")
    assert frame.evaluate("handle => handle === document.activeElement")
    for key, number in (("ArrowRight", 1), ("ArrowUp", 2), ("ArrowLeft", 1), ("ArrowDown", 0), ("ArrowRight", 1)):
        lab.keyboard.press(key)
        until(lambda: frame.get_attribute("aria-valuetext") == str(number))
    changed(prediction, before)
    pixel = slider(explorer, "pixel x")
    pixel.press("Home")
    changed(look, looked)


def test_the_pixel_is_clicked(lab, explorer):
    query, look = explorer.locator(".fsrvos-query"), explorer.locator(".fsrvos-look")
    for share, place in ((.25, (12, 8)), (.75, (36, 24))):
        before, looked = pixels(query.locator("img")), pixels(look)
        query.scroll_into_view_if_needed()
        box = query.locator("img").bounding_box()
        query.locator("img").click(position={"x": share * box["width"] + 1, "y": share * box["height"] + 1})
        changed(look, looked)
        changed(query.locator("img"), before)
        until(lambda: chosen_pixel(explorer) == place)


def test_the_pixel_is_chosen_with_the_keyboard(lab, explorer):
    query, look = explorer.get_by_role("button", name="choose a pixel"), explorer.locator(".fsrvos-look")
    query.focus()
    x, y = chosen_pixel(explorer)
    looked = pixels(look)
    for key in ("Shift+ArrowLeft", "ArrowLeft", "Shift+ArrowUp", "ArrowDown"):
        lab.keyboard.press(key)
    assert query.get_attribute("aria-label").endswith(f": x {x - 11}, y {y - 9}") and chosen_pixel(explorer) == (x, y), "moved, and not chosen"
    assert explorer.locator(".fsrvos-picture-cursor").is_visible()
    lab.keyboard.press("Enter")
    changed(look, looked)
    until(lambda: chosen_pixel(explorer) == (x - 11, y - 9))
    assert query.evaluate("button => button === document.activeElement"), "and may be moved on"
    for _ in range(6):
        lab.keyboard.press("Shift+ArrowLeft")
    assert ": x 0, y" in query.get_attribute("aria-label"), "it stays in the picture"


def test_two_results_are_compared(lab):
    comparer = part(lab, 3)
    rows = comparer.get_by_role("listbox").get_by_role("option").all_inner_texts()
    assert len(rows) == 2 and rows[0].split()[0] == "-50.0" and comparer.get_by_text("video cat_1").is_visible()
    comparer.get_by_role("listbox").select_option(rows[1])
    comparer.get_by_text("video cat_0").wait_for()
    comparer.get_by_label("first").select_option("cma_plus-1")
    comparer.get_by_label("second").select_option("cma-1")
    until(lambda: comparer.get_by_role("listbox").get_by_role("option").first.inner_text().split()[0] == "+50.0")


def test_a_saved_notebook_is_read_without_a_kernel(lab, explorer, folder, browser):
    status = explorer.get_by_text("computed in").inner_text()
    lab.keyboard.press("Control+S")
    saved = until(lambda: status in (text := (folder / "explore.ipynb").read_text()) and json.loads(text))
    html = ["".join(output["data"]["text/html"]) for cell in without_kernel(saved)["cells"] for output in cell["outputs"]]
    assert len(html) == 3
    page = browser.new_page(viewport=LAPTOP, java_script_enabled=False)
    page.set_content("<html><body>" + "<hr>".join(html))
    assert page.get_by_text(status).is_visible() and page.get_by_text("2 queries").is_visible()
    assert page.get_by_alt_text("choose a pixel").is_visible() and page.get_by_alt_text("open ").count() == 12
    assert page.locator("img").evaluate_all("pictures => pictures.filter(p => p.complete && p.naturalWidth).length") >= 12 + 1 + 7
    assert page.get_by_role("combobox").first.is_disabled() and page.evaluate("document.documentElement.scrollWidth") <= LAPTOP["width"]
    page.close()


def test_a_restarted_kernel_recovers(lab, explorer):
    old = explorer.get_by_role("button", name="Segment").element_handle()
    lab.get_by_role("menuitem", name="Kernel", exact=True).click()
    lab.get_by_role("menuitem", name="Restart Kernel and Run All Cells").click()
    lab.get_by_role("button", name="Confirm Kernel Restart").click()
    until(lambda: not old.evaluate("button => button.isConnected"))
    wait_for_cells(lab)
    assert "1 of 5 sequences" in segment(explorer) and pixels(explorer.locator(".fsrvos-prediction")).shape == (32, 48, 3)


# ---- Voila

def test_the_explorer_works_in_voila(folder, browser):
    with serving("voila", "--no-browser", "--port={port}", "explore.ipynb", folder=folder) as address:
        page = new_page(browser)
        page.goto(address)
        page.get_by_role("button", name="Segment").wait_for()
        assert "1 of 5 sequences" in segment(page)
        prediction = page.locator(".fsrvos-prediction")
        best = pixels(prediction)
        drag(page, slider(page, "σ"), 0)
        changed(prediction, best)
        look = page.locator(".fsrvos-look")
        looked = pixels(look)
        page.locator(".fsrvos-query img").click(position={"x": 2, "y": 2})
        changed(look, looked)
        assert chosen_pixel(page) == (0, 0)
        page.get_by_role("button", name="cat_1").locator("img").click()
        page.get_by_role("option", name="cat_1: all objects").wait_for(state="attached")
        page.close()
