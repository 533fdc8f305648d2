"""Office documents, texts and web pages -> pages, by the real LibreOffice."""

from __future__ import annotations

import email.policy
import socket
import sys
import time
import warnings
import zipfile
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import numpy as np
import pytest
from docx import Document as Docx
from llama_index.core import SimpleDirectoryReader
from llama_index.core.schema import Document
from openpyxl import Workbook
from PIL import Image
from pptx import Presentation

from llama_index_colqwen import (
    ConverterNotFoundError,
    EncryptedDocumentError,
    PDFPageReader,
    SkippedDocumentWarning,
    UnreadableDocumentError,
)
from llama_index_colqwen.reading import markup
from llama_index_colqwen.reading.office import find_converter
from tests.documents import write_text_pdf
from tests.services import has_ended, wait_for

needs_libreoffice = pytest.mark.skipif(find_converter() is None, reason="LIBREOFFICE IS NOT INSTALLED (soffice)")


def write_slides(path: Path) -> Path:
    deck = Presentation()
    for number in (1, 2, 3):
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text = f"Turbines of plant {number}"
        slide.placeholders[1].text = "Output rose in every quarter"
    deck.slides[1]._element.set("show", "0")
    deck.save(str(path))
    return path


def write_text(path: Path) -> Path:
    document = Docx()
    document.add_paragraph("Salinity of the northern basin")
    document.add_page_break()  # type: ignore[no-untyped-call]
    document.add_paragraph("Salinity of the southern basin")
    document.save(str(path))
    return path


def write_sheets(path: Path) -> Path:
    book = Workbook()
    wide = book.active
    assert wide is not None
    wide.title = "Wide"
    for column in range(1, 31):
        wide.cell(1, column, f"column {column}")
    long = book.create_sheet("Long")
    for row in range(1, 121):
        long.cell(row, 1, f"measurement {row}")
    long.print_area = "A1:A3"
    book.create_sheet("Hidden").sheet_state = "hidden"
    book["Hidden"]["A1"] = "not for print"
    book.save(str(path))
    return path


def write_picture(path: Path) -> Path:
    Image.new("RGB", (80, 40), "red").save(path)
    return path


def write_book(path: Path, picture: Path) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("META-INF/container.xml", '<c xmlns="x"><rootfile full-path="in/book.opf"/></c>')
        packed.writestr(
            "in/book.opf",
            '<package xmlns="y"><manifest><item id="b" href="two.xhtml"/><item id="a" href="one.xhtml"/></manifest>'
            '<spine><itemref idref="a"/><itemref idref="b"/></spine></package>',
        )
        packed.writestr("in/one.xhtml", "<html><head><title>T</title></head><body>First of the chapters</body></html>")
        packed.writestr("in/two.xhtml", '<body>Second of the chapters <img src="../red.png"/></body>')
        packed.write(picture, "red.png")
    return path


def write_mail(path: Path, picture: Path) -> Path:
    message = EmailMessage(policy=email.policy.default)
    message["From"], message["Subject"] = "Ann Ångström <ann@example.org>", "Valve of the eastern pump"
    message.set_content("The valve leaks.")
    message.add_alternative('<p>The <b>valve</b> leaks.</p><img src="cid:red">', subtype="html")
    _, shown = message.iter_parts()
    shown.add_related(picture.read_bytes(), "image", "png", cid="<red>")
    message.add_attachment(b"1,2", maintype="text", subtype="csv", filename="readings.csv")
    path.write_bytes(message.as_bytes())
    return path


def has_red(document: Document) -> bool:
    with Image.open(document.image_path) as image:  # type: ignore[attr-defined]
        pixels = np.asarray(image.convert("RGB"))
    return bool(((pixels[..., 0] > 200) & (pixels[..., 1:].max(axis=-1) < 60)).any())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of documents of all kinds."""
    folder = tmp_path_factory.mktemp("office")
    picture = write_picture(folder / "red.png")
    write_slides(folder / "deck.pptx")
    write_text(folder / "report.docx")
    write_sheets(folder / "book.xlsx")
    write_book(folder / "story.epub", picture)
    write_mail(folder / "mail.eml", picture)
    (folder / "rich.rtf").write_text(r"{\rtf1\ansi Rich text of the {\b western} station}")
    (folder / "notes.md").write_text(
        "# Notes on corrosion\n\n| metal | loss |\n|---|---|\n| zinc | 4.5 mm |\n\n![r](red.png)\n"
    )
    (folder / "utf.txt").write_text("Größe der Pumpe in Metern\n" * 3, "utf-8")
    (folder / "latin.txt").write_bytes("Größe der Turbine in Metern\n".encode("latin-1") * 3)
    (folder / "table.csv").write_text("substance;amount\nchlorine,17 litres\nGröße of the tank,4\n", "utf-8")
    (folder / "page.html").write_text(
        f'<meta charset="utf-8"><script>document.write("run")</script><h1>Filters of the plant</h1><img src="red.png">'
        f'<p>Größe</p><img src="file://{folder.parent}/secret.png"><img src="../secret.png">'
    )
    (folder / "no.docx").write_bytes(b"PK\x03\x04 this is no document")
    write_text_pdf(folder / "zz.pdf", "A page of a PDF")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def pages(folder: Path, images: Path) -> dict[str, list[Document]]:
    """The pages of all documents, by file."""
    write_picture(folder.parent / "secret.png")
    read: dict[str, list[Document]] = {}
    with pytest.warns(SkippedDocumentWarning, match=r"1 of 14 files.*no\.docx: LibreOffice cannot open it"):
        for page in PDFPageReader(image_dir=images, ocr="never", on_error="skip").lazy_load_data(folder):
            read.setdefault(page.metadata["file_name"], []).append(page)
    return read


def texts(pages: list[Document]) -> list[str]:
    return [" ".join(page.text.split()) for page in pages]


def labels(pages: list[Document]) -> list[str]:
    return [page.metadata["page_label"] for page in pages]


@pytest.mark.slow
@needs_libreoffice
def test_office_documents_are_pages_of_their_files(pages: dict[str, list[Document]], folder: Path) -> None:
    assert texts(pages["report.docx"]) == ["Salinity of the northern basin", "Salinity of the southern basin"]
    assert [page.metadata["page_number"] for page in pages["report.docx"]] == [1, 2]
    assert pages["report.docx"][0].metadata["file_path"] == str(folder / "report.docx")
    assert texts(pages["rich.rtf"]) == ["Rich text of the western station"]
    assert texts(pages["zz.pdf"]) == ["A page of a PDF"]
    (same,) = PDFPageReader(ocr="never").load_data((folder / "rich.rtf").read_bytes(), {"file_name": "rich.rtf"})
    assert same.id_ == pages["rich.rtf"][0].id_


@pytest.mark.slow
@needs_libreoffice
def test_slides_are_numbered_as_in_their_program_hidden_ones_too(pages: dict[str, list[Document]]) -> None:
    assert labels(pages["deck.pptx"]) == ["1", "2", "3"]
    assert [text[:19] for text in texts(pages["deck.pptx"])] == [f"Turbines of plant {number}" for number in (1, 2, 3)]


@pytest.mark.slow
@needs_libreoffice
def test_sheets_are_printed_in_whole_and_pages_named_by_them(pages: dict[str, list[Document]]) -> None:
    book = pages["book.xlsx"]
    assert labels(book)[:3] == ["Wide", "Long", "Long (2)"]
    words = texts(book)[0].split()
    assert {str(column) for column in range(1, 31)} <= set(words)  # on one page
    assert "measurement 120" in texts(book)[-1]
    assert "not for print" not in " ".join(texts(book))
    assert labels(pages["table.csv"]) == ["table"]
    assert "Größe of the tank 4" in texts(pages["table.csv"])[0]


@pytest.mark.slow
@needs_libreoffice
def test_texts_mails_books_and_web_pages_are_read_with_their_pictures(pages: dict[str, list[Document]]) -> None:
    assert texts(pages["utf.txt"]) == [" ".join(["Größe der Pumpe in Metern"] * 3)]
    assert texts(pages["latin.txt"]) == [" ".join(["Größe der Turbine in Metern"] * 3)]
    assert texts(pages["story.epub"]) == ["First of the chapters", "Second of the chapters"]
    assert texts(pages["notes.md"]) == ["Notes on corrosion metal loss zinc 4.5 mm"]
    assert texts(pages["page.html"]) == ["Filters of the plant Größe"]
    mail = texts(pages["mail.eml"])[0]
    for said in ("Ann Ångström", "Valve of the eastern pump", "The valve leaks.", "readings.csv"):
        assert said in mail
    for name in ("story.epub", "notes.md", "page.html", "mail.eml"):
        assert has_red(pages[name][-1]), name


@pytest.mark.slow
@needs_libreoffice
def test_second_reading_converts_nothing(
    pages: dict[str, list[Document]], folder: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "zz.pdf" in pages
    monkeypatch.setenv("PATH", "")  # there is no LibreOffice
    (folder / "no.docx").rename(folder / "no.docx.off")
    reader = PDFPageReader(image_dir=images, ocr="never")
    again = reader.load_data(folder)
    (folder / "no.docx.off").rename(folder / "no.docx")
    assert {page.id_ for page in again} == {page.id_ for some in pages.values() for page in some}
    assert labels([page for page in again if page.metadata["file_name"] == "book.xlsx"])[0] == "Wide"


def test_without_libreoffice_the_other_files_of_a_folder_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.md").write_text("text")
    with pytest.raises(ConverterNotFoundError, match=r"a\.txt: .*LibreOffice, which is not installed.*apt-get install"):
        PDFPageReader().load_data(tmp_path)
    write_text_pdf(tmp_path / "c.pdf", "A page of a PDF with some words")
    with pytest.warns(SkippedDocumentWarning, match=r"a\.txt: .*LibreOffice.*The same is true of 1 more files"):
        (page,) = PDFPageReader().load_data(tmp_path)
    assert page.metadata["file_name"] == "c.pdf"
    with pytest.raises(ConverterNotFoundError, match=r"b\.md"):
        PDFPageReader().load_data([tmp_path / "c.pdf", tmp_path / "b.md"])


@pytest.mark.slow
@needs_libreoffice
def test_nothing_is_fetched_and_no_macro_is_run(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        (tmp_path / "page.html").write_text(
            f'<p>A page with remote pictures</p><img src="{address}/a.png"><link rel=stylesheet href="{address}/b.css">'
            f'<iframe src="{address}/c.html"></iframe><body background="{address}/d.png">'
        )
        (tmp_path / "linked.odt").write_text(macro_document(address, tmp_path / "written"))
        first, second = PDFPageReader(image_dir=tmp_path / "images", ocr="never").load_data(
            [tmp_path / "page.html", tmp_path / "linked.odt"]
        )
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has called
            listener.accept()
    assert (first.text, second.text) == ("A page with remote pictures", "A text with a macro")
    assert not (tmp_path / "written").exists()


def macro_document(address: str, written: Path) -> str:
    """An OpenDocument text in one file, with a remote picture and a macro that runs when it is opened."""
    names = {
        "office": "office",
        "text": "text",
        "draw": "drawing",
        "script": "script",
    }
    spaces = " ".join(f'xmlns:{key}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"' for key, name in names.items())
    macro = f'Sub Main\nn = FreeFile\nOpen "{written}" For Output As #n\nPrint #n, "x"\nClose #n\nEnd Sub'
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<office:document {spaces} xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:ooo="http://openoffice.org/2004/office"
 office:version="1.2" office:mimetype="application/vnd.oasis.opendocument.text">
<office:scripts><office:script script:language="ooo:Basic"><ooo:libraries>
<ooo:library-embedded ooo:name="Standard"><ooo:module ooo:name="M">
<ooo:source-code>{macro}</ooo:source-code></ooo:module>
</ooo:library-embedded></ooo:libraries></office:script>
<office:event-listeners><script:event-listener script:language="ooo:script" script:event-name="dom:load"
 xlink:href="vnd.sun.star.script:Standard.M.Main?language=Basic&amp;location=document" xlink:type="simple"/>
</office:event-listeners></office:scripts>
<office:body><office:text><text:p>A text with a macro<draw:frame><draw:image xlink:href="{address}/e.png"/></draw:frame>
</text:p></office:text></office:body></office:document>"""


@pytest.fixture
def slow_converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """In LibreOffice's place, a program that never ends, and starts another such."""
    program = tmp_path / "bin" / "soffice"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n/bin/sleep 300 &\necho $! $$ >> "$(/usr/bin/dirname "$0")/started"\nwait\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    yield program.parent / "started"


@pytest.mark.skipif(sys.platform == "win32", reason="the program that never ends is a shell script")
def test_conversion_ends_after_its_time_and_leaves_no_process(tmp_path: Path, slow_converter: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").write_text("other text")
    began = time.monotonic()
    with pytest.warns(SkippedDocumentWarning, match=r"2 of 2 .*a\.txt: LibreOffice failed, or took more than 0\.2 sec"):
        assert (
            PDFPageReader(on_error="skip", convert_timeout=0.2).load_data([tmp_path / "a.txt", tmp_path / "b.txt"])
            == []
        )
    assert time.monotonic() - began < 20
    started = [int(pid) for pid in slow_converter.read_text().split()]
    assert len(started) == 6  # both together, and each
    wait_for(lambda: all(map(has_ended, started)))


def test_encrypted_empty_huge_and_corrupt_documents_are_said_without_a_conversion(
    tmp_path: Path, slow_converter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = PDFPageReader()
    (tmp_path / "locked.docx").write_bytes(b"\xd0\xcf\x11\xe0" + "EncryptedPackage".encode("utf-16-le"))
    with zipfile.ZipFile(tmp_path / "locked.odt", "w") as packed:
        packed.writestr("META-INF/manifest.xml", "<manifest:encryption-data/>")
    for name in ("locked.docx", "locked.odt"):
        with pytest.raises(EncryptedDocumentError, match=f"{name}: the document is encrypted"):
            reader.load_data(tmp_path / name)
    (tmp_path / "empty.docx").touch()
    with pytest.raises(UnreadableDocumentError, match=r"empty\.docx: the file is empty"):
        reader.load_data(tmp_path / "empty.docx")
    (tmp_path / "bad.epub").write_bytes(b"no book")
    with pytest.raises(UnreadableDocumentError, match=r"bad\.epub: the book is corrupt"):
        reader.load_data(tmp_path / "bad.epub")
    monkeypatch.setattr(markup, "_MAX_UNPACKED", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.xlsx", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("sheet.xml", bytes(8 << 20))
    with pytest.raises(UnreadableDocumentError, match=r"bomb\.xlsx: it unpacks to 8 MB; at most 1 are read"):
        reader.load_data(tmp_path / "bomb.xlsx")
    assert not slow_converter.exists()


@pytest.mark.slow
@needs_libreoffice
def test_processes_convert_at_once_as_those_of_llamaindex(tmp_path: Path) -> None:
    for name in ("a.rtf", "b.rtf"):
        (tmp_path / name).write_text(rf"{{\rtf1\ansi Rich text of station {name[0]}}}")
    reader = SimpleDirectoryReader(str(tmp_path), file_extractor={".rtf": PDFPageReader(ocr="never")})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LlamaIndex's, of the number of processors
        pages = reader.load_data(num_workers=2)
    assert sorted(page.text for page in pages) == [f"Rich text of station {letter}" for letter in "ab"]
