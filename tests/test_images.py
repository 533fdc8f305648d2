from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from llama_index_colqwen.images import image_sha256, write_atomically, write_page_image
from llama_index_colqwen.pages import PageImage
from tests.documents import walk

DOCUMENT_ID = "0123456789abcdef" * 4


def page_image(data: bytes = b"a picture", mimetype: str = "image/jpeg") -> PageImage:
    return PageImage(data, mimetype)


def test_path_is_absolute_and_named_by_document_page_and_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_page_image("images", DOCUMENT_ID, 7, page_image(b"abc"))
    digest = hashlib.sha256(b"abc").hexdigest()
    assert path == tmp_path.resolve() / "images" / DOCUMENT_ID[:16] / f"page-0007-{digest[:16]}.jpg"
    assert path.read_bytes() == b"abc"
    assert image_sha256(b"abc") == digest


def test_same_image_is_not_written_again(tmp_path: Path) -> None:
    path = write_page_image(tmp_path, DOCUMENT_ID, 1, page_image())
    os.utime(path, ns=(10**18, 10**18))
    assert write_page_image(tmp_path, DOCUMENT_ID, 1, page_image()) == path
    assert path.stat().st_mtime_ns == 10**18
    assert list(walk(tmp_path)) == [path]


def test_other_content_of_the_same_page_leaves_the_first_file(tmp_path: Path) -> None:
    first = write_page_image(tmp_path, DOCUMENT_ID, 1, page_image(b"first"))
    second = write_page_image(tmp_path, DOCUMENT_ID, 1, page_image(b"second"))
    assert (first.read_bytes(), second.read_bytes()) == (b"first", b"second")


@pytest.mark.parametrize(
    ("mimetype", "suffix"),
    [
        ("image/jpeg", ".jpg"),
        ("image/png", ".png"),
        ("image/webp", ".webp"),
        ("image/tiff", ".tiff"),
        ("image/x", ".img"),
    ],
)
def test_suffix_follows_the_mimetype(tmp_path: Path, mimetype: str, suffix: str) -> None:
    assert write_page_image(tmp_path, DOCUMENT_ID, 1, page_image(mimetype=mimetype)).suffix == suffix


@pytest.mark.parametrize("document_id", ["../../etc", "/absolute/path", "..", "", "a b/c"])
def test_foreign_document_id_never_leaves_the_image_dir(tmp_path: Path, document_id: str) -> None:
    path = write_page_image(tmp_path / "images", document_id, 1, page_image())
    assert path.parent.parent == (tmp_path / "images").resolve()


def test_two_foreign_document_ids_get_two_folders(tmp_path: Path) -> None:
    long = "reports/2024/a-very-long-common-prefix-"
    first, second = (write_page_image(tmp_path, long + end, 1, page_image()) for end in ("one", "two"))
    assert first.parent != second.parent


def test_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = write_page_image(tmp_path, DOCUMENT_ID, 1, page_image())
        assert os.umask(0o027) == 0o027, "the process's umask was changed"
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_atomically(tmp_path / "taken", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_image_dir_that_is_a_file_is_an_os_error_and_the_file_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OSError, match="notes.txt"):
        write_page_image(tmp_path / "notes.txt", DOCUMENT_ID, 1, page_image())
    assert (tmp_path / "notes.txt").read_text() == "mine"
