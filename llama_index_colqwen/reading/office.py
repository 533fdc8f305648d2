"""Office documents, texts and web pages -> PDF, by LibreOffice.

Knows nothing of pages, or of where converted files are kept.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from llama_index_colqwen.concurrency import Lock
from llama_index_colqwen.errors import (
    ConverterNotFoundError,
    DocumentError,
    EncryptedDocumentError,
    UnreadableDocumentError,
)
from llama_index_colqwen.images import write_atomically
from llama_index_colqwen.reading.markup import MARKUP_SUFFIXES, check_unpacked_size, to_html

__all__ = ["INSTALL_CONVERTER", "OFFICE_SUFFIXES", "SHEET_SUFFIXES", "OfficeFile", "convert", "find_converter"]

_SLIDE_SUFFIXES = frozenset({".odp", ".ppt", ".pptx"})
_TEXT_SUFFIXES = frozenset({".doc", ".docx", ".odt", ".rtf"})
SHEET_SUFFIXES = frozenset({".csv", ".ods", ".xls", ".xlsx"})
OFFICE_SUFFIXES = _SLIDE_SUFFIXES | _TEXT_SUFFIXES | SHEET_SUFFIXES | MARKUP_SUFFIXES

INSTALL_CONVERTER = "apt-get install libreoffice-writer-nogui libreoffice-calc-nogui libreoffice-impress-nogui"

# LibreOffice with its own profile could run beside itself, but takes half a gigabyte.
_ONE_AT_A_TIME = Lock(hold=True)


@dataclass(frozen=True)
class OfficeFile:
    """A file to convert: the name it has in messages, its type, and where it is, or its bytes."""

    name: str
    suffix: str
    source: Path | bytes


def find_converter() -> str | None:
    """Return the path of LibreOffice's program, if it is installed."""
    in_mac = "/Applications/LibreOffice.app/Contents/MacOS/soffice"
    return shutil.which("soffice") or shutil.which("libreoffice") or shutil.which(in_mac)


def convert(files: Mapping[str, OfficeFile], folder: Path, timeout: float) -> dict[str, DocumentError]:
    """Convert files to PDF, together: LibreOffice takes seconds to start.

    Args:
        files: By any name that is a file's name.
        folder: Where the PDFs are written, as `<name>.pdf`.
        timeout: How long LibreOffice may take for a file, in seconds.

    Returns:
        For those that could not be converted, what is wrong with them.
    """
    converter = find_converter()
    if converter is None:
        return {
            key: ConverterNotFoundError(
                f"{file.name}: files of type {file.suffix} are read through LibreOffice, which is not installed; on "
                f"Debian: {INSTALL_CONVERTER}."
            )
            for key, file in files.items()
        }
    with _ONE_AT_A_TIME, tempfile.TemporaryDirectory(prefix="colqwen-") as work:
        conversion = _Conversion(converter, Path(work), timeout)
        done: dict[str, DocumentError] = {}
        for key, file in files.items():
            try:
                conversion.take(key, file)
            except DocumentError as error:
                done[key] = error
            except OSError as error:
                done[key] = UnreadableDocumentError(f"{file.name}: the file cannot be read ({error.strerror}).")
        conversion.run()
        for key in files.keys() - done.keys():
            made = conversion.made(key)
            if isinstance(made, DocumentError):
                done[key] = made
            else:
                write_atomically(folder / f"{key}.pdf", made.read_bytes())
        return done


class _Conversion:
    """Files that are converted together, in a folder of their own with a profile of its own."""

    def __init__(self, converter: str, work: Path, timeout: float) -> None:
        self._converter, self._work, self._timeout = converter, work, timeout
        self._files: dict[str, OfficeFile] = {}
        self._errors: dict[str, DocumentError] = {}
        profile = work / "profile" / "user" / "registrymodifications.xcu"
        profile.parent.mkdir(parents=True)
        profile.write_text(_PROFILE, "utf-8")

    def take(self, key: str, file: OfficeFile) -> None:
        """Copy a file to where LibreOffice finds it; markup becomes HTML."""
        check_unpacked_size(file.source, file.name)
        _refuse_encrypted(file)
        path = self._input(key, file)
        path.parent.mkdir(exist_ok=True)
        if file.suffix in MARKUP_SUFFIXES:
            path.write_text(to_html(file.source, file.name, file.suffix), "utf-8")
        elif isinstance(file.source, bytes):
            path.write_bytes(file.source)
        else:
            shutil.copyfile(file.source, path)
        if not path.stat().st_size:
            raise UnreadableDocumentError(f"{file.name}: the file is empty.")
        self._files[key] = file

    def run(self) -> None:
        """Convert all that were taken."""
        # Hidden slides are drawn: without them, a page's number would not be its slide's.
        hidden = '{"ExportHiddenSlides":{"type":"boolean","value":"true"}}'
        self._run(_TEXT_SUFFIXES, "pdf:writer_pdf_Export")
        self._run(_SLIDE_SUFFIXES, f"pdf:impress_pdf_Export:{hidden}")
        # LibreOffice's other way for web pages puts headings on pages of their own.
        self._run(MARKUP_SUFFIXES, "pdf:writer_pdf_Export", "HTML (StarWriter)")
        # Comma, quotation mark, UTF-8.
        self._run(frozenset({".csv"}), "fods", "CSV:44,34,76,1")
        self._run(SHEET_SUFFIXES - {".csv"}, "fods")
        sheets = {key: self._made(key, "fods") for key, file in self._files.items() if file.suffix in SHEET_SUFFIXES}
        for key, sheet in sheets.items():
            if sheet.exists():
                _print_in_whole(sheet, self._files[key])
        self._call(sheets, "pdf:calc_pdf_Export")

    def made(self, key: str) -> Path | DocumentError:
        """Return a file's PDF, or what was wrong."""
        path = self._made(key, "pdf")
        if path.exists():
            return path
        name = self._files[key].name
        corrupt = f"{name}: LibreOffice cannot open it; it is corrupt, protected, or not what its name says."
        return self._errors.get(key) or UnreadableDocumentError(corrupt)

    # ---- inside

    def _input(self, key: str, file: OfficeFile) -> Path:
        return self._work / "in" / f"{key}{'.html' if file.suffix in MARKUP_SUFFIXES else file.suffix}"

    def _made(self, key: str, kind: str) -> Path:
        return self._work / "out" / f"{key}.{kind}"

    def _run(self, suffixes: frozenset[str], to: str, filter_in: str | None = None) -> None:
        chosen = {key: self._input(key, file) for key, file in self._files.items() if file.suffix in suffixes}
        self._call(chosen, to, filter_in)

    def _call(self, inputs: Mapping[str, Path], to: str, filter_in: str | None = None) -> None:
        there = {key: path for key, path in inputs.items() if path.exists()}
        if not there or self._ends(list(there.values()), to, filter_in):
            return
        # One of them is at fault, and those after it are not converted either.
        for key, path in there.items():
            if not self._made(key, to.partition(":")[0]).exists() and not self._ends([path], to, filter_in):
                self._errors[key] = UnreadableDocumentError(
                    f"{self._files[key].name}: LibreOffice failed, or took more than {self._timeout:g} seconds."
                )

    def _ends(self, inputs: Sequence[Path], to: str, filter_in: str | None) -> bool:
        """Run LibreOffice; say whether it ended by itself and well."""
        command = [
            self._converter,
            f"-env:UserInstallation={(self._work / 'profile').as_uri()}",
            *("--headless", "--norestore", "--nolockcheck", "--nodefault"),
            *([f"--infilter={filter_in}"] if filter_in else []),
            *("--convert-to", to, "--outdir", str(self._work / "out"), *map(str, inputs)),
        ]
        process = subprocess.Popen(  # noqa: S603 - a program of this machine
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(self._timeout) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            if process.poll() is None:
                _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill LibreOffice and what it has started: on most systems its program is a script."""
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _refuse_encrypted(file: OfficeFile) -> None:
    data = file.source if isinstance(file.source, bytes) else file.source.read_bytes()
    encrypted = data.startswith(b"\xd0\xcf\x11\xe0") and "EncryptedPackage".encode("utf-16-le") in data
    if data.startswith(b"PK") and not encrypted:
        try:
            with zipfile.ZipFile(file.source if isinstance(file.source, Path) else io.BytesIO(data)) as packed:
                encrypted = b"manifest:encryption-data" in packed.read("META-INF/manifest.xml")
        except (zipfile.BadZipFile, KeyError):
            pass
    if encrypted:
        raise EncryptedDocumentError(f"{file.name}: the document is encrypted; save it without a password.")


def _print_in_whole(path: Path, file: OfficeFile) -> None:
    """Have all of a spreadsheet's columns printed on one page's width, on landscape pages, with small margins.

    LibreOffice's own option for whole sheets makes one page of each, of any height: rows too small to be read.
    """
    namespaces = dict(pair for _, pair in ElementTree.iterparse(path, ["start-ns"]))
    for prefix, address in namespaces.items():
        ElementTree.register_namespace(prefix, address)
    style, table, form = (f"{{{namespaces[prefix]}}}" for prefix in ("style", "table", "fo"))
    tree = ElementTree.parse(path)
    for layout in tree.iter(f"{style}page-layout-properties"):
        for scale in ("scale-to", "scale-to-pages"):
            layout.attrib.pop(style + scale, None)
        layout.attrib |= {
            f"{style}scale-to-X": "1",
            f"{style}scale-to-Y": "0",
            f"{style}print-orientation": "landscape",
        }
        layout.attrib |= {f"{form}page-width": "29.7cm", f"{form}page-height": "21cm"}
        layout.attrib |= {f"{form}margin-{side}": "1cm" for side in ("top", "bottom", "left", "right")}
    for sheet in tree.iter(f"{table}table"):
        for limit in ("print-ranges", "print"):
            sheet.attrib.pop(table + limit, None)
        if file.suffix == ".csv":  # LibreOffice calls it by the file's name, which is ours
            sheet.set(f"{table}name", Path(file.name).stem)
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _registry(settings: Mapping[str, Mapping[str, str]]) -> str:
    items = "".join(
        f'<item oor:path="/{path}"><prop oor:name="{name}" oor:op="fuse"><value>{value}</value></prop></item>'
        for path, values in settings.items()
        for name, value in values.items()
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><oor:items xmlns:oor="http://openoffice.org/2001/registry" '
        f'xmlns:xs="http://www.w3.org/2001/XMLSchema">{items}</oor:items>'
    )


# A document is drawn as it is: it runs nothing, and takes in nothing from the network or from other files.
_PROFILE = _registry(
    {
        "org.openoffice.Office.Common/Security/Scripting": {
            "MacroSecurityLevel": "3",
            "DisableMacrosExecution": "true",
            "DisableActiveContent": "true",
            "BlockUntrustedRefererLinks": "true",
        },
        "org.openoffice.Inet/Settings": {  # a proxy that is not there
            "ooInetProxyType": "2",
            **{f"ooInet{kind}ProxyName": "127.0.0.1" for kind in ("HTTP", "HTTPS", "FTP")},
            **{f"ooInet{kind}ProxyPort": "9" for kind in ("HTTP", "HTTPS", "FTP")},
            "ooInetNoProxy": "",
        },
        "org.openoffice.Office.Writer/Content/Update": {"Link": "0"},
        "org.openoffice.Office.Calc/Content/Update": {"Link": "2"},
    }
)
