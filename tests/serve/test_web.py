import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files

import pytest

WEB = files("btray.serve") / "web"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


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


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.partition("?")[0].removeprefix("/web/").strip("/") or "index.html"
        kind = KINDS.get(name[name.rfind(".") :], "text/html")
        data = MODELS if name == "v1/models" else (WEB / name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


MODELS = b'{"models": [{"name": "one", "version": "7"}, {"name": "two", "version": "8"}]}'


@pytest.fixture
def url():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")
def test_the_page_works_in_a_browser_under_its_policy(url, tmp_path):
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    options = [f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000", url]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)
    shown = Page(done.stdout)
    told = " ".join(data for _, data in shown.text)
    assert "Models: one 7, two 8." in told
    assert [attributes["value"] for attributes in shown.all("option")] == ["one", "two"]
    assert "Content Security Policy" not in done.stderr
