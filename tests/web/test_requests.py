from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the [ui] extra is not installed")
pytest.importorskip("uvicorn", reason="the [ui] extra is not installed")

from starlette.testclient import TestClient

from llama_index_colqwen import ColQwenIndex, MilvusPageStore, Page, UnsupportedDocumentError
from llama_index_colqwen.asking import ChatModel
from llama_index_colqwen.pages import PageImage
from llama_index_colqwen.shared_index import SharedIndex
from llama_index_colqwen.web import pictures
from llama_index_colqwen.web.uploads import Uploads, safe_name
from tests.chat_endpoint import chat_endpoint
from tests.documents import write_text_pdf
from tests.services import run_app, wait_for
from tests.web.conftest import HTML, make_app

OURS = {"X-ColQwen-UI": "1"}


@contextmanager
def page_of(folder: Path, address: str = "http://127.0.0.1:8400", **options: Any) -> Iterator[TestClient]:  # noqa: ANN401
    with make_app(folder, **options) as app, TestClient(app, base_url=address, headers=OURS) as client:
        yield client


@pytest.fixture
def page(indexed: Path) -> Iterator[TestClient]:
    with page_of(indexed) as client:
        yield client


def found(client: TestClient, question: str, **parameters: object) -> list[Any]:
    answer = client.get("/api/search", params={"q": question, **parameters})  # type: ignore[dict-item]
    assert answer.status_code == 200, answer.text
    hits: list[Any] = answer.json()["hits"]
    return hits


def send(client: TestClient, name: str, body: bytes, **parameters: str) -> Any:  # noqa: ANN401 - JSON
    """Send a file, and wait for what becomes of it."""
    answer = client.post("/api/uploads", params={"name": name, **parameters}, content=body)
    assert answer.status_code == 202, answer.text

    def now() -> Any:  # noqa: ANN401 - JSON
        listed = client.get("/api/uploads").json()["uploads"]
        return next(one for one in listed if one["number"] == answer.json()["number"])

    wait_for(lambda: now()["state"] in ("done", "failed"))
    return now()


def pdf(folder: Path, *texts: str) -> bytes:
    """A PDF of pages with so many words that none is read by OCR."""
    texts = tuple(f"{text}, as is said of them everywhere" for text in texts)
    return write_text_pdf(folder / "made.pdf", *texts).read_bytes()


# ---- finding and showing


def test_search_says_where_pages_are_from_how_well_they_match_and_which_words(page: TestClient) -> None:
    hits = found(page, "Which sensor drifted least in the salt-spray test?")
    best = hits[0]
    assert (best["file_name"], best["page"]) == ("tidal-sensors-paper.pdf", "3")
    assert 1 >= best["score"] > hits[1]["score"] >= 0
    words = {best["snippet"][start:end].lower() for start, end in best["matches"]}
    assert {"salt", "spray"} <= words


def test_search_keeps_to_chosen_files_and_to_a_number(page: TestClient) -> None:
    assert {hit["file_name"] for hit in found(page, "zebras", file=["gone.pdf", f"{HTML}.pdf"])} == {
        "gone.pdf",
        f"{HTML}.pdf",
    }
    answer = page.get("/api/search", params={"q": "sensor", "k": 2}).json()
    assert (len(answer["hits"]), answer["more"]) == (2, True)
    assert page.get("/api/search", params={"q": "sensor", "k": 50}).json()["more"] is False


@pytest.mark.parametrize(("question", "number", "sentence"), [
    ("  ", "1", "empty"), ("x" * 2001, "1", "too long"), ("sensor", "0", "k is a whole"), ("sensor", "²", "k is"),
])  # fmt: skip
def test_what_cannot_be_asked_is_a_sentence(page: TestClient, question: str, number: str, sentence: str) -> None:
    answer = page.get("/api/search", params={"q": question, "k": number})
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]


def test_documents_are_listed_with_their_pages(page: TestClient) -> None:
    state = page.get("/api/state").json()
    assert {one["file_name"]: one["pages"] for one in state["documents"]} == {
        "tidal-sensors-paper.pdf": 6,
        "gone.pdf": 1,
        f"{HTML}.pdf": 1,
    }
    assert state["chat_model"] is None
    assert ".pdf" in state["types"]


def test_a_page_is_drawn_small_whole_and_with_what_matches(page: TestClient) -> None:
    question = "salt-spray sensor"
    hit = found(page, question)[0]

    def picture(address: str, **parameters: object) -> Image.Image:
        answer = page.get(address, params={"page": hit["page_id"], **parameters})  # type: ignore[dict-item]
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
        return Image.open(io.BytesIO(answer.content)).convert("RGB")

    small = picture("/api/thumbnail", v=hit["v"])
    assert small.width * small.height <= 260_000
    plain, marked, one = (picture("/api/picture", q=question, token=token) for token in ("none", "all", "0"))
    assert plain.width > small.width
    assert marked.size == one.size
    assert marked.tobytes() != one.tobytes()

    told = page.get("/api/page", params={"page": hit["page_id"], "q": question}).json()
    assert told["title"] == "tidal-sensors-paper.pdf, page 3"
    assert {"salt", "spray", "sensor"} <= {token["text"] for token in told["tokens"]}
    assert "salt-spray" in told["regions"][0]["text"]
    assert all(0 <= side <= 1 for side in told["regions"][0]["box"])
    assert page.get("/api/picture", params={"page": hit["page_id"], "q": question, "token": "99"}).status_code == 400


def test_thumbnails_are_drawn_once_and_kept_in_bounded_memory(
    page: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    draw = pictures._draw

    def noting(page: Page, max_pixels: int) -> PageImage:
        drawn.append(page.page_id)
        return draw(page, max_pixels)

    monkeypatch.setattr(pictures, "_draw", noting)
    ids = [hit["page_id"] for hit in found(page, "sensor", file="tidal-sensors-paper.pdf")]
    for page_id in [*ids, *ids]:
        assert page.get("/api/thumbnail", params={"page": page_id}).status_code == 200
    assert sorted(drawn) == sorted(ids)

    kept = pictures._Kept[bytes](10, len)
    made = [kept.get(number, lambda: b"1234") for number in range(4)]
    assert len(made) == 4
    assert (list(kept._values), kept._used) == ([2, 3], 8)


def test_a_page_whose_image_is_gone_is_told_and_the_rest_is_shown(page: TestClient, indexed: Path) -> None:
    [hit] = found(page, "walruses", file="gone.pdf")
    for address in ("/api/thumbnail", "/api/picture"):
        answer = page.get(address, params={"page": hit["page_id"], "q": "walruses"})
        assert answer.status_code == 404
        assert "gone" in answer.json()["error"]
        assert str(indexed) not in answer.json()["error"]
    told = page.get("/api/page", params={"page": hit["page_id"], "q": "walruses"}).json()
    assert told["notes"] == ["The picture of gone.pdf, page 1 is gone: index its file again."]
    assert told["regions"][0]["text"] == "Walruses"


def test_pictures_are_of_pages_by_id_and_of_no_path(page: TestClient, indexed: Path) -> None:
    for name in ("../pages.db", str(indexed / f"{HTML}.pdf"), "/etc/passwd", "", '" or page_id != "'):
        for address in ("/api/picture", "/api/thumbnail", "/api/page"):
            assert page.get(address, params={"page": name}).status_code == 404
    for path in ("/../app.py", "/%2e%2e/app.py", "/..%2fapp.py"):
        assert page.get(path).status_code == 404


def test_an_empty_index_has_nothing_and_is_not_made_by_looking(tmp_path: Path) -> None:
    with page_of(tmp_path) as client:
        assert client.get("/api/state").json()["documents"] == []
        assert found(client, "anything") == []
        assert client.get("/api/page", params={"page": "none"}).status_code == 404
        assert client.get("/").status_code == 200
    with MilvusPageStore(tmp_path / "pages.db") as store, pytest.raises(LookupError):
        store.fingerprint()


# ---- who may ask


def test_the_page_loads_nothing_from_elsewhere_and_runs_no_script_of_others(page: TestClient) -> None:
    for path in ("/", "/style.css", "/app.js", "/icon.svg", "/api/state"):
        answer = page.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"].startswith("default-src 'self'; ")
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in answer.text
    assert "innerHTML" not in page.get("/app.js").text


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8400", "10.0.0.1:8400", "", "[::1"])
def test_other_names_of_this_machine_are_refused(page: TestClient, host: str) -> None:
    for path in ("/", "/api/state"):
        assert page.get(path, headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8400"])
def test_this_machines_own_names_are_taken(page: TestClient, host: str) -> None:
    assert page.get("/api/state", headers={"Host": host}).status_code == 200


def test_other_sites_can_neither_read_nor_change(copied: Path) -> None:
    body = pdf(copied, "Sent from elsewhere")
    with page_of(copied) as client:
        for address, options in (
            ("/api/uploads?name=evil.pdf", {"content": body}),
            ("/api/answer", {"json": {"q": "sensor"}}),
            ("/api/session", {"json": {"token": "x"}}),
        ):
            del client.headers["X-ColQwen-UI"]
            assert client.post(address, **options).status_code == 403
            client.headers.update(OURS)
            for other in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
                assert client.post(address, headers=other, **options).status_code == 403
        for site in ("cross-site", "same-site"):
            assert client.get("/api/search?q=x", headers={"Sec-Fetch-Site": site}).status_code == 403
        ours = {"Origin": "http://127.0.0.1:8400", "Sec-Fetch-Site": "same-origin"}
        assert client.post("/api/uploads?name=x.exe", headers=ours).status_code == 400
        assert client.options("/api/uploads", headers={"Origin": "http://evil.example"}).status_code != 200


def test_with_a_token_nothing_is_told_without_it(indexed: Path) -> None:
    with page_of(indexed, "http://pages.example:8400", token="s3cret") as client:
        assert client.get("/").status_code == 200  # which asks for it
        for path in ("/api/state", "/api/search?q=x", "/api/thumbnail?page=x", "/api/uploads"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer s3cre"}).status_code == 401
        assert client.post("/api/uploads?name=x.pdf").status_code == 401
        assert client.get("/api/state", headers={"Authorization": "Bearer s3cret"}).status_code == 200
        assert client.get("/api/state?token=s3cret").status_code == 401  # addresses are kept in histories

        wrong = client.post("/api/session", json={"token": "s3cre"})
        assert (wrong.status_code, wrong.json()["error"]) == (401, "The token is wrong.")
        right = client.post("/api/session", json={"token": "s3cret"})
        cookie = right.headers["set-cookie"]
        assert right.status_code == 204
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert "s3cret" not in cookie
        assert client.get("/api/state").status_code == 200
        del client.headers["X-ColQwen-UI"]
        assert client.post("/api/uploads?name=x.pdf").status_code == 403  # the cookie alone changes nothing


def test_bodies_that_are_no_objects_or_too_large_are_refused(page: TestClient) -> None:
    for body in (b"", b"[]", b"{", b"\xff", b'{"token": 1}', b" " * 70_000):
        assert page.post("/api/session", content=body).status_code in (400, 401)


# ---- adding files


def test_a_file_is_kept_beside_the_index_and_found(copied: Path) -> None:
    body = pdf(copied, "Otters hold hands", "Otters let go")
    with page_of(copied) as client:
        told = send(client, "../../otters.pdf", body)
        assert (told["state"], told["message"], told["file_name"]) == ("done", "2 pages added.", "otters.pdf")
        assert (told["read"], told["stored"], told["total"]) == (2, 2, 2)
        assert found(client, "Which animals hold hands?")[0]["file_name"] == "otters.pdf"
        again = send(client, "otters.pdf", body)
        assert again["message"] == "It is in the index already; nothing changed."
    assert [path.name for path in (copied / "pages.uploads").iterdir()] == ["otters.pdf"]
    with ColQwenIndex.from_existing(copied / "pages.db") as index:
        assert str(copied / "pages.uploads" / "otters.pdf") in index.store.file_paths()


def test_the_first_file_makes_the_index(tmp_path: Path) -> None:
    body = pdf(tmp_path, "Otters hold hands")
    with page_of(tmp_path) as client:
        refused = send(client, "bad.pdf", b"%PDF-1.7 nothing")
        assert refused["state"] == "failed"
        assert client.get("/api/state").json()["documents"] == []
        assert send(client, "otters.pdf", body)["state"] == "done"
        assert client.get("/api/state").json()["documents"] == [{"file_name": "otters.pdf", "pages": 1}]


def test_another_file_of_a_name_is_asked_about_and_then_replaces_or_is_kept_too(copied: Path) -> None:
    first, second = pdf(copied, "Otters hold hands"), pdf(copied, "Badgers dig")
    with page_of(copied) as client:
        send(client, "animals.pdf", first)
        taken = client.post("/api/uploads", params={"name": "animals.pdf"}, content=second)
        assert (taken.status_code, taken.json()["taken"]) == (409, True)
        assert taken.json()["error"] == "There is another animals.pdf already."
        assert send(client, "animals.pdf", second, instead="keep")["file_name"] == "animals (2).pdf"
        third = pdf(copied, "Moles dig deeper")
        assert send(client, "animals.pdf", third, instead="replace")["message"] == "1 page added, 1 page removed."
        names = {hit["file_name"] for hit in found(client, "Otters hold hands")[:1]}
        assert names != {"animals.pdf"}
    kept = {path.name: path.read_bytes() for path in (copied / "pages.uploads").iterdir()}
    assert kept == {"animals.pdf": third, "animals (2).pdf": second}


def test_a_file_that_cannot_be_read_is_one_sentence_and_nothing_is_lost(copied: Path) -> None:
    first = pdf(copied, "Otters hold hands")
    with page_of(copied) as client:
        send(client, "animals.pdf", first)
        before = client.get("/api/state").json()
        for name, body, why in (
            ("new.pdf", b"%PDF-1.7 nothing", "new.pdf"),
            ("empty.pdf", b"", "empty.pdf: the file is empty."),
            ("animals.pdf", b"no pdf at all", "animals.pdf"),
            ("sealed.pdf", write_text_pdf(copied / "s.pdf", "x", password="p").read_bytes(), "password"),
        ):
            told = send(client, name, body, instead="replace")
            assert told["state"] == "failed"
            assert why in told["message"]
            assert "\n" not in told["message"]
            assert str(copied) not in told["message"]
        assert client.get("/api/state").json() == before
        assert found(client, "Which animals hold hands?")[0]["file_name"] == "animals.pdf"
    kept = {path.name: path.read_bytes() for path in (copied / "pages.uploads").iterdir()}
    assert kept == {"animals.pdf": first}


def test_who_leaves_while_a_file_is_sent_leaves_nothing_behind(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    with make_app(copied) as app, run_app(app) as address:
        where = urlsplit(address)
        with socket.create_connection(("127.0.0.1", where.port or 0)) as sender:
            head = f"POST /api/uploads?name=half.pdf HTTP/1.1\r\nHost: {where.netloc}\r\nX-ColQwen-UI: 1\r\n"
            sender.sendall(f"{head}Content-Length: 1000\r\n\r\n%PDF-1.7".encode())
            wait_for(lambda: list((copied / "pages.uploads").glob("*")))
        wait_for(lambda: not list((copied / "pages.uploads").glob("*")))
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_files_that_are_too_large_or_of_other_types_are_refused_before_they_are_kept(copied: Path) -> None:
    with page_of(copied, max_upload_bytes=1 << 20) as client:
        large = b"x" * ((1 << 20) + 1)
        told = client.post("/api/uploads?name=large.pdf", content=large)
        assert told.status_code == 413
        assert "1 MB" in told.json()["error"]
        pieces = client.post("/api/uploads?name=large.pdf", content=iter([large[:100], large[100:]]))
        assert pieces.status_code == 413  # nobody said how large it would be
        for name in ("run.exe", "", "..", ".pdf"):
            assert client.post("/api/uploads", params={"name": name}, content=b"x").status_code == 400
    assert list((copied / "pages.uploads").iterdir()) == []


def test_files_wait_in_line_and_those_that_wait_are_not_kept_at_the_end(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    index = Uploads._index

    def slow(self: Uploads, *arguments: Any) -> str:  # noqa: ANN401
        begun.set()
        go_on.wait(20)
        return index(self, *arguments)

    monkeypatch.setattr(Uploads, "_index", slow)
    one, two = pdf(copied, "Otters hold hands", "Otters let go"), pdf(copied, "Badgers dig")
    with page_of(copied) as client:
        client.post("/api/uploads?name=one.pdf", content=one)
        assert begun.wait(20)
        client.post("/api/uploads?name=two.pdf", content=two)
        states = [upload["state"] for upload in client.get("/api/uploads").json()["uploads"]]
        assert states == ["indexing", "waiting"]
        assert client.post("/api/uploads?name=two.pdf", content=b"other").status_code == 409
        assert found(client, "salt-spray")  # meanwhile
        threading.Timer(0.3, go_on.set).start()  # while the program ends
    assert sorted(path.name for path in (copied / "pages.uploads").iterdir()) == ["one.pdf"]


@pytest.mark.parametrize(("name", "safe"), [
    ("report.pdf", "report.pdf"),
    ("C:\\Users\\me\\report.pdf", "report.pdf"),
    ("../../etc/passwd.png", "passwd.png"),
    (HTML + ".pdf", "_img src=x onerror=document.title=1_.pdf"),
    ("a\nb\x00c\u202e.pdf", "a_b_c_.pdf"),
    ("con.pdf", "_con.pdf"),
    (" . hidden.PDF ", "hidden.PDF"),
    ("ü" * 300 + ".pdf", "ü" * 90 + ".pdf"),
])  # fmt: skip
def test_names_become_names_that_any_file_system_takes(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_names_without_a_type_that_is_read_are_refused() -> None:
    for name in ("", ".", "..", "pdf", "x.exe", "x.pdf.sh", "/"):
        with pytest.raises(UnsupportedDocumentError, match="type that is not read"):
            safe_name(name)


# ---- answers


def test_answers_come_in_pieces_with_the_pages_that_were_shown(indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_index.llms.openai_like")
    with chat_endpoint() as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        with page_of(indexed, chat_model=ChatModel("seer"), shown_pages=2) as client:
            assert client.get("/api/state").json()["chat_model"] == "seer"
            answer = client.post("/api/answer", json={"q": "salt-spray", "files": ["tidal-sensors-paper.pdf"]})
            said = [json.loads(line) for line in answer.text.splitlines()]
            assert [page["title"] for page in said[0]["pages"]][0] == "tidal-sensors-paper.pdf, page 3"
            assert len(said[0]["pages"]) == 2
            assert "".join(line["piece"] for line in said[1:]) == "".join(endpoint.answer)

            endpoint.status, endpoint.refusal = 500, "out of order"
            failed = client.post("/api/answer", json={"q": "salt-spray"}).text.splitlines()
            assert "out of order" in json.loads(failed[-1])["error"]
            assert client.post("/api/answer", json={"q": "salt-spray", "files": [1]}).status_code == 400


def test_pages_are_found_and_a_model_is_shown_them_by_the_mode(indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_index.llms.openai_like")
    with chat_endpoint() as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        for mode, pages in (("text", 1), ("hybrid", 8)):  # one page has the word
            with page_of(indexed, mode=mode, chat_model=ChatModel("seer"), shown_pages=20) as client:
                hits = found(client, "salt-spray")
                assert (hits[0]["page"], len(hits)) == ("3", pages)
                assert all(1 >= hit["score"] >= 0 for hit in hits)
                answer = client.post("/api/answer", json={"q": "salt-spray"})
                shown = json.loads(answer.text.splitlines()[0])["pages"]
                assert [page["page_id"] for page in shown] == [hit["page_id"] for hit in hits]


def test_without_a_model_there_are_no_answers(page: TestClient) -> None:
    told = page.post("/api/answer", json={"q": "salt-spray"})
    assert (told.status_code, told.json()["error"]) == (
        400, "There is no chat model: start `colqwen ui` with --llm."
    )  # fmt: skip


# ---- with others


def test_the_file_is_free_for_others_when_nothing_was_asked(copied: Path) -> None:
    with MilvusPageStore(copied / "pages.db") as store:
        shared = SharedIndex(store, idle_seconds=0.1)
        with shared.use() as index:
            assert index.store.count() == 8
        wait_for(lambda: not store._connection.is_open)


def test_what_the_package_needs_for_its_page_is_in_it() -> None:
    from llama_index_colqwen.web import app

    assert {path.name for path in app._STATIC.iterdir()} == {"index.html", "style.css", "app.js", "icon.svg"}
