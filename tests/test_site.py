"The site as a reader has it: built as `make docs` builds it, and every page of it opened in Chromium on a phone's screen."
import subprocess
import sys
from typing import NamedTuple
from urllib.parse import unquote, urldefrag, urljoin

import pytest

from tests.browsing import LAPTOP, PHONE, ROOT, chromium, needs_chromium, serving

pytestmark = needs_chromium
LOOK = """async () => {
    const pictures = [...document.images];
    for (const picture of pictures) picture.loading = 'eager';
    const drawn = await Promise.all(pictures.map(picture => picture.decode().then(() => true, () => false)));
    const equations = [...document.querySelectorAll('.math')];
    return {
        title: document.title,
        ids: [...document.querySelectorAll('[id], a[name]')].map(e => e.id || e.name),
        links: [...document.querySelectorAll('a[href]')].map(a => a.href),
        missing: pictures.filter((_, i) => !drawn[i]).map(picture => picture.getAttribute('src').slice(0, 200)),
        width: document.documentElement.scrollWidth,
        equations: equations.length,
        undrawn: equations.filter(e => !e.querySelector('math') || e.querySelector('merror') || e.getBoundingClientRect().height < 5).map(e => e.textContent.trim()),
    };
}"""


class Site(NamedTuple):
    address: str
    pages: dict[str, dict]      # address without fragment -> what LOOK saw
    elsewhere: set[str]         # what was asked of other servers
    refused: set[str]           # what this one did not have


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def site(browser, tmp_path_factory):
    done = subprocess.run([sys.executable, "scripts/docs.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warning" not in done.stdout, done.stdout
    with serving("http.server", "{port}", "--bind", "127.0.0.1", "--directory", str(ROOT / "_docs"), folder=tmp_path_factory.mktemp("server")) as address:
        yield crawl(browser, address)


def crawl(browser, address: str) -> Site:
    "Open every page that links lead to, from the first."
    site, page = Site(address, {}, set(), set()), browser.new_page(viewport=PHONE)
    page.on("request", lambda request: None if request.url.startswith((address, "data:", "blob:")) else site.elsewhere.add(request.url))
    page.on("response", lambda response: site.refused.add(response.url) if response.status >= 400 else None)
    waiting = [f"{address}/index.html"]
    while waiting:
        url = waiting.pop()
        if url in site.pages:
            continue
        page.goto(url)
        site.pages[url] = page.evaluate(LOOK)
        waiting += [place for place in (urldefrag(link).url for link in site.pages[url]["links"]) if place.startswith(address) and place.endswith(".html")]
    page.close()
    return site


def test_the_parts_of_the_site_are_there(site):
    names = {url.removeprefix(site.address + "/") for url in site.pages}
    assert {"index.html", "results.html", "speed.html", "data.html", "cite.html", "licences.html", "api/index.html", "api/explore.html", "source/fsrvos/apps/explore.html", "models/02_affinity.html",
            "tutorials/01_five_minutes.html"} <= names
    assert len([n for n in names if n.startswith("source/")]) == len(list((ROOT / "fsrvos").rglob("[a-z]*.py")))


def test_no_link_is_broken(site):
    broken = [(url, link) for url, seen in site.pages.items() for link in seen["links"] if link.startswith(site.address) and not leads_somewhere(site, link)]
    assert not broken and not site.refused


def leads_somewhere(site, link: str) -> bool:
    place, fragment = urldefrag(link)
    seen = site.pages.get(urljoin(place, "index.html") if place.endswith("/") else place)
    if seen is None:
        return (ROOT / "_docs" / unquote(place.removeprefix(site.address)).lstrip("/")).is_file() and not fragment
    return not fragment or fragment == "top" or unquote(fragment) in seen["ids"]


def test_no_picture_is_missing(site):
    assert not {url: seen["missing"] for url, seen in site.pages.items() if seen["missing"]}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_stills_of_the_widgets_are_read_without_a_kernel(site, browser, scheme):
    page = browser.new_page(viewport=LAPTOP, color_scheme=scheme)
    page.goto(f"{site.address}/apps/05_explore.html")
    for shown in (page.get_by_alt_text("open hedgehog_1"), page.get_by_alt_text("of the query, choose a pixel"), page.get_by_role("button", name="Segment"), page.get_by_text("mean difference in J&F").last):
        assert shown.is_visible()
    assert page.get_by_role("button", name="Segment").is_disabled()
    page.close()


def test_nothing_is_fetched_from_elsewhere(site):
    assert not site.elsewhere


def test_a_phone_shows_the_whole_width(site):
    assert not {url: seen["width"] for url, seen in site.pages.items() if seen["width"] > PHONE["width"]}


def test_equations_are_drawn(site):
    assert not {url: seen["undrawn"] for url, seen in site.pages.items() if seen["undrawn"]}
    assert sum(seen["equations"] for seen in site.pages.values()) > 50


@pytest.mark.parametrize("words, page", [("cross-modal affinity", "02_affinity.html"), ("score_bars", "api/explore.html")])
def test_search_finds(site, browser, words, page):
    tab = browser.new_page(viewport=LAPTOP)
    tab.goto(f"{site.address}/index.html")
    tab.get_by_placeholder("Search").locator("visible=true").fill(words)
    tab.locator(f".search-result[href*='{page}']").first.click()
    tab.wait_for_url(f"**/{page}*")
    tab.close()
