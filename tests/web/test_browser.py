"""One browser for all of it; each test starts at an address of its own."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the [ui] extra is not installed")
pytest.importorskip("uvicorn", reason="the [ui] extra is not installed")
pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")

from llama_index_colqwen.asking import ChatModel
from tests.chat_endpoint import ChatEndpoint, chat_endpoint
from tests.documents import write_text_pdf
from tests.services import run_app, wait_for
from tests.web.browser import Browser, Keys, open_browser
from tests.web.conftest import HTML, make_app

pytestmark = pytest.mark.slow

QUESTION = "Which sensor drifted least in the salt-spray test?"


@pytest.fixture(scope="module")
def started() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def browser(started: Browser) -> Iterator[Browser]:
    started.look()
    yield started
    assert started.errors() == []


@pytest.fixture(scope="module")
def address(indexed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on a copy of the index, which tests add to."""
    folder = Path(shutil.copytree(indexed, tmp_path_factory.mktemp("browser") / "copy"))
    with make_app(folder, max_upload_bytes=1 << 20) as app, run_app(app) as running:
        yield running


def ask(browser: Browser, address: str, question: str) -> None:
    browser.open(address)
    browser.one("#query").send_keys(question, Keys.ENTER)
    browser.one("#hits .card")


def test_a_question_shows_pages_and_the_address_brings_them_again(browser: Browser, address: str) -> None:
    ask(browser, address, QUESTION)
    first = browser.all("#hits > li")[0].text
    assert "tidal-sensors-paper.pdf" in first
    assert re.search(r"Page 3\s+match\s+\d\d %", first)
    assert {mark.text.lower() for mark in browser.all("#hits > li:first-child mark")} >= {"salt", "spray"}
    assert re.fullmatch(r"(8 pages|The \d+ best of 8 pages), found in \d+ ms", browser.text("#status"))
    wait_for(lambda: browser.run("return document.querySelector('.thumb img').naturalWidth") > 300)

    browser.one("#files input[value='tidal-sensors-paper.pdf']").click()
    wait_for(lambda: len(browser.all("#hits > li")) == 6)
    shared = browser.driver.current_url
    assert "q=Which+sensor" in shared
    assert "file=tidal-sensors-paper.pdf" in shared
    browser.driver.back()
    wait_for(lambda: len(browser.all("#hits > li")) == 8)
    assert not browser.all("#files input:checked")
    browser.driver.back()
    browser.one("#empty button")  # examples
    browser.open(shared)
    wait_for(lambda: len(browser.all("#hits > li")) == 6)
    assert browser.one("#query").get_attribute("value") == QUESTION
    assert len(browser.all("#files input:checked")) == 1


def test_a_page_opens_with_what_matches_and_each_word_can_be_chosen(browser: Browser, address: str) -> None:
    ask(browser, address, QUESTION)
    browser.all("#hits a")[0].click()
    browser.one("#chips label")
    assert browser.text("#title") == "tidal-sensors-paper.pdf, page 3"

    def drawn() -> str:
        """The picture's address, when it is there."""
        script = "const {complete, naturalWidth, src} = document.querySelector('#picture');"
        wait_for(lambda: browser.run(script + "return complete && naturalWidth > 0"))
        return str(browser.run(script + "return src"))

    everything = drawn()
    assert "token=all" in everything
    words = {label.text: label for label in browser.all("#chips label")}
    assert {"All words", "sensor", "salt", "spray", "No marks"} <= words.keys()
    words["salt"].click()
    assert re.search(r"token=\d+$", drawn())
    words["No marks"].click()
    assert drawn().endswith("token=none")

    region = browser.one("#regions button")
    assert "salt-spray" in region.text
    region.click()
    frame, picture = browser.one("#frame").rect, browser.one("#picture").rect
    assert picture["x"] <= frame["x"] < frame["x"] + frame["width"] <= picture["x"] + picture["width"]
    assert region.get_attribute("aria-pressed") == "true"

    browser.one("#next").click()
    wait_for(lambda: not browser.text("#title").endswith("page 3"))
    opened = browser.driver.current_url
    browser.one("#close").click()
    wait_for(lambda: not browser.all("dialog[open]"))
    browser.open(opened)  # as someone would who was sent it
    browser.one("#chips label")
    browser.press(Keys.ESCAPE)
    wait_for(lambda: not browser.all("dialog[open]"))
    assert "page=" not in browser.driver.current_url
    assert browser.all("#hits .card")


def test_the_keyboard_alone_is_enough(browser: Browser, address: str) -> None:
    browser.open(address)
    wait_for(lambda: browser.focused == "query")
    browser.press("salt-spray", Keys.ENTER)
    browser.one("#hits .card")
    for _ in range(20):
        browser.press(Keys.TAB)
        if browser.run("return Boolean(document.activeElement.closest('#hits'))"):
            break
    assert browser.run("return document.activeElement === document.querySelector('#hits a')")
    assert browser.run("return getComputedStyle(document.querySelector('#hits li')).outlineStyle") == "solid"
    browser.press(Keys.ENTER)
    browser.one("#chips label")
    assert browser.focused == "title"
    for _ in range(8):
        browser.press(Keys.TAB)
        if browser.run("return document.activeElement.name === 'token'"):
            break
    browser.press(Keys.ARROW_RIGHT)
    wait_for(lambda: "token=0" in browser.run("return document.querySelector('#picture').src"))
    browser.press(Keys.ESCAPE)
    wait_for(lambda: not browser.all("dialog[open]"))
    assert browser.run("return document.activeElement === document.querySelector('#hits a')")  # where one was


def test_html_in_names_texts_and_questions_is_text(browser: Browser, address: str) -> None:
    ask(browser, address, f"zebras {HTML}")
    browser.one("#files li")
    assert f"{HTML}.pdf" in browser.one("#files").text
    assert f"{HTML}.pdf" in browser.all("#hits > li")[0].text
    assert f"Zebras say {HTML} <b>aloud</b>" in browser.text("#hits > li:first-child .snippet")
    browser.all("#hits a")[0].click()
    browser.one("#regions button")
    assert browser.text("#title") == f"{HTML}.pdf, page 1"
    assert HTML in browser.text("#asked")
    assert HTML in browser.driver.title
    assert not browser.run("return document.querySelectorAll('img[src=x], main b').length")


def test_a_file_is_added_with_progress_and_a_bad_one_is_told(browser: Browser, address: str, tmp_path: Path) -> None:
    good = write_text_pdf(tmp_path / "otters.pdf", *["Otters hold hands while they sleep"] * 60)
    bad = tmp_path / "broken <b>.pdf"
    bad.write_bytes(b"%PDF-1.7 nothing")
    large = tmp_path / "large.pdf"
    large.write_bytes(bytes((1 << 20) + 1))
    browser.open(address)
    browser.one("#files li")
    browser.run(
        """window.seen = [];
        const bars = () => [...document.querySelectorAll("#uploads progress[aria-label*=otters]")];
        const note = () => seen.push(...bars().map((bar) => bar.value));
        new MutationObserver(note).observe(document.querySelector("#uploads"), {childList: true});"""
    )
    browser.driver.find_element("css selector", "#choose").send_keys(f"{good}\n{bad}\n{large}")
    browser.wait_for_text("#uploads", "60 pages added.")
    browser.wait_for_text("#uploads", "large.pdf is too large")
    browser.wait_for_text("#uploads", "broken _b_.pdfthe PDF is truncated")
    seen = browser.run("return seen")
    assert seen == sorted(seen)
    assert len(set(seen)) > 1, "no progress was shown"
    assert len(browser.all("#uploads li.failed")) == 2
    assert "broken" in browser.text("#told") or "large" in browser.text("#told")  # by a screen reader, too
    browser.wait_for_text("#files", "otters.pdf")
    browser.one("#query").send_keys("otters", Keys.ENTER)
    browser.one("#hits .card")
    assert "otters.pdf" in browser.all("#hits > li")[0].text

    # Dropped; another file of a name that there is.
    write_text_pdf(good, "Badgers dig setts that last for centuries")
    browser.run(
        """const moved = new DataTransfer();
        moved.items.add(new File([new Uint8Array(arguments[0])], "otters.pdf"));
        for (const kind of ["dragover", "drop"])
          dispatchEvent(new DragEvent(kind, {dataTransfer: moved, cancelable: true}));""",
        list(good.read_bytes()),
    )
    browser.wait_for_text("#uploads", "There is another otters.pdf already.")
    [again] = [button for button in browser.all("#uploads button") if button.text == "Replace it"]
    again.click()
    browser.wait_for_text("#uploads", "1 page added, 60 pages removed.")


def test_what_goes_wrong_is_told_and_a_picture_that_is_gone_spoils_nothing(browser: Browser, address: str) -> None:
    ask(browser, address, "walruses")
    browser.one("#files input[value='gone.pdf']").click()
    wait_for(lambda: len(browser.all("#hits > li")) == 1)
    browser.wait_for_text(".thumb.none", "The picture of this page is gone.")
    browser.all("#hits a")[0].click()
    browser.wait_for_text("#notes", "index its file again")
    assert browser.one("#regions button").text.startswith("1. walrus")
    assert browser.all(".gone")
    browser.open(f"{address}/?q=%3F%3F")
    browser.wait_for_text("#error", "no letters or digits")
    assert browser.one("#error").get_attribute("role") == "alert"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_no_serious_fault(browser: Browser, address: str, dark: bool) -> None:
    browser.look(dark=dark)
    ask(browser, address, QUESTION)
    assert browser.faults() == []
    browser.all("#hits a")[0].click()
    browser.one("#regions button")
    assert browser.faults() == []
    browser.look(400, 850, dark=dark)
    assert browser.faults() == []
    browser.open(address)
    browser.one("#empty button")
    assert browser.faults() == []
    assert browser.run("return document.documentElement.scrollWidth") <= 400


def test_an_empty_index_says_what_to_do_and_takes_a_first_file(browser: Browser, tmp_path: Path) -> None:
    file = write_text_pdf(tmp_path / "otters.pdf", "Otters hold hands while they sleep")
    with make_app(tmp_path) as app, run_app(app) as address:
        browser.open(address)
        assert "Drop a PDF here" in browser.one("#empty").text
        assert browser.faults() == []
        browser.driver.find_element("css selector", "#choose").send_keys(str(file))
        browser.wait_for_text("#uploads", "1 page added.")
        browser.wait_for_text("#empty", "Ask your pages")


def test_the_token_is_asked_for_and_then_remembered(browser: Browser, indexed: Path) -> None:
    with make_app(indexed, token="s3cret") as app, run_app(app) as address:
        browser.open(f"{address}/?q=salt-spray")
        field = browser.one("#token")
        assert browser.faults() == []
        field.send_keys("wrong", Keys.ENTER)
        browser.wait_for_text("#wrong", "The token is wrong.")
        assert not browser.all("#hits .card")
        field.clear()
        field.send_keys("s3cret", Keys.ENTER)
        browser.one("#hits .card")
        wait_for(lambda: browser.run("return document.querySelector('.thumb img').naturalWidth"))
        browser.open(address)
        browser.one("#files li")
        assert not browser.all("#token")
        assert browser.run("return document.cookie") == ""


def test_answers_are_shown_as_they_come_and_cite_pages(
    browser: Browser, indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llama_index.llms.openai_like")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with chat_endpoint() as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
        endpoint.answer = ["The radar ", "<b>drifted</b> least ", "[tidal-sensors-paper.pdf, page 3]."]
        with make_app(indexed, chat_model=ChatModel("seer")) as app, run_app(app) as address:
            _answered(browser, address, endpoint)


def _answered(browser: Browser, address: str, endpoint: ChatEndpoint) -> None:
    ask(browser, address, QUESTION)
    browser.one("#ask").click()
    browser.wait_for_text("#said", "<b>drifted</b> least tidal-sensors-paper.pdf, page 3.")
    assert "tidal-sensors-paper.pdf, page 3" in browser.text("#shown")
    assert browser.faults() == []
    browser.one("#said button").click()
    browser.wait_for_text("#title", "tidal-sensors-paper.pdf, page 3")
    browser.press(Keys.ESCAPE)
    wait_for(lambda: not browser.all("dialog[open]"))
    endpoint.status, endpoint.refusal = 500, "out of order"
    browser.one("#ask").click()
    browser.wait_for_text("#error", "out of order")
