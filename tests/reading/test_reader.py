from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from operator import length_hint
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import psutil
import pytest
from fsspec import AbstractFileSystem, register_implementation
from llama_index.core import SimpleDirectoryReader
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.schema import BaseNode, Document, ImageDocument, MetadataMode, TransformComponent
from llama_index.core.storage.docstore import SimpleDocumentStore
from PIL import Image
from reportlab.pdfgen.canvas import Canvas

from llama_index_colqwen import (
    ColQwenError,
    DocumentError,
    DocumentNotFoundError,
    EncryptedDocumentError,
    InvalidOptionError,
    PDFPageReader,
    SkippedDocumentWarning,
    UnreadableDocumentError,
    UnsupportedDocumentError,
    word_boxes,
)
from llama_index_colqwen.nodes import node_from_page, page_from_node
from llama_index_colqwen.reading.reader import Source
from tests.documents import Sheet, encode, quadrants, walk, write_pdf, write_raw_pdf, write_text_pdf
from tests.forks import in_fork, needs_fork
from tests.services import has_ended, wait_for

ROOT = Path(__file__).parents[2]
METADATA_KEYS = {
    "file_name",
    "file_path",
    "page_label",
    "page_number",
    "document_id",
    "page_sha256",
    "text_source",
    "word_boxes",
}


def reader(**options: Any) -> PDFPageReader:  # noqa: ANN401
    """Make a reader whose pages are small, and that does not try OCR on them."""
    return PDFPageReader(**{"ocr": "never", "max_pixels": 10_000, **options})


def ids(documents: Sequence[BaseNode]) -> list[str]:
    return [document.node_id for document in documents]


def names(documents: Sequence[BaseNode]) -> list[tuple[str, int]]:
    return [(document.metadata["file_name"], document.metadata["page_number"]) for document in documents]


def jpeg_of(document: Document) -> bytes:
    assert isinstance(document, ImageDocument)
    return base64.b64decode(document.image or "", validate=True)


@pytest.fixture
def pdf(tmp_path: Path) -> Path:
    return write_text_pdf(tmp_path / "report.pdf", "first page", "Grand total 42")


@pytest.fixture
def memory() -> Iterator[Any]:
    file_system = fsspec.filesystem("memory")
    yield file_system
    file_system.rm("/", recursive=True)


# Identity, metadata, text


def test_page_ids_are_the_files_sha256_and_the_page_number(pdf: Path) -> None:
    digest = hashlib.sha256(pdf.read_bytes()).hexdigest()
    assert ids(reader().load_data(pdf)) == [f"{digest}-p00001", f"{digest}-p00002"]


def test_page_ids_do_not_depend_on_path_name_or_options(pdf: Path, tmp_path: Path) -> None:
    expected = ids(reader().load_data(pdf))
    other = tmp_path / "elsewhere" / "renamed.pdf"
    other.parent.mkdir()
    shutil.copy(pdf, other)
    assert ids(reader().load_data(other)) == expected
    assert ids(reader().load_data(pdf.read_bytes())) == expected
    assert ids(reader(max_pixels=5000, extract_text=False, image_dir=tmp_path / "images").load_data(pdf)) == expected


def test_changed_file_has_other_page_ids(tmp_path: Path) -> None:
    before = ids(reader().load_data(write_text_pdf(tmp_path / "x.pdf", "before")))
    assert ids(reader().load_data(write_text_pdf(tmp_path / "x.pdf", "after"))) != before


def test_metadata_of_a_page(pdf: Path) -> None:
    document = reader().load_data(pdf)[1]
    metadata = document.metadata
    assert set(metadata) == METADATA_KEYS
    assert metadata["file_name"] == "report.pdf" and metadata["file_path"] == str(pdf.resolve())
    assert (metadata["page_label"], metadata["page_number"]) == ("2", 2)
    assert metadata["document_id"] == hashlib.sha256(pdf.read_bytes()).hexdigest()
    assert metadata["page_sha256"] == hashlib.sha256(jpeg_of(document)).hexdigest()
    assert metadata["text_source"] == "text-layer"
    assert [word.text for word in word_boxes(document)] == ["Grand", "total", "42"]


@pytest.mark.parametrize("mode", [MetadataMode.LLM, MetadataMode.EMBED])
def test_model_sees_only_name_label_and_the_users_own_metadata(pdf: Path, mode: MetadataMode) -> None:
    document = reader().load_data(pdf, extra_info={"team": "finance"})[1]
    shown, text = document.get_content(mode).split("\n\n")
    assert sorted(shown.splitlines()) == ["file_name: report.pdf", "page_label: 2", "team: finance"]
    assert text == document.text == "Grand total 42"


def test_users_metadata_is_on_every_page_and_not_shared_between_them(pdf: Path) -> None:
    extra = {"team": "finance"}
    first, second = reader().load_data(pdf, extra_info=extra)
    first.metadata["team"] = "changed"
    assert second.metadata["team"] == "finance" and extra == {"team": "finance"}


def test_extract_text_false_gives_pages_without_text(pdf: Path) -> None:
    for document in reader(extract_text=False).load_data(pdf):
        assert (document.text, document.metadata["text_source"], word_boxes(document)) == ("", "none", [])


# Images


def test_inline_image_is_a_jpeg_of_at_most_max_pixels(pdf: Path) -> None:
    for document in reader(max_pixels=30_000).load_data(pdf):
        with Image.open(io.BytesIO(jpeg_of(document))) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert 29_000 < image.width * image.height <= 30_000
        assert isinstance(document, ImageDocument)
        assert document.image_mimetype == "image/jpeg" and not document.image_path


def test_default_is_150_dpi_for_a_letter_page(pdf: Path) -> None:
    with Image.open(io.BytesIO(jpeg_of(PDFPageReader(ocr="never").load_data(pdf)[0]))) as image:
        assert image.size == (1275, 1650)


def test_image_dir_holds_the_image_that_would_be_inline(pdf: Path, tmp_path: Path) -> None:
    inline = reader().load_data(pdf)
    on_disk = reader(image_dir=tmp_path / "images").load_data(pdf)
    for one, other in zip(inline, on_disk, strict=True):
        assert isinstance(other, ImageDocument) and not other.image
        path = Path(other.image_path or "")
        assert path.is_absolute() and path.read_bytes() == jpeg_of(one)
        assert other.metadata["page_sha256"][:16] in path.name
        assert one.metadata == other.metadata
    assert len(list(walk(tmp_path / "images"))) == 2


def test_second_run_writes_nothing(pdf: Path, tmp_path: Path) -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in walk(images)}

    images = tmp_path / "images"
    first = reader(image_dir=images).load_data(pdf)
    for path in walk(images):
        os.utime(path, ns=(10**18, 10**18))
    before = state()
    second = reader(image_dir=images).load_data(pdf)
    assert state() == before and len(before) == 2
    assert [document.to_dict() for document in second] == [document.to_dict() for document in first]


def test_image_dir_inside_the_folder_is_not_read_as_documents(tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()
    write_text_pdf(folder / "a.pdf", "one page")
    inside = reader(image_dir=folder / "pages")
    assert names(inside.load_data(folder)) == [("a.pdf", 1)]
    assert names(inside.load_data(folder)) == [("a.pdf", 1)]


@pytest.mark.parametrize("make", ["pdf", "png", "tiff"])
def test_page_longer_than_a_jpeg_can_be_is_read_or_refused_by_name(tmp_path: Path, make: str) -> None:
    path = tmp_path / f"roll.{make}"
    if make == "pdf":
        write_pdf(path, [Sheet(size=(10, 30_000))])
    else:
        Image.new("L", (10, 70_000), 255).save(path)
    try:
        (document,) = PDFPageReader(ocr="never").load_data(path)
    except ColQwenError as error:
        assert isinstance(error, UnreadableDocumentError) and str(error).startswith(f"roll.{make}: ")
    else:
        with Image.open(io.BytesIO(jpeg_of(document))) as image:
            assert image.height > 30_000 > image.width


# Sources


def test_folder_is_read_recursively_in_order_of_name_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.pdf", "a/2.pdf", "a/1.pdf", "c/d/e.pdf", ".hidden.pdf", ".git/x.pdf", "c/.cache/y.pdf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_text_pdf(tmp_path / name, name)
    (tmp_path / "notes.log").write_text("not read")
    (tmp_path / "z.PNG").write_bytes(encode(quadrants(), "PNG"))
    found = [Path(document.metadata["file_path"]).relative_to(tmp_path) for document in reader().load_data(tmp_path)]
    assert [path.as_posix() for path in found] == ["a/1.pdf", "a/2.pdf", "b.pdf", "c/d/e.pdf", "z.PNG"]


def test_hidden_folder_that_is_asked_for_is_read(tmp_path: Path) -> None:
    (tmp_path / ".private").mkdir()
    write_text_pdf(tmp_path / ".private" / "a.pdf", "text")
    assert names(reader().load_data(tmp_path / ".private")) == [("a.pdf", 1)]


def test_list_is_read_in_the_order_given(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write_text_pdf(tmp_path / "folder" / "in.pdf", "text")
    last = write_text_pdf(tmp_path / "z.pdf", "text")
    sources: list[Source] = [str(last), tmp_path / "folder", last.read_bytes()]
    documents = reader().load_data(sources)
    assert [document.metadata["file_name"] for document in documents][:2] == ["z.pdf", "in.pdf"]
    assert documents[2].node_id == documents[0].node_id


@pytest.mark.parametrize("image_format", ["PDF", "PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF"])
def test_bytes_without_a_file_name_are_read_by_their_content(image_format: str) -> None:
    data = encode(quadrants(), image_format)
    (document,) = reader().load_data(data)
    assert "file_path" not in document.metadata
    assert document.metadata["file_name"] == f"document-{hashlib.sha256(data).hexdigest()[:8]}"


def test_bytes_are_named_by_extra_info() -> None:
    extra = {"file_name": "scan.png", "file_path": "s3://bucket/scan.png", "team": "x"}
    (document,) = reader().load_data(encode(quadrants(), "PNG"), extra_info=extra)
    assert {key: document.metadata[key] for key in extra} == extra


def test_missing_path_is_noticed_before_the_first_page_is_asked_for(tmp_path: Path, pdf: Path) -> None:
    with pytest.raises(DocumentNotFoundError, match="nowhere") as raised:
        reader().lazy_load_data([pdf, tmp_path / "nowhere"])
    assert isinstance(raised.value, FileNotFoundError)


@pytest.mark.parametrize(
    ("files", "problem"),
    [([], "no files at all"), (["letter.pages", "b.PAGES"], r"only files of type \.pages; supported are .*\.pdf")],
    ids=["empty", "only-docx"],
)
def test_folder_with_nothing_to_read_says_what_it_has(tmp_path: Path, files: list[str], problem: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(DocumentNotFoundError, match=problem):
        reader().load_data(tmp_path)


def test_empty_list_is_not_found() -> None:
    with pytest.raises(DocumentNotFoundError, match="empty"):
        reader().load_data([])


def test_source_of_another_type_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="int"):
        reader().load_data([3])  # type: ignore[list-item]


def test_unsupported_file_given_by_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.pages").write_bytes(b"PK")
    with pytest.raises(UnsupportedDocumentError, match=r"^letter\.pages: .*\.pages.*\.pdf"):
        reader().load_data(tmp_path / "letter.pages")


def test_file_on_an_fsspec_file_system(pdf: Path, memory: Any) -> None:  # noqa: ANN401
    memory.pipe("/docs/report.pdf", pdf.read_bytes())
    expected = reader().load_data(pdf)
    for path in ("/docs/report.pdf", PurePosixPath("/docs/report.pdf")):
        documents = reader().load_data(path, fs=memory)
        assert ids(documents) == ids(expected) and names(documents) == names(expected)
        assert documents[0].metadata["file_path"] == "/docs/report.pdf"


def test_folder_on_an_fsspec_file_system_is_read_as_a_local_one(memory: Any) -> None:  # noqa: ANN401
    picture = encode(quadrants(), "PNG")
    for name in ("b.png", "a/2.png", "a/1.png", ".hidden.png", ".git/x.png", "a/.cache/y.png", "notes.log"):
        memory.pipe(f"/docs/{name}", picture)
    documents = reader().load_data("/docs", fs=memory)
    assert [document.metadata["file_path"] for document in documents] == [
        "/docs/a/1.png",
        "/docs/a/2.png",
        "/docs/b.png",
    ]


def test_addresses_are_read_as_they_are_and_beside_local_files(pdf: Path, memory: Any) -> None:  # noqa: ANN401
    for name in ("docs/a.pdf", "docs/deep/b.pdf", "other.pdf"):
        memory.pipe(f"/{name}", pdf.read_bytes())
    documents = reader().load_data([pdf, "memory://docs", "memory://other.pdf"])
    pages = len(reader().load_data(pdf))
    assert [document.metadata["file_path"] for document in documents[::pages]] == [
        str(pdf.resolve()),
        "memory:///docs/a.pdf",
        "memory:///docs/deep/b.pdf",
        "memory:///other.pdf",
    ]
    assert ids(documents) == 4 * ids(documents[:pages])


class Refusing(AbstractFileSystem):  # type: ignore[misc]
    """A bucket that may be listed, in part, and files that may not be read."""

    protocol = "refusing"

    def info(self, path: str, **options: object) -> dict[str, object]:
        if path == "secret":
            raise PermissionError("Access Denied")
        return {"name": path, "type": "file" if path.endswith(".png") else "directory", "size": 1}

    def ls(self, path: str, detail: bool = True, **options: object) -> list[Any]:
        return [self.info(f"{path}/a.png")]

    def cat_file(self, path: str, *options: object, **more: object) -> bytes:
        raise PermissionError("Forbidden")

    def exists(self, path: str, **options: object) -> bool:
        return bool(self.info(path))

    def isdir(self, path: str) -> bool:
        return self.info(path)["type"] == "directory"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("memory://docs/none.pdf", r"/docs/none\.pdf: there is no such file or folder"),
        ("refusing://secret", r"^refusing://secret: cannot be looked up \(Access Denied\)\.$"),
        ("refusing://open", r"^a\.png: the file cannot be fetched \(Forbidden\)\.$"),
        ("s3://bucket/reports", r"^s3://bucket/reports: cannot be looked up \(.*s3fs.*\)\.$"),
        ("nowhere://reports", r"^nowhere://reports: cannot be looked up \(Protocol not known: nowhere\)\.$"),
    ],
)
def test_addresses_that_cannot_be_read_are_one_sentence(
    url: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    register_implementation("refusing", Refusing, clobber=True)
    with pytest.raises(DocumentError, match=sentence):
        reader().load_data(url)


def test_file_that_cannot_be_fetched_is_skipped_and_named(pdf: Path) -> None:
    register_implementation("refusing", Refusing, clobber=True)
    with pytest.warns(SkippedDocumentWarning, match=r"a\.png: the file cannot be fetched \(Forbidden\)"):
        documents = reader(on_error="skip").load_data(["refusing://open", pdf])
    assert ids(documents) == ids(reader().load_data(pdf))


@pytest.mark.parametrize(("path", "problem"), [("/docs/none.pdf", "no such file"), ("/docs", r"only .*\.pages")])
def test_nothing_to_read_on_an_fsspec_file_system(memory: Any, path: str, problem: str) -> None:  # noqa: ANN401
    memory.pipe("/docs/letter.pages", b"PK")
    with pytest.raises(DocumentNotFoundError, match=problem):
        reader().load_data(path, fs=memory)


# Errors


def write_mixed_folder(folder: Path) -> None:
    write_text_pdf(folder / "1-good.pdf", "good", "good")
    write_text_pdf(folder / "2-secret.pdf", "secret", password="geheim")
    (folder / "3-cut.pdf").write_bytes((folder / "1-good.pdf").read_bytes()[:500])
    (folder / "4-empty.png").write_bytes(b"")
    (folder / "5-good.png").write_bytes(encode(quadrants(), "PNG"))


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_bad_pages_are_skipped_and_the_other_pages_of_their_file_are_read(tmp_path: Path, num_workers: int) -> None:
    write_raw_pdf(
        tmp_path / "torn.pdf",
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R 9 0 R 9 0 R 3 0 R]/Count 4>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]>>",
    )
    write_text_pdf(tmp_path / "whole.pdf", "words")
    with pytest.warns(
        SkippedDocumentWarning, match=r"^1 of 2 files .*torn\.pdf: page 2 is missing .* 1 more"
    ) as warned:
        documents = reader(on_error="skip", num_workers=num_workers).load_data(tmp_path)
    assert names(documents) == [("torn.pdf", 1), ("torn.pdf", 4), ("whole.pdf", 1)]
    assert len(warned) == 1
    pages = reader(num_workers=num_workers).lazy_load_data(tmp_path)
    assert names([next(pages)]) == [("torn.pdf", 1)]
    with pytest.raises(UnreadableDocumentError, match=r"^torn\.pdf: page 2"):
        next(pages)


def test_skip_reads_the_rest_and_one_warning_names_what_was_skipped(tmp_path: Path) -> None:
    write_mixed_folder(tmp_path)
    with pytest.warns(SkippedDocumentWarning) as warned:
        documents = reader(on_error="skip").load_data(tmp_path)
    assert names(documents) == [("1-good.pdf", 1), ("1-good.pdf", 2), ("5-good.png", 1)]
    (warning,) = warned
    message = str(warning.message)
    assert message.startswith("3 of 5 files")
    assert all(name in message for name in ("2-secret.pdf: ", "3-cut.pdf: ", "4-empty.png: "))
    assert "good" not in message


def test_raise_stops_at_the_first_unreadable_file(tmp_path: Path) -> None:
    write_mixed_folder(tmp_path)
    pages = reader().lazy_load_data(tmp_path)
    assert names([next(pages), next(pages)]) == [("1-good.pdf", 1), ("1-good.pdf", 2)]
    with pytest.raises(EncryptedDocumentError, match=r"^2-secret\.pdf: "):
        next(pages)


def test_skip_also_covers_a_pdf_whose_page_is_missing(tmp_path: Path) -> None:
    write_raw_pdf(
        tmp_path / "torn.pdf",
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R 9 0 R]/Count 2>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]>>",
    )
    write_text_pdf(tmp_path / "whole.pdf", "text")
    with pytest.warns(SkippedDocumentWarning, match=r"torn\.pdf: page 2"):
        documents = reader(on_error="skip").load_data(tmp_path)
    assert names(documents)[-1] == ("whole.pdf", 1)


def test_password_opens_the_encrypted_file_of_a_folder_and_harms_no_other(tmp_path: Path) -> None:
    write_text_pdf(tmp_path / "1.pdf", "open")
    write_text_pdf(tmp_path / "2.pdf", "secret", password="geheim")
    assert [document.text for document in reader(password="geheim").load_data(tmp_path)] == ["open", "secret"]


@pytest.mark.parametrize(
    "options",
    [
        {"max_pixels": 0},
        {"max_pixels": -5},
        {"renderer": "ghostscript"},
        {"ocr": "sometimes"},
        {"on_error": "ignore"},
        {"dpi": 300},
    ],
    ids=str,
)
def test_unknown_option_or_value_is_rejected_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        PDFPageReader(**options)


# As a LlamaIndex reader


def test_password_is_in_no_representation_and_survives_pickling(tmp_path: Path) -> None:
    path = write_text_pdf(tmp_path / "secret.pdf", "Hello", password="geheim")
    original = reader(password="geheim", image_dir=tmp_path / "images")
    assert "geheim" not in repr(original) + str(original)
    copy = pickle.loads(pickle.dumps(original))
    assert copy == original
    assert copy.load_data(path)[0].text == "Hello"


@pytest.mark.parametrize("as_path", [False, True])
def test_reader_survives_llama_index_serialisation(tmp_path: Path, as_path: bool) -> None:
    original = reader(image_dir=tmp_path if as_path else str(tmp_path), max_pixels=123)
    copy = PDFPageReader.from_json(original.to_json())
    assert (copy.max_pixels, copy.ocr, Path(copy.image_dir or "")) == (123, "never", tmp_path)


async def test_aload_data_equals_load_data(pdf: Path) -> None:
    expected = reader().load_data(pdf, extra_info={"team": "x"})
    found = await reader().aload_data(pdf, extra_info={"team": "x"})
    assert [document.to_dict() for document in found] == [document.to_dict() for document in expected]


@pytest.mark.filterwarnings("ignore:Specified num_workers exceed")
@pytest.mark.parametrize("num_workers", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_simple_directory_reader_keeps_pages_and_its_own_metadata(tmp_path: Path, num_workers: int | None) -> None:
    for name in ("a.pdf", "b.pdf"):
        write_text_pdf(tmp_path / name, f"{name} first", f"{name} second", password="geheim")
    directory = SimpleDirectoryReader(
        input_dir=tmp_path, file_extractor={".pdf": reader(password="geheim")}, raise_on_error=True
    )
    documents = directory.load_data(num_workers=num_workers)
    assert names(documents) == [("a.pdf", 1), ("a.pdf", 2), ("b.pdf", 1), ("b.pdf", 2)]
    assert ids(documents) == ids(reader(password="geheim").load_data(tmp_path))
    for document in documents:
        assert METADATA_KEYS | {"file_type", "file_size", "last_modified_date"} <= set(document.metadata)
        assert document.metadata["file_type"] == "application/pdf"
        assert document.metadata["file_path"] == str(tmp_path.resolve() / document.metadata["file_name"])
        assert len(jpeg_of(document)) > 100


def test_model_sees_the_file_name_of_what_simple_directory_reader_read(tmp_path: Path) -> None:
    write_text_pdf(tmp_path / "a.pdf", "words")
    (document,) = SimpleDirectoryReader(input_dir=tmp_path, file_extractor={".pdf": reader()}).load_data()
    seen = node_from_page(page_from_node(document)).get_metadata_str(MetadataMode.LLM)
    assert seen == "file_name: a.pdf\npage_label: 1"


@pytest.mark.slow
def test_worker_processes_of_both_readers_together_read_every_page(tmp_path: Path) -> None:
    for name in ("a.pdf", "b.pdf"):
        write_text_pdf(tmp_path / name, "first", "second")
    directory = SimpleDirectoryReader(
        input_dir=tmp_path, file_extractor={".pdf": reader(num_workers=2)}, raise_on_error=True
    )
    assert names(directory.load_data(num_workers=2)) == [("a.pdf", 1), ("a.pdf", 2), ("b.pdf", 1), ("b.pdf", 2)]


class Stamp(TransformComponent):
    """A transformation that does a little something, so that a pipeline has a result to keep."""

    def __call__(self, nodes: Sequence[BaseNode], **_: Any) -> list[BaseNode]:  # noqa: ANN401
        for node in nodes:
            node.metadata["stamped"] = True
        return list(nodes)


@pytest.mark.parametrize("inline", [True, False])
def test_pipeline_cache_does_not_take_one_empty_page_for_another(tmp_path: Path, inline: bool) -> None:
    write_pdf(tmp_path / "a.pdf", [Sheet(), Sheet()])
    write_pdf(tmp_path / "b.pdf", [Sheet(size=(100, 100))])
    documents = reader(image_dir=None if inline else tmp_path / "images").load_data(
        [tmp_path / "a.pdf", tmp_path / "b.pdf"]
    )
    pipeline = IngestionPipeline(transformations=[Stamp()])
    for _ in range(2):
        one_by_one = [node for document in documents for node in pipeline.run(documents=[document])]
        assert ids(one_by_one) == ids(documents)
        assert all(node.metadata["stamped"] for node in one_by_one)


def test_pipeline_docstore_keeps_every_page_without_text(tmp_path: Path) -> None:
    documents = reader().load_data(write_pdf(tmp_path / "a.pdf", [Sheet(), Sheet(), Sheet()]))
    pipeline = IngestionPipeline(
        transformations=[Stamp()],
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.DUPLICATES_ONLY,
    )
    assert ids(pipeline.run(documents=documents)) == ids(documents)


# Laziness

LAZY = """
import resource, sys
from llama_index_colqwen import PDFPageReader

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

for number, document in enumerate(PDFPageReader(ocr="never", max_pixels=300_000).lazy_load_data(sys.argv[1]), start=1):
    assert document.text == f"page {number}"
    if number == 20:
        start = peak()
print(number, peak() - start)
"""


@pytest.mark.slow
def test_500_pages_are_read_lazily_in_bounded_memory(tmp_path: Path, run_python: Callable[..., str]) -> None:
    path = write_text_pdf(tmp_path / "long.pdf", *(f"page {number}" for number in range(1, 501)))
    pages, growth = map(int, run_python(LAZY, path).split())
    assert pages == 500
    assert growth < 150e6, "500 pages of 300,000 pixels would take 450 MB"  # measured: under 10 MB


def test_pages_come_one_at_a_time(pdf: Path, tmp_path: Path) -> None:
    pages = reader(image_dir=tmp_path / "images").lazy_load_data(pdf)
    assert not (tmp_path / "images").exists()
    next(pages)
    assert len(list(walk(tmp_path / "images"))) == 1


def test_reading_that_is_broken_off_leaves_the_file_readable_again(pdf: Path) -> None:
    pages = reader().lazy_load_data(pdf)
    next(pages)
    pages.close()
    pdf.rename(pdf.with_name("moved.pdf"))
    assert len(reader().load_data(pdf.with_name("moved.pdf"))) == 2


@pytest.mark.slow
def test_worker_processes_read_the_same_pages_in_the_same_order(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_text_pdf(folder / "long.pdf", *(f"page {number} of the manual" for number in range(1, 21)))
    write_text_pdf(folder / "secret.pdf", "the password opened this", password="open sesame")
    quadrants().save(folder / "picture.png")
    options: dict[str, Any] = {"password": "open sesame", "image_dir": tmp_path / "images"}
    alone = reader(**options).load_data(folder, {"team": "north"})
    together = reader(num_workers=2, **options).load_data(folder, {"team": "north"})
    assert len(alone) == 22
    assert [document.to_dict() for document in together] == [document.to_dict() for document in alone]
    data = (folder / "long.pdf").read_bytes()
    assert ids(reader(num_workers=2).load_data(data)) == ids(alone)[:20]


@pytest.mark.slow
def test_worker_processes_raise_the_same_errors_after_the_same_pages(tmp_path: Path) -> None:
    write_mixed_folder(tmp_path)
    for number_of_workers in (1, 2):
        read = []
        with pytest.raises(EncryptedDocumentError) as raised:
            for document in reader(num_workers=number_of_workers).lazy_load_data(tmp_path):
                read.append(document)
        with pytest.warns(SkippedDocumentWarning) as warned:
            rest = reader(num_workers=number_of_workers, on_error="skip").load_data(tmp_path)
        if number_of_workers == 1:
            expected = str(raised.value), ids(read), ids(rest), str(warned[0].message)
    assert (str(raised.value), ids(read), ids(rest), str(warned[0].message)) == expected


@pytest.mark.slow
def test_script_without_a_main_guard_can_use_worker_processes(tmp_path: Path) -> None:
    write_text_pdf(tmp_path / "a.pdf", *(f"page {number}" for number in range(1, 12)))
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from llama_index_colqwen import PDFPageReader\n"
        "print(len(PDFPageReader(ocr='never', num_workers=2).load_data(sys.argv[1], show_progress=False)))\n"
    )
    command = [sys.executable, str(script), str(tmp_path / "a.pdf")]
    run = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120
    )
    assert (run.stdout, run.stderr) == ("11\n", "")


# ---- names that are not UTF-8


needs_any_bytes = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names of files are UTF-8 there")


def write_unreadable_name(folder: Path) -> Path:
    path = folder / os.fsdecode(b"r\xe9sum\xe9.pdf")
    write_text_pdf(folder / "a.pdf", "turbine")
    write_text_pdf(folder / "m.pdf", "penguin").rename(path)
    write_text_pdf(folder / "z.pdf", "glacier")
    return path


@needs_any_bytes
@pytest.mark.parametrize("way", ["folder", "list", "path", "text", "fs"])
def test_name_that_is_not_utf_8_is_read_and_written_as_utf_8(tmp_path: Path, way: str) -> None:
    path = write_unreadable_name(tmp_path)
    options: dict[str, Any] = {"fs": fsspec.filesystem("file")} if way == "fs" else {}
    sources: dict[str, Source | Sequence[Source]] = {"list": [path], "path": path, "text": str(path)}
    source = sources.get(way, tmp_path)
    documents = reader(image_dir=tmp_path / "images").load_data(source, **options)
    assert "r\ufffdsum\ufffd.pdf" in [document.metadata["file_name"] for document in documents]
    assert len(documents) == (3 if source is tmp_path else 1)
    for document in documents:
        json.dumps(document.to_dict(), ensure_ascii=False).encode()
        assert Path(page_from_node(document).image_path or "").is_file()


@needs_any_bytes
def test_names_that_look_the_same_keep_paths_of_their_own(tmp_path: Path) -> None:
    for number, name in enumerate((b"\xe8.pdf", b"\xe9.pdf")):
        write_text_pdf(tmp_path / os.fsdecode(name), f"page {number}")
    documents = reader().load_data(tmp_path)
    assert [document.metadata["file_name"] for document in documents] == ["\ufffd.pdf"] * 2
    assert [Path(document.metadata["file_path"]).name for document in documents] == ["\\udce8.pdf", "\\udce9.pdf"]


@needs_any_bytes
def test_errors_over_a_name_that_is_not_utf_8_can_be_printed(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xe9.pdf")
    with pytest.raises(DocumentNotFoundError, match="\ufffd.pdf: there is no such") as missing:
        reader().load_data(path)
    path.write_bytes(b"%PDF-1.7 broken")
    with pytest.raises(UnreadableDocumentError, match="^\ufffd.pdf: the PDF is") as broken:
        reader().load_data(path)
    with pytest.warns(SkippedDocumentWarning, match="\ufffd.pdf"):
        assert reader(on_error="skip").load_data(path) == []
    for raised in (missing, broken):
        str(raised.value).encode()


@needs_any_bytes
def test_image_dir_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    write_text_pdf(tmp_path / "a.pdf", "turbine")
    with pytest.raises(InvalidOptionError, match=r"image_dir is a folder .* got .*\\udce9\. Choose"):
        reader(image_dir=tmp_path / os.fsdecode(b"\xe9")).load_data(tmp_path / "a.pdf")


@pytest.mark.skipif(shutil.which("pdftoppm") is None, reason="poppler is not installed")
@needs_any_bytes
def test_poppler_reads_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    pytest.importorskip("pdf2image")
    assert len(reader(renderer="poppler").load_data(write_unreadable_name(tmp_path))) == 1


# ---- the home folder


def test_tilde_is_the_home_folder_in_sources_and_image_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_text_pdf(tmp_path / "a.pdf", "turbine")
    for image_dir in ("~/pages", Path("~/pages"), "~/pages/"):
        (document,) = reader(image_dir=image_dir).load_data("~/")
        assert Path(page_from_node(document).image_path or "").is_relative_to(tmp_path / "pages")
    changed = reader()
    changed.image_dir = "~/others"
    assert changed.image_dir == str(tmp_path / "others")


def test_home_of_nobody_is_no_such_file() -> None:
    with pytest.raises(DocumentNotFoundError, match="~nobody-of-that-name/a.pdf: there is no such file"):
        reader().load_data("~nobody-of-that-name/a.pdf")


# ---- forks


@needs_fork
def test_fork_reads_while_threads_of_the_parent_read(tmp_path: Path) -> None:
    write_text_pdf(tmp_path / "a.pdf", "turbine", "penguin")
    quadrants().save(tmp_path / "b.png")
    expected = ids(reader().load_data(tmp_path))
    stopped = threading.Event()

    def read() -> None:
        while not stopped.is_set():
            reader().load_data(tmp_path)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert in_fork(lambda: ids(reader().load_data(tmp_path))) == expected
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


@pytest.mark.slow
@needs_fork
def test_fork_has_worker_processes_of_its_own(tmp_path: Path) -> None:
    write_text_pdf(tmp_path / "a.pdf", "turbine", "penguin")
    expected = ids(reader(num_workers=2).load_data(tmp_path))
    assert in_fork(lambda: ids(reader(num_workers=2).load_data(tmp_path))) == expected


@pytest.mark.slow
@needs_fork
def test_worker_processes_of_a_process_that_was_killed_end(tmp_path: Path) -> None:
    write_text_pdf(tmp_path / "a.pdf", "turbine", "penguin")
    reader(num_workers=2).load_data(tmp_path)
    pages = reader(num_workers=2).lazy_load_data(tmp_path)

    def read_the_first_page() -> list[int]:
        next(iter(pages))
        return [process.pid for process in psutil.Process().children() if "popen_loky" in " ".join(process.cmdline())]

    workers = in_fork(read_the_first_page)
    assert workers
    wait_for(lambda: all(has_ended(pid) for pid in workers))


@pytest.mark.parametrize("number_of_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_error_in_a_folder_says_where_the_file_is_and_how_far_reading_came(
    tmp_path: Path, number_of_workers: int
) -> None:
    (tmp_path / "2024").mkdir()
    write_text_pdf(tmp_path / "2024" / "good.pdf", "one", "two", "three")
    (tmp_path / "2024" / "report.pdf").write_bytes(b"%PDF-1.7 and then nothing")
    write_text_pdf(tmp_path / "report.pdf", "one")
    with pytest.raises(UnreadableDocumentError) as raised:
        reader(num_workers=number_of_workers).load_data(tmp_path)
    message = str(raised.value)
    assert message.startswith("2024/report.pdf: the PDF is truncated")
    assert "(file 2 of 3; 3 pages were read before; on_error='skip'" in message and message.endswith("read).")
    with pytest.warns(SkippedDocumentWarning, match="2024/report.pdf: the PDF is truncated"):
        assert len(reader(num_workers=number_of_workers, on_error="skip").load_data(tmp_path)) == 4
    with pytest.raises(UnreadableDocumentError, match=r"^report\.pdf: the PDF is truncated[^;]*\)\.$|poppler"):
        reader().load_data(tmp_path / "2024" / "report.pdf")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_pages_have_the_titles_that_the_outline_gives_their_section(tmp_path: Path, workers: int) -> None:
    canvas = Canvas(str(tmp_path / "outlined.pdf"))
    canvas.setTitle("outlined")
    entries = {2: [("Method", 0), ("Sensors\n and  cranes", 1)], 4: [("Findings", 0), ("x" * 1000, 1)]}
    for number in range(1, 6):
        for title, level in entries.get(number, []):
            canvas.bookmarkPage(title)
            canvas.addOutlineEntry(title, title, level=level)
        canvas.drawString(72, 72, f"page {number}")
        canvas.showPage()
    canvas.save()
    documents = reader(num_workers=workers).load_data(tmp_path)
    sections = [document.metadata.get("section") for document in documents]
    assert sections[:3] == [None, "Method; Sensors and cranes", "Sensors and cranes"]
    assert sections[3] == ("Findings; " + "x" * 1000)[:500] and sections[4] == "x" * 500
    assert all("Method" not in document.get_content(MetadataMode.LLM) for document in documents)
    assert all("section" not in document.metadata for document in reader(extract_text=False).load_data(tmp_path))


def test_how_many_pages_there_will_be_is_known_where_it_is_cheap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text_pdf(tmp_path / "a.pdf", "one", "two")
    write_text_pdf(tmp_path / "b.pdf", "three")
    reader = PDFPageReader(ocr="never")
    with closing(reader.lazy_load_data(tmp_path)) as documents:
        assert length_hint(documents) == 3
        assert next(documents).text == "one"
    assert list(documents) == []  # closed
    (tmp_path / "c.txt").write_text("would have to be converted")
    assert length_hint(reader.lazy_load_data(tmp_path)) == 0
    # Nothing is counted that nobody shows, though a list asks for it.
    (tmp_path / "c.txt").unlink()
    monkeypatch.setattr(PDFPageReader, "_count_pages", lambda *_: pytest.fail("counted"))
    assert len(list(reader.lazy_load_data(tmp_path, show_progress=False))) == 3
