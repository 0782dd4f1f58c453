"""HTML page of the report in a browser: no external resources, figures, sortable tables."""

import pytest

pytestmark = pytest.mark.browser
# Texts of a column of the first table, from above.
COLUMN = "[...document.querySelector('tbody').rows].map((row) => row.cells[{}].textContent)"
HEADER = "document.querySelectorAll('thead th')[{}]"


@pytest.fixture(scope="module")
def browser(load_script, tmp_path_factory):
    module = load_script("tests/browser.py")
    chromium = module.find_chromium()
    if chromium is None:
        pytest.skip("no Chromium is installed: `apt-get install chromium`")
    with module.Browser(chromium, str(tmp_path_factory.mktemp("profile"))) as opened:
        yield opened


@pytest.fixture
def opened(browser, html, tmp_path):
    """The browser with the page in it, on a desk."""
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    browser.resize(1280, 800)
    browser.open(f"file://{tmp_path}/report.html")
    return browser


def of(browser, *methods):
    return [x["params"] for x in browser.events if x["method"] in methods]


def complaints(browser):
    return of(browser, "Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")


def test_it_loads_without_a_complaint_and_asks_for_nothing(opened, tmp_path):
    assert not complaints(opened) and not of(opened, "Network.loadingFailed")
    urls = {x["request"]["url"] for x in of(opened, "Network.requestWillBeSent")}
    assert f"file://{tmp_path}/report.html" in urls
    assert all(x.startswith("data:image/png;base64,") for x in urls if not x.startswith("file:"))
    assert sum(x.startswith("file:") for x in urls) == 1
    widths = opened.evaluate("[...document.images].map((x) => x.complete && x.naturalWidth)")
    assert len(widths) == 2 and widths[0] == 900 and widths[1] > 900
    assert opened.evaluate("document.title").startswith("title <img")


def test_a_click_sorts_by_number_both_ways_and_what_has_none_comes_last(opened):
    button = f"{HEADER.format(2)}.querySelector('button')"
    assert opened.evaluate(COLUMN.format(2)) == ["9.5", "10.2", "nan", "-1.0"]
    for state, expected in (
        ("ascending", ["-1.0", "9.5", "10.2", "nan"]),
        ("descending", ["10.2", "9.5", "-1.0", "nan"]),
        ("ascending", ["-1.0", "9.5", "10.2", "nan"]),
    ):
        box = opened.evaluate(f"{button}.getBoundingClientRect().toJSON()")
        for kind in ("mousePressed", "mouseReleased"):
            where = {"x": box["x"] + 5, "y": box["y"] + 5, "button": "left", "clickCount": 1}
            opened.call("Input.dispatchMouseEvent", type=kind, **where)
        assert opened.evaluate(COLUMN.format(2)) == expected
        assert opened.evaluate(f"{HEADER.format(2)}.ariaSort") == state


def test_another_column_starts_anew_by_the_alphabet_and_keys_do_it_too(opened):
    opened.evaluate(f"{HEADER.format(2)}.querySelector('button').click()")
    opened.evaluate(f"{HEADER.format(0)}.querySelector('button').focus()")
    for kind in ("keyDown", "keyUp"):
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        opened.call("Input.dispatchKeyEvent", type=kind, **key)
    names = opened.evaluate(COLUMN.format(0))
    assert names[0].startswith("<img") and names[1:] == ["a", "b", "c"]
    states = "[...document.querySelectorAll('thead th')].map((x) => x.ariaSort)"
    assert opened.evaluate(states)[:4] == ["ascending", None, None, None]


def test_on_a_phone_only_tables_and_pictures_scroll_sideways(opened):
    opened.resize(400, 800, mobile=True)
    assert opened.evaluate("document.documentElement.scrollWidth") == 400
    assert opened.evaluate("getComputedStyle(document.querySelector('.wide')).overflowX") == "auto"
    assert opened.evaluate("document.images[0].width") > 400  # else nothing could be read


def test_a_picture_is_shown_as_large_as_it_is_and_back(opened):
    opened.resize(800, 600)
    size, button = "document.images[1].width", "document.querySelectorAll('.size')[1]"
    fitted = opened.evaluate(size)
    opened.evaluate(f"{button}.click()")
    assert opened.evaluate(size) == opened.evaluate("document.images[1].naturalWidth") > fitted
    assert opened.evaluate(f"{button}.ariaPressed") == "true"
    opened.evaluate(f"{button}.click()")
    assert opened.evaluate(size) == fitted


def test_the_page_is_dark_where_the_user_wants_it_and_white_on_paper(opened):
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    assert opened.evaluate(ground) == "rgb(255, 255, 255)"
    opened.call("Emulation.setEmulatedMedia", features=dark)
    assert opened.evaluate(ground) == "rgb(20, 24, 29)"
    assert opened.evaluate("getComputedStyle(document.images[0]).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    opened.call("Emulation.setEmulatedMedia", media="print", features=dark)
    assert opened.evaluate(ground) == "rgb(255, 255, 255)"
    assert opened.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    opened.call("Emulation.setEmulatedMedia", media="", features=[])


def test_a_script_that_got_into_the_page_would_not_run(browser, html, tmp_path):
    """The page's policy holds even where a text were not escaped."""
    outside = '<script>document.title = "run"</script><img src="http://127.0.0.1:9/x.png">'
    (tmp_path / "report.html").write_text(html.replace("<h1>", outside + "<h1>"))
    browser.open(f"file://{tmp_path}/report.html")
    assert browser.evaluate("document.title").startswith("title")
    failed = [x for x in of(browser, "Network.loadingFailed") if x.get("blockedReason") == "csp"]
    assert failed and len(complaints(browser)) >= 2
