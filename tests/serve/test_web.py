import asyncio
import re
import shutil
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from importlib.resources import files

import pytest
import uvicorn

from btray.serve.auth import AuthConfig
from btray.serve.http import build_app
from btray.serve.keys import create_key
from tests.serve.browser import chromium

WEB = files("btray.serve") / "web"


def text(name):
    return (WEB / name).read_text("utf-8")


class Page(HTMLParser):
    """Elements as (tag, attributes), and the text of each tag that is open."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self._open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        self.text.append((self._open[-1] if self._open else "", data))

    def all(self, tag):
        return [attributes for found, attributes in self.elements if found == tag]


@pytest.fixture
def page():
    return Page(text("index.html"))


def test_the_notice_stands_there(page):
    told = " ".join(data for _, data in page.text)
    assert "Research use only: not a medical device." in told


def test_nothing_inline_that_the_policy_would_stop(page):
    assert all(attributes.get("src") for attributes in page.all("script"))
    assert not page.all("style")
    assert not [data for tag, data in page.text if tag in ("script", "style") and data.strip()]
    for _, attributes in page.elements:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]


def test_all_it_loads_is_its_own_and_is_in_the_package(page):
    links = [attributes["href"] for attributes in page.all("link")]
    scripts = [attributes["src"] for attributes in page.all("script")]
    assert len(links) == 2
    for place in (*links, *scripts):
        folder, _, name = place.partition("/")
        assert folder == "web"
        assert text(name)
    for name in ("index.html", "app.js", "style.css"):
        assert not re.search(r"(?:https?:)?//[a-z0-9]+\.", text(name)), name


def test_what_a_person_fills_in_has_a_label(page):
    labels = {attributes["for"] for attributes in page.all("label")}
    fields = [attributes["id"] for tag in ("input", "select") for attributes in page.all(tag)]
    assert sorted(fields) == ["files", "key", "model"]
    assert labels == set(fields)
    assert all("alt" in attributes for attributes in page.all("img"))
    assert any(attributes.get("aria-live") for attributes in page.all("p"))


def test_everything_the_script_looks_for_is_on_the_page(page):
    script = text("app.js")
    ids = {attributes.get("id") for _, attributes in page.elements}
    classes = {
        name for _, attributes in page.elements for name in attributes.get("class", "").split()
    }
    assert set(re.findall(r'byId\("([^"]+)"\)', script)) <= ids
    selectors = re.findall(r'find\("\.([a-z-]+)', script)
    assert len(selectors) > 10
    assert set(selectors) <= classes


def test_the_script_keeps_only_the_key_and_only_for_the_session():
    script = text("app.js")
    for word in ("localStorage", "indexedDB", "document.cookie", "caches", "console."):
        assert word not in script
    assert set(re.findall(r"sessionStorage\.\w+\((\w+)", script)) == {"KEY"}


def test_what_the_server_says_is_never_taken_as_html():
    script = text("app.js")
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "Function(",
    ):
        assert word not in script


@asynccontextmanager
async def serving(service):
    """Serve the real application on a free port; give its URL."""
    await service.models.configure(service.served)
    config = uvicorn.Config(build_app(service), port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    await task


def browse(service, profile, visit):
    """Open the page of a service in a browser; return what a visit says, and errors logged."""

    async def run():
        async with serving(service) as url, chromium(profile) as tab:
            await tab.open(url)
            await tab.until(READY)
            return await visit(tab), tab.errors

    return asyncio.run(run())


READY = "document.readyState === 'complete' && document.querySelector('#server')?.textContent"
DONE = """[...document.querySelectorAll(".card")].filter((card) =>
    !card.querySelector(".result").hidden || !card.querySelector(".error").hidden).length"""
NO_PICTURES = "document.querySelectorAll('.no-picture:not([hidden])').length"
SHOWN = """[...document.querySelectorAll(".card")].map((card) => card.innerText)"""

needs_chromium = pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")


@needs_chromium
def test_slices_are_classified_in_a_browser(make_service, picture, tmp_path):
    """Classes are the grey value modulo 4; what is brighter than 100 is strange to the fake."""
    contents = {"tumour.png": picture(5), "strange.png": picture(152), "broken.png": b"broken"}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)

    async def visit(tab):
        await tab.choose("#files", [tmp_path / name for name in contents])
        await tab.until(f"{DONE} === 3 && {NO_PICTURES} === 1")
        server = await tab.value("document.querySelector('#server').innerText")
        return server, await tab.value(SHOWN)

    (server, cards), errors = browse(make_service(), tmp_path / "profile", visit)
    tumour, strange, broken = [[line for line in card.splitlines() if line] for card in cards]
    assert server == "The server is ready. Model: btray v1."
    assert tumour[:3] == ["tumour.png", "Meningioma", "Calibrated probability 100.0 %"]
    assert tumour[tumour.index("Model") + 1] == "btray v1"
    assert tumour[-1].startswith("Request ")
    assert strange[1:3] == ["No answer", "This image is unlike the slices that the model knows."]
    assert broken[:2] == ["No preview: the browser cannot show this format.", "broken.png"]
    assert broken[-1].startswith("Request ")
    assert not errors


@needs_chromium
def test_a_server_that_wants_a_key_says_so_and_takes_it(make_service, tmp_path):
    key = create_key(tmp_path / "keys.json", "ward")

    async def visit(tab):
        before = await tab.value("document.querySelector('#server').innerText")
        entered = f"""document.querySelector('#key').value = '{key}';
            document.querySelector('#key').dispatchEvent(new Event('change'))"""
        await tab.value(entered)
        await tab.until("document.querySelector('#server').innerText.includes('ready')")
        return before, await tab.value("[sessionStorage.length, localStorage.length]")

    service = make_service(auth=AuthConfig(keys_file=str(tmp_path / "keys.json")))
    (before, kept), errors = browse(service, tmp_path / "profile", visit)
    assert "Enter an API key" in before
    assert kept == [1, 0]
    assert not errors
