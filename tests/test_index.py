from __future__ import annotations

import base64
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, Document, ImageDocument, ImageNode, MetadataMode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from PIL import Image
from tqdm.auto import tqdm

from llama_index_colqwen import (
    ColQwenIndex,
    EmbedderFingerprint,
    FingerprintMismatchError,
    IndexingReport,
    InvalidOptionError,
    MilvusPageStore,
    MultiVector,
    NoPageImageError,
    Page,
    PDFPageReader,
    SkippedDocumentWarning,
)
from llama_index_colqwen.pages import locate_image
from llama_index_colqwen.testing import FakeEmbedder
from tests.conftest import at_most
from tests.documents import write_text_pdf
from tests.fakes import unit_rows


class CountingEmbedder(FakeEmbedder):
    """Embeds any text, and can be told to fail after some pages."""

    def __init__(self, fail_after: int | None = None) -> None:
        super().__init__(_AnyText(), 4)
        self.fail_after = fail_after

    def embed_pages(self, pages: Sequence[Page]) -> list[MultiVector]:
        if self.fail_after is not None and len(self.embedded) + len(pages) > self.fail_after:
            raise KeyboardInterrupt
        return super().embed_pages(pages)


class _AnyText(dict[str, MultiVector]):
    def __getitem__(self, text: str) -> MultiVector:
        return unit_rows(len(text), 3)

    def __contains__(self, text: object) -> bool:
        return True


def picture(colour: str = "white") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 30), colour).save(buffer, "PNG")
    return buffer.getvalue()


def make_document(
    folder: Path, number: int, text: str | None = None, document_id: str = "d", **metadata: object
) -> ImageDocument:
    path = folder / f"{document_id}-{number}.png"
    path.write_bytes(picture())
    return ImageDocument(
        id_=f"{document_id}-p{number:05d}",
        text=f"text {number}" if text is None else text,
        image_path=str(path),
        metadata={"file_name": f"{document_id}.pdf", "document_id": document_id, "page_number": number, **metadata},
    )


@pytest.fixture
def index(tmp_path: Path) -> Iterator[ColQwenIndex]:
    made = ColQwenIndex(MilvusPageStore(tmp_path / "pages.db"), CountingEmbedder())
    yield made
    made.store.close()


def counts(report: IndexingReport) -> tuple[int, int, int, int]:
    return report.added, report.updated, report.unchanged, report.removed


def test_unchanged_pages_are_not_embedded_again(index: ColQwenIndex, tmp_path: Path) -> None:
    documents = [make_document(tmp_path, number) for number in range(1, 21)]
    index.insert_nodes(documents)
    assert counts(index.report) == (20, 0, 0, 0)
    index.insert_nodes(documents)
    assert counts(index.report) == (0, 0, 20, 0)
    assert len(index.embedder.embedded) == 20  # type: ignore[attr-defined]


def test_changed_metadata_is_stored_without_embedding_again(index: ColQwenIndex, tmp_path: Path) -> None:
    index.insert(make_document(tmp_path, 1, year=2023))
    index.insert(make_document(tmp_path, 1, year=2024))
    assert counts(index.report) == (0, 1, 0, 0)
    assert index.embedder.embedded == ["text 1"]  # type: ignore[attr-defined]
    assert index.store.get(["d-p00001"])[0].metadata["year"] == 2024


@pytest.mark.parametrize("change", ["text", "image"])
def test_changed_text_or_image_is_embedded_again(index: ColQwenIndex, tmp_path: Path, change: str) -> None:
    index.insert(make_document(tmp_path, 1))
    document = make_document(tmp_path, 1, text="other" if change == "text" else None)
    if change == "image":
        Path(document.image_path or "").write_bytes(picture("red"))
    index.insert(document)
    assert counts(index.report) == (0, 1, 0, 0)
    assert len(index.embedder.embedded) == 2  # type: ignore[attr-defined]
    assert index.store.count() == 1


def test_interruption_keeps_finished_pages_and_the_next_run_goes_on(tmp_path: Path) -> None:
    documents = [make_document(tmp_path, number) for number in range(1, 41)]
    uri = tmp_path / "pages.db"
    with pytest.raises(KeyboardInterrupt):
        ColQwenIndex.from_documents(documents, CountingEmbedder(fail_after=35), uri=uri, show_progress=False)
    second = CountingEmbedder()
    index = ColQwenIndex.from_documents(documents, second, uri=uri, show_progress=False)
    assert counts(index.report) == (8, 0, 32, 0)
    assert second.embedded == [f"text {number}" for number in range(33, 41)]
    assert index.store.count() == 40
    index.store.close()


def test_of_documents_with_one_id_the_last_counts(index: ColQwenIndex, tmp_path: Path) -> None:
    """Also where they come in one call, as for `store.add`."""
    first, second, third = (make_document(tmp_path, 1, text) for text in ("old", "new", "new"))
    third.metadata["file_name"] = "named.pdf"
    assert index.refresh_ref_docs([first, second, third]) == [True, True, True]
    assert [(page.text, page.file_name) for page in index.store.get(["d-p00001"])] == [("new", "named.pdf")]
    assert index.embedder.embedded == ["new"]  # type: ignore[attr-defined]
    assert counts(index.report) == (1, 0, 0, 0)
    many = [make_document(tmp_path, number) for number in range(2, 40)]
    changed = make_document(tmp_path, 2, year=2024)
    other = make_document(tmp_path, 3, "other")
    index.insert_nodes([*many, changed, other])  # far apart: the first ones are being embedded already
    assert index.store.get(["d-p00002"])[0].metadata["year"] == 2024
    assert index.store.get(["d-p00003"])[0].text == "other"
    assert index.store.count() == 39


def test_lazy_documents_are_read_a_bounded_number_ahead(index: ColQwenIndex, tmp_path: Path) -> None:
    taken = 0

    def documents() -> Iterator[BaseNode]:
        nonlocal taken
        for number in range(1, 200):
            # 64 wait to be embedded; 16 are looked up in the store, and 16 embedded, at a time.
            assert taken - len(index.embedder.embedded) <= 64 + 16 + 16  # type: ignore[attr-defined]
            taken += 1
            yield make_document(tmp_path, number)

    index.insert_nodes(documents())
    assert index.store.count() == 199


def test_refresh_replaces_what_an_earlier_version_of_a_file_left(index: ColQwenIndex, tmp_path: Path) -> None:
    path = str(tmp_path / "report.pdf")
    old = [make_document(tmp_path, number, document_id="old", file_path=path) for number in (1, 2, 3)]
    other = make_document(tmp_path, 1, document_id="other", file_path=str(tmp_path / "other.pdf"))
    assert index.refresh_ref_docs([*old, other]) == [True] * 4
    new = [make_document(tmp_path, number, document_id="new", file_path=path) for number in (1, 2)]
    assert index.refresh_ref_docs([*new, other]) == [True, True, False]
    assert counts(index.report) == (2, 0, 1, 3)
    assert [document.document_id for document in index.store.documents()] == ["new", "other"]


def test_insert_does_not_remove_other_versions(index: ColQwenIndex, tmp_path: Path) -> None:
    for version in ("old", "new"):
        index.insert(make_document(tmp_path, 1, document_id=version, file_path="/same.pdf"))
    assert index.store.count() == 2


def test_deleting_takes_a_page_or_a_whole_document(index: ColQwenIndex, tmp_path: Path) -> None:
    index.insert_nodes([make_document(tmp_path, number) for number in (1, 2, 3, 4)])
    assert index.delete_ref_doc("d-p00002") == 1
    assert index.delete_nodes(["d-p00001", "absent"]) == 1
    assert index.delete_ref_doc("d") == 2
    assert index.delete_ref_doc("d") == 0
    assert index.store.count() == 0


def test_inline_images_are_written_beside_the_database(tmp_path: Path) -> None:
    document = ImageDocument(text="inline", image=base64.b64encode(picture("red")), image_mimetype="image/png")
    index = ColQwenIndex.from_documents([document], CountingEmbedder(), uri=tmp_path / "x.db", show_progress=False)
    [page] = index.store.get([document.id_])
    assert page.image_path is not None
    assert Path(page.image_path).is_relative_to(tmp_path / "x.images")
    assert Path(page.image_path).suffix == ".png"
    assert Image.open(page.image_path).getpixel((0, 0)) == (255, 0, 0)
    index.insert(document)
    assert counts(index.report) == (0, 0, 1, 0)
    index.store.close()


def test_inline_bytes_that_are_no_image_are_refused_and_nothing_is_stored(index: ColQwenIndex) -> None:
    with pytest.raises(InvalidOptionError, match="inline image of document .* is no image"):
        index.insert(ImageDocument(text="inline", image=base64.b64encode(b"no picture")))
    assert index.store.count() == 0


def test_image_nodes_of_the_users_own_are_pages(index: ColQwenIndex, tmp_path: Path) -> None:
    (tmp_path / "own.png").write_bytes(picture())
    node = ImageNode(id_="own", text="mine", image_path=str(tmp_path / "own.png"), metadata={"colour": "white"})
    node.excluded_llm_metadata_keys = ["colour"]
    index.insert(node)
    [page] = index.store.get(["own"])
    assert (page.document_id, page.file_name, page.page_number) == ("own", "own.png", 1)
    assert page.node["excluded_llm_metadata_keys"] == ["colour"]


def test_document_without_an_image_is_refused_with_the_way_to_get_one(index: ColQwenIndex) -> None:
    with pytest.raises(NoPageImageError, match="have no page image.*words.txt.*PDFPageReader"):
        index.insert(Document(text="only words", metadata={"file_name": "words.txt"}))


def test_texts_among_pages_are_left_out_and_named(index: ColQwenIndex, tmp_path: Path) -> None:
    documents: list[BaseNode] = [make_document(tmp_path, number) for number in range(1, 13)]
    documents[3:3] = [Document(text="only words", metadata={"file_name": "words.txt"}), Document(id_="n2", text="more")]
    with pytest.warns(SkippedDocumentWarning, match="2 of 14 documents were left out.*words.txt; n2. Read"):
        assert index.refresh_ref_docs(documents) == [True] * 3 + [False] * 2 + [True] * 9
    assert (counts(index.report), index.report.skipped) == ((12, 0, 0, 0), ["words.txt", "n2"])


@pytest.mark.parametrize("number", [0, -1, "4", None, True])
def test_page_number_that_is_no_count_is_refused(index: ColQwenIndex, tmp_path: Path, number: object) -> None:
    document = make_document(tmp_path, 1)
    document.metadata["page_number"] = number
    with pytest.raises(InvalidOptionError, match="counted from 1"):
        index.insert(document)


def test_from_existing_opens_with_the_embedder_of_the_collection(tmp_path: Path) -> None:
    from llama_index_colqwen import LexicalEmbedder

    documents = [make_document(tmp_path, 1, text="Die Häfen der Stadt")]
    uri = tmp_path / "pages.db"
    ColQwenIndex.from_documents(documents, LexicalEmbedder("de"), uri=uri, show_progress=False).store.close()
    index = ColQwenIndex.from_existing(uri)
    assert index.embedder.fingerprint == LexicalEmbedder("de").fingerprint
    assert [hit.node_id for hit in index.as_retriever().retrieve("Hafen")] == ["d-p00001"]
    index.store.close()


def test_collection_of_an_earlier_version_of_the_embedder_says_to_index_again(tmp_path: Path) -> None:
    uri = tmp_path / "pages.db"
    with MilvusPageStore(uri) as store:
        store.open(EmbedderFingerprint("lexical", "1", 256, {"language": "en"}))
    with pytest.raises(FingerprintMismatchError, match="made by lexical .revision 1, .* or index again with overwrite"):
        ColQwenIndex.from_existing(uri)
    with ColQwenIndex.from_documents([make_document(tmp_path, 1)], uri=uri, overwrite=True) as index:
        assert index.store.count() == 1


def test_overwrite_is_needed_to_change_the_embedder(tmp_path: Path) -> None:
    uri, documents = tmp_path / "pages.db", [make_document(tmp_path, 1)]
    ColQwenIndex.from_documents(documents, CountingEmbedder(), uri=uri, show_progress=False).store.close()
    with pytest.raises(FingerprintMismatchError):
        ColQwenIndex.from_documents(documents, "lexical", uri=uri, show_progress=False)
    with pytest.raises(FingerprintMismatchError):
        ColQwenIndex.from_existing(uri, "lexical")
    index = ColQwenIndex.from_documents(documents, "lexical", uri=uri, overwrite=True, show_progress=False)
    assert index.store.fingerprint().model == "lexical"
    index.store.close()


def test_fingerprint_survives_as_text() -> None:
    fingerprint = EmbedderFingerprint("model", "rev", 128, {"prefix": 'Query: "', "cap": 768})
    assert EmbedderFingerprint.from_json(fingerprint.to_json()) == fingerprint


async def test_async_twins_do_the_same(index: ColQwenIndex, tmp_path: Path) -> None:
    documents = [make_document(tmp_path, number) for number in (1, 2, 3, 4)]
    await index.ainsert(documents[0])
    await index.ainsert_nodes(documents[1:3])
    assert await index.arefresh_ref_docs(documents) == [False, False, False, True]
    assert await index.adelete_nodes(["d-p00001"]) == 1
    assert await index.adelete_ref_doc("d") == 3
    assert index.store.count() == 0


class SlowEmbedder(CountingEmbedder):
    def embed_pages(self, pages: Sequence[Page]) -> list[MultiVector]:
        time.sleep(1.1)
        return super().embed_pages(pages)


@pytest.mark.parametrize("method", ["insert_nodes", pytest.param("refresh_ref_docs", marks=pytest.mark.slow)])
def test_progress_is_shown_of_what_takes_longer_than_a_second(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], method: str
) -> None:
    with ColQwenIndex(MilvusPageStore(tmp_path / "x.db"), SlowEmbedder()) as index:
        getattr(index, method)([make_document(tmp_path, 1)], show_progress=False)
        assert capfd.readouterr().err == ""
        getattr(index, method)([make_document(tmp_path, 2)])
        assert "Indexing pages" in capfd.readouterr().err
        index.embedder = CountingEmbedder()
        getattr(index, method)([make_document(tmp_path, 3)])
        assert capfd.readouterr().err == ""


@pytest.mark.parametrize("method", ["insert_nodes", "refresh_ref_docs"])
def test_progress_knows_how_many_pages_a_reader_will_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr("llama_index_colqwen.indexing.tqdm", lambda **options: tqdm(**{**options, "delay": 0}))
    write_text_pdf(tmp_path / "a.pdf", "one", "two")
    write_text_pdf(tmp_path / "b.pdf", "three")
    reader = PDFPageReader(image_dir=tmp_path / "images", ocr="never")
    with ColQwenIndex(MilvusPageStore(tmp_path / "x.db"), CountingEmbedder()) as index:
        getattr(index, method)(reader.lazy_load_data(tmp_path))
    assert "Indexing pages: 100%" in (shown := capfd.readouterr().err)
    assert "3/3" in shown


SLOW_INDEXING = """
import sys, time
from pathlib import Path
from llama_index_colqwen import ColQwenIndex
from tests.test_index import CountingEmbedder, make_document
class Slow(CountingEmbedder):
    def embed_pages(self, pages):
        print("embedding", flush=True)
        time.sleep(0.3)
        return super().embed_pages(pages)
folder = Path(sys.argv[1])
documents = [make_document(folder, number) for number in range(1, 400)]
ColQwenIndex.from_documents(documents, Slow(), uri=folder / "pages.db")
"""


@pytest.mark.slow
def test_ctrl_c_while_indexing_leaves_whole_pages_and_a_file_that_opens(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW_INDEXING, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process, at_most(90, process):
        assert process.stdout is not None
        for _ in range(3):  # at the third batch, two are stored
            assert process.stdout.readline() == "embedding\n"
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=30)
    index = ColQwenIndex.from_existing(tmp_path / "pages.db", CountingEmbedder())
    stored = index.store.count()
    assert 32 <= stored < 399
    assert stored % 16 == 0
    assert len(list(index.store.candidates(unit_rows(0, 1), exact=True))) == stored
    index.insert_nodes([make_document(tmp_path, number) for number in range(1, 400)])
    assert counts(index.report) == (399 - stored, 0, stored, 0)
    index.store.close()


def test_failing_store_ends_indexing_with_its_error_and_keeps_what_was_stored(
    index: ColQwenIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, calls = index.store.add, 0

    def failing(pages: Sequence[Page], vectors: Sequence[MultiVector]) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError("no space left on device")
        add(pages, vectors)

    monkeypatch.setattr(index.store, "add", failing)
    with pytest.raises(OSError, match="no space left"):
        index.insert_nodes([make_document(tmp_path, number) for number in range(1, 200)])
    monkeypatch.undo()
    stored = index.store.count()
    assert 0 < stored == index.report.added < 199
    index.insert_nodes([make_document(tmp_path, number) for number in range(1, 200)])
    assert counts(index.report) == (199 - stored, 0, stored, 0)


def test_failing_reader_ends_indexing_with_its_error_after_the_pages_before_it(
    index: ColQwenIndex, tmp_path: Path
) -> None:
    def documents() -> Iterator[BaseNode]:
        for number in range(1, 41):
            yield make_document(tmp_path, number)
        raise OSError("the network drive is gone")

    with pytest.raises(OSError, match="network drive"):
        index.insert_nodes(documents())
    assert index.store.count() == index.report.added == 40
    assert index.report.seconds > 0


def test_pieces_of_pages_are_refused_and_named(index: ColQwenIndex, tmp_path: Path) -> None:
    """Each would be stored as a page of its own, and a model would be sent one picture many times."""
    pages = [make_document(tmp_path, number, "One sentence. " * 40) for number in (1, 2)]
    pieces = SentenceSplitter(chunk_size=40, chunk_overlap=0).get_nodes_from_documents(pages)
    assert len(pieces) > 2
    with pytest.raises(InvalidOptionError, match="is a piece of page 'd-p00001', and pages are indexed whole"):
        index.insert_nodes(pieces)
    assert index.store.count() == 0


SHA, SHA_NEW = "a" * 64, "b" * 64


def names_by_filter(index: ColQwenIndex, key: str, value: str) -> set[str]:
    filters = MetadataFilters(filters=[MetadataFilter(key=key, value=value)])
    return {hit.node.node_id for hit in index.as_retriever(similarity_top_k=9, filters=filters).retrieve("text 1")}


def in_file(folder: Path, name: str, number: int, document_id: str = SHA) -> ImageDocument:
    return make_document(folder, number, document_id=document_id, file_name=name, file_path=f"/in/{name}")


@pytest.mark.parametrize("where", ["file", "milvus_server"])
def test_page_knows_every_file_it_is_in_and_stays_while_it_is_in_one(
    where: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    uri = tmp_path / "x.db" if where == "file" else request.getfixturevalue(where)
    store = MilvusPageStore(uri, collection_name=f"files_{uuid.uuid4().hex[:8]}", cache_dir=tmp_path / "cache")
    with ColQwenIndex(store, CountingEmbedder(), image_dir=tmp_path) as index:
        pages = [in_file(tmp_path, name, number) for name in ("a.pdf", "b.pdf") for number in (1, 2)]
        index.refresh_ref_docs(pages)
        assert len(index.embedder.embedded) == 2  # type: ignore[attr-defined]
        ids = {page.id_ for page in pages}
        for key, prefix in (("file_name", ""), ("file_path", "/in/")):
            for name in ("a.pdf", "b.pdf"):
                assert names_by_filter(index, key, prefix + name) == ids
        index.refresh_ref_docs(pages)
        assert counts(index.report) == (0, 0, 4, 0)
        [page] = index.store.get([pages[0].id_])
        node = index.as_retriever(similarity_top_k=1).retrieve("text 1")[0].node
        assert page.file_name == node.metadata["file_name"] == "a.pdf"
        assert "b.pdf" not in node.get_content(MetadataMode.LLM)
        index.refresh_ref_docs([in_file(tmp_path, "a.pdf", 1, SHA_NEW)])  # a new version of one of the two
        assert names_by_filter(index, "file_name", "a.pdf") == {f"{SHA_NEW}-p00001"}
        assert names_by_filter(index, "file_name", "b.pdf") == ids
        assert {page.file_name for page in index.store.get(sorted(ids))} == {"b.pdf"}
        assert index.report.removed == 0
        index.refresh_ref_docs([in_file(tmp_path, "b.pdf", 1, SHA_NEW)])
        assert index.report.removed == 2
        assert index.store.count() == 1
        store.clear()


def test_embedder_that_reads_file_names_embeds_again_what_has_another_name(tmp_path: Path) -> None:
    """Every name that the page's files have now counts, and no other."""

    def best_score(index: ColQwenIndex, query: str) -> float:
        return index.as_retriever(similarity_top_k=1).retrieve(query)[0].score or 0.0

    def names(*names: str) -> list[ImageDocument]:
        return [in_file(tmp_path, name, number) for name in names for number in (1, 2)]

    with ColQwenIndex(MilvusPageStore(tmp_path / "x.db"), "lexical", image_dir=tmp_path) as index:
        index.refresh_ref_docs(names("turbidity.pdf"))
        index.refresh_ref_docs(names("turbidity.pdf"))
        assert counts(index.report) == (0, 0, 2, 0)
        assert best_score(index, "turbidity") > 0.5 > best_score(index, "barnacles")
        index.refresh_ref_docs(names("turbidity.pdf", "barnacles.pdf"))  # a copy
        assert min(best_score(index, "turbidity"), best_score(index, "barnacles")) > 0.5
        index.refresh_ref_docs(names("barnacles.pdf"), delete_missing=True)  # the first one is on no disk
        assert best_score(index, "barnacles") > 0.5 > best_score(index, "turbidity")
        index.refresh_ref_docs(names("barnacles.pdf"))
        assert counts(index.report) == (0, 0, 2, 0)


def test_embedder_that_reads_no_file_names_keeps_the_vectors_of_a_renamed_file(
    index: ColQwenIndex, tmp_path: Path
) -> None:
    index.insert(in_file(tmp_path, "old.pdf", 1))
    index.insert(in_file(tmp_path, "new.pdf", 1))
    assert len(index.embedder.embedded) == 1  # type: ignore[attr-defined]


def test_documents_of_ones_own_that_share_a_file_all_stay(index: ColQwenIndex, tmp_path: Path) -> None:
    pages = [make_document(tmp_path, 1, document_id=f"own-{number}", file_path="/in/own.pdf") for number in range(3)]
    index.refresh_ref_docs(pages)
    index.refresh_ref_docs(pages)
    assert counts(index.report) == (0, 0, 3, 0)
    assert index.store.count() == 3


def test_pages_of_files_that_are_gone_are_removed_when_asked(index: ColQwenIndex, tmp_path: Path) -> None:
    kept, gone = tmp_path / "kept.pdf", tmp_path / "gone.pdf"
    for path in (kept, gone):
        path.write_bytes(b"")
    pages = [make_document(tmp_path, 1, document_id=path.stem, file_path=str(path)) for path in (kept, gone)]
    given = make_document(tmp_path, 1, document_id="given", file_path="bucket/given.pdf")  # on no disk of ours
    index.refresh_ref_docs([*pages, given])
    gone.unlink()
    index.refresh_ref_docs([given])
    assert index.store.count() == 3
    index.refresh_ref_docs([given], delete_missing=True)
    assert index.report.removed == 1
    assert {document.document_id for document in index.store.documents()} == {"kept", "given"}


def test_index_moves_with_its_images(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "pages").mkdir(parents=True)
    beside = make_document(project / "pages", 1)
    inline = ImageDocument(text="inline", image=base64.b64encode(picture("red")), image_mimetype="image/png")
    outside = make_document(tmp_path, 2)
    with ColQwenIndex.from_documents([beside, inline, outside], CountingEmbedder(), uri=project / "x.db"):
        pass
    project.rename(tmp_path / "moved")
    with ColQwenIndex.from_existing(tmp_path / "moved" / "x.db", CountingEmbedder()) as index:
        hits = index.as_retriever(similarity_top_k=9).retrieve("text 1")
        paths = {hit.node.node_id: Path(hit.node.to_dict()["image_path"]) for hit in hits}
        assert paths[beside.id_] == tmp_path / "moved" / "pages" / "d-1.png"
        assert paths[inline.id_].is_relative_to(tmp_path / "moved" / "x.images")
        assert paths[outside.id_] == tmp_path / "d-2.png"
        assert all(path.exists() for path in paths.values())
        beside.image_path = str(paths[beside.id_])
        index.refresh_ref_docs([beside])
        assert counts(index.report) == (0, 0, 1, 0)  # nothing of it changed
    (tmp_path / "moved" / "x.images").rename(tmp_path / "elsewhere")
    with ColQwenIndex.from_existing(
        tmp_path / "moved" / "x.db", CountingEmbedder(), image_dir=tmp_path / "elsewhere"
    ) as index:
        [page] = index.store.get([inline.id_])
        assert page.image_path is not None
        assert Path(page.image_path).is_relative_to(tmp_path / "elsewhere")
        assert page.read_image() == picture("red")


def test_absolute_paths_of_before_are_found_where_they_are_now(tmp_path: Path) -> None:
    (tmp_path / "new" / "pages" / "0123").mkdir(parents=True)
    image = tmp_path / "new" / "pages" / "0123" / "page-0001-4567.jpg"
    image.write_bytes(picture())
    stored = "/home/somebody/old/pages/0123/page-0001-4567.jpg"
    assert locate_image(stored, tmp_path / "new" / "pages") == str(image)
    assert locate_image(stored, tmp_path / "new" / "x.images") == str(image)  # the folder beside
    assert locate_image(stored, tmp_path / "other") == stored
    assert locate_image(str(image), None) == str(image)


def test_check_embeds_lost_pages_again(index: ColQwenIndex, tmp_path: Path) -> None:
    pages = [make_document(tmp_path, number) for number in (1, 2, 3)]
    index.insert_nodes(pages)
    opened = index.store._require_open()
    opened.vectors.remove([entry.vectors for entry in opened.search.entries([pages[0].id_, pages[1].id_]).values()])
    index.close()
    shutil.rmtree(index.store._cache_dir)
    Path(pages[1].image_path or "").unlink()
    checked = index.check()
    assert (checked.pages, checked.embedded, checked.lost) == (3, 1, [pages[1].id_])
    found = {hit.node.node_id for hit in index.as_retriever(similarity_top_k=9).retrieve("text 1")}
    assert found == {pages[0].id_, pages[2].id_}


@pytest.mark.slow
def test_pickled_they_connect_again_in_another_process(tmp_path: Path) -> None:
    documents = [make_document(tmp_path, number) for number in (1, 2, 3)]
    only = MetadataFilters(filters=[MetadataFilter(key="page_number", value=1, operator="!=")])  # type: ignore[arg-type]
    with ColQwenIndex.from_documents(documents, uri=tmp_path / "p.db", show_progress=False) as made:
        retriever = made.as_retriever(similarity_top_k=1, score="normalized", filters=only)
        expected = retriever.retrieve("text 1 2")
        (tmp_path / "pickled").write_bytes(pickle.dumps((made, retriever)))
    script = """
import pickle, sys
index, retriever = pickle.load(open(sys.argv[1], "rb"))
[hit] = retriever.retrieve("text 1 2")
print(hit, len(index.nodes()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "pickled")], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{expected[0]} 3\n"


def test_no_secret_is_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    for store in (
        MilvusPageStore("http://127.0.0.1:1", token="root:a-secret"),
        MilvusPageStore("http://root:a-secret@127.0.0.1:1"),
    ):
        assert b"a-secret" not in pickle.dumps(store)
    monkeypatch.setenv("MILVUS_TOKEN", "root:another-secret")
    again = pickle.loads(pickle.dumps(store))
    assert (again.uri, again._connection._token) == ("http://127.0.0.1:1", "root:another-secret")
