"""HTML page of the report in a browser: no external resources, figures, sortable tables."""

import pytest

from aid_tools.report.html import to_html
from aid_tools.report.parts import Table, TableCell, number

pytestmark = pytest.mark.browser
# Texts of a column of the first table, from top to bottom.
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
    """The browser with the page, at desktop size."""
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    browser.resize(1280, 800)
    browser.open(f"file://{tmp_path}/report.html")
    return browser


def events_of(browser, *methods):
    return [x["params"] for x in browser.events if x["method"] in methods]


def errors_of(browser):
    return events_of(
        browser, "Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"
    )


def test_page_loads_without_errors_or_requests(opened, tmp_path):
    assert not errors_of(opened) and not events_of(opened, "Network.loadingFailed")
    urls = {x["request"]["url"] for x in events_of(opened, "Network.requestWillBeSent")}
    assert f"file://{tmp_path}/report.html" in urls
    assert all(x.startswith("data:image/png;base64,") for x in urls if not x.startswith("file:"))
    assert sum(x.startswith("file:") for x in urls) == 1
    widths = opened.evaluate("[...document.images].map((x) => x.complete && x.naturalWidth)")
    assert len(widths) == 2 and widths[0] == 900 and widths[1] > 900
    assert opened.evaluate("document.title").startswith("title <img")


def test_click_sorts_numbers_both_ways_with_missing_last(opened):
    button = f"{HEADER.format(2)}.querySelector('button')"
    assert opened.evaluate(COLUMN.format(2)) == ["9.5", "10.2", "-", "-1.0"]
    for state, expected in (
        ("ascending", ["-1.0", "9.5", "10.2", "-"]),
        ("descending", ["10.2", "9.5", "-1.0", "-"]),
        ("ascending", ["-1.0", "9.5", "10.2", "-"]),
    ):
        box = opened.evaluate(f"{button}.getBoundingClientRect().toJSON()")
        for kind in ("mousePressed", "mouseReleased"):
            position = {"x": box["x"] + 5, "y": box["y"] + 5, "button": "left", "clickCount": 1}
            opened.call("Input.dispatchMouseEvent", type=kind, **position)
        assert opened.evaluate(COLUMN.format(2)) == expected
        assert opened.evaluate(f"{HEADER.format(2)}.ariaSort") == state


def test_enter_key_sorts_another_column_alphabetically(opened):
    opened.evaluate(f"{HEADER.format(2)}.querySelector('button').click()")
    opened.evaluate(f"{HEADER.format(0)}.querySelector('button').focus()")
    for kind in ("keyDown", "keyUp"):
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        opened.call("Input.dispatchKeyEvent", type=kind, **key)
    names = opened.evaluate(COLUMN.format(0))
    assert names[0].startswith("<img") and names[1:] == ["a", "b", "c"]
    states = "[...document.querySelectorAll('thead th')].map((x) => x.ariaSort)"
    assert opened.evaluate(states)[:4] == ["ascending", None, None, None]


def test_only_tables_and_images_scroll_horizontally_on_a_phone(opened):
    opened.resize(400, 800, mobile=True)
    assert opened.evaluate("document.documentElement.scrollWidth") == 400
    assert opened.evaluate("getComputedStyle(document.querySelector('.wide')).overflowX") == "auto"
    assert opened.evaluate("document.images[0].width") > 400  # not scaled down


def test_ap_is_visible_on_a_phone_without_scrolling(browser, tmp_path):
    header = ["run", "AP", "against plain", "AP50", "role", "iterations", "minutes"]
    name = TableCell("faster_rcnn_R18_FPN_equal_time_with_a_long_name")
    rows = [[name, number(20.1), number(8.8, "{:+.1f}"), *[TableCell("AID by instance")] * 4]]
    path = tmp_path / "report.html"
    path.write_text(to_html("title", [Table("results", header, rows)], ""), encoding="utf-8")
    browser.resize(390, 800, mobile=True)
    browser.open(f"file://{path}")
    cells = "[...document.querySelectorAll('td')]"
    ends = browser.evaluate(f"{cells}.map((x) => x.getBoundingClientRect().right)")
    assert max(ends[:2]) < 390 < max(ends)


def test_image_toggles_between_fitted_and_full_size(opened):
    opened.resize(800, 600)
    size, button = "document.images[1].width", "document.querySelectorAll('.size')[1]"
    fitted = opened.evaluate(size)
    opened.evaluate(f"{button}.click()")
    assert opened.evaluate(size) == opened.evaluate("document.images[1].naturalWidth") > fitted
    assert opened.evaluate(f"{button}.ariaPressed") == "true"
    opened.evaluate(f"{button}.click()")
    assert opened.evaluate(size) == fitted


def test_page_follows_the_color_scheme_and_prints_on_white(opened):
    background = "getComputedStyle(document.body).backgroundColor"
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    assert opened.evaluate(background) == "rgb(255, 255, 255)"
    opened.call("Emulation.setEmulatedMedia", features=dark)
    assert opened.evaluate(background) == "rgb(20, 24, 29)"
    assert opened.evaluate("getComputedStyle(document.images[0]).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    opened.call("Emulation.setEmulatedMedia", media="print", features=dark)
    assert opened.evaluate(background) == "rgb(255, 255, 255)"
    assert opened.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    opened.call("Emulation.setEmulatedMedia", media="", features=[])


def test_injected_script_is_blocked(browser, html, tmp_path):
    """The policy of the page blocks scripts even if a text were not escaped."""
    outside = '<script>document.title = "run"</script><img src="http://127.0.0.1:9/x.png">'
    (tmp_path / "report.html").write_text(html.replace("<h1>", outside + "<h1>"))
    browser.open(f"file://{tmp_path}/report.html")
    assert browser.evaluate("document.title").startswith("title")
    failed = [
        x for x in events_of(browser, "Network.loadingFailed") if x.get("blockedReason") == "csp"
    ]
    assert failed and len(errors_of(browser)) >= 2
