from __future__ import annotations

import os
import pickle
import socket
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiering.errors import Conflict, NotFound, UsageError
from tiering.sources.open import open_source
from tiering.sources.text import SEPARATOR, TextSource


def rows_of(source: TextSource, start: int = 0, stop: int | None = None) -> np.ndarray[Any, Any]:
    part = pickle.loads(pickle.dumps(source.part(start, source.rows if stop is None else stop)))
    rows: np.ndarray[Any, Any] = part()["tokens"]
    return rows


def bytes_of(rows: np.ndarray[Any, Any]) -> bytes:
    flat = rows.reshape(-1)
    return flat[flat != SEPARATOR].astype(np.uint8).tobytes()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@settings(deadline=None, max_examples=60)
@given(st.lists(st.binary(max_size=30), min_size=1, max_size=8), st.integers(1, 9), st.data())
def test_text_tokens_without_separators_are_the_bytes_of_all_files(
    files: list[bytes], row_tokens: int, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = write(Path(name), {f"{number:02d}": text for number, text in enumerate(files)})
        if not any(files):
            with pytest.raises(UsageError, match=f"is empty.*{len(files)} empty files"):
                TextSource([folder], row_tokens=row_tokens)
            return
        source = TextSource([folder], row_tokens=row_tokens)
        rows = rows_of(source)
        assert rows.shape == (source.rows, row_tokens)
        assert rows.dtype == np.uint16
        assert bytes_of(rows) == b"".join(files)
        full = [text for text in files if text]
        flat = rows.reshape(-1)[: sum(map(len, full)) + len(full)]
        assert [bytes(piece) for piece in np.split(flat, np.flatnonzero(flat == SEPARATOR) + 1)][:-1] == [
            bytes(np.append(np.frombuffer(text, np.uint8), SEPARATOR).astype(np.uint16)) for text in full
        ]
        assert (rows.reshape(-1)[len(flat) :] == SEPARATOR).all()
        assert source.rows * row_tokens - len(flat) < row_tokens
        start = data.draw(st.integers(0, source.rows - 1))
        stop = data.draw(st.integers(start + 1, source.rows))
        np.testing.assert_array_equal(rows_of(source, start, stop), rows[start:stop])


@pytest.mark.parametrize(
    "data",
    [
        "grüße".encode("latin-1"),
        "grüße".encode("utf-16"),
        b"a\0b\0\0",
        b"\xff\xfe\xfd",
        b"\r\n\x1a",
        bytes(range(256)),
    ],
)
def test_text_of_any_encoding_survives(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    assert bytes_of(rows_of(TextSource([tmp_path], row_tokens=5))) == data


def test_text_files_that_cannot_be_read_are_counted_and_named(tmp_path: Path) -> None:
    write(tmp_path, {"good": b"text", "empty": b"", "inside/more": b"also"})
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "link").symlink_to(tmp_path / "good")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        source = TextSource([tmp_path])
    assert bytes_of(rows_of(source)) == b"text" + b"also" + b"text"
    assert source.notes["files"] == 3
    assert source.notes["empty"] == 1
    named = {Path(path).name: reason for path, reason in source.notes["unreadable"]}
    assert sorted(named) == ["dangling", "loop", "pipe", "socket"]
    assert named["pipe"] == "not a regular file"
    assert "No such file" in named["dangling"]


def test_text_device_and_pipe_given_by_name_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match=r"2 unreadable, 0 empty"):
        TextSource([tmp_path / "pipe", "/dev/zero"])


def test_text_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"good": b"text", "closed/secret": b"more"})
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    source = TextSource([tmp_path])
    assert source.notes["unreadable"] == [(str(tmp_path / "closed"), "Permission denied")]
    assert bytes_of(rows_of(source)) == b"text"


@pytest.mark.parametrize("change", ["longer", "shorter", "same length", "gone", "pipe"])
def test_text_file_that_changed_between_look_and_read_is_a_conflict(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"before")
    os.utime(path, ns=(1, 1))
    part = TextSource([path]).part(0, 1)
    if change in ("gone", "pipe"):
        path.unlink()
        if change == "pipe":
            os.mkfifo(path)
    else:
        path.write_bytes({"longer": b"afterwards", "shorter": b"aft", "same length": b"after!"}[change])
    with pytest.raises(Conflict, match=r"Ingest again") as caught:
        part()
    assert str(path) in str(caught.value)


def test_text_order_is_that_of_paths_and_each_file_comes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"b": b"2", "a/z": b"1", "c": b"3"})
    monkeypatch.chdir(tmp_path)
    source = TextSource(["c", tmp_path, "./b", tmp_path / "a"], row_tokens=2)
    assert bytes_of(rows_of(source)) == b"123"
    assert source.notes["files"] == 3
    assert TextSource([tmp_path], row_tokens=2).fingerprint == source.fingerprint


def test_text_fingerprint_tells_other_files_and_rows_apart(tmp_path: Path) -> None:
    write(tmp_path, {"a": b"text"})
    os.utime(tmp_path / "a", ns=(1, 1))
    first = TextSource([tmp_path]).fingerprint
    assert TextSource([tmp_path]).fingerprint == first
    assert TextSource([tmp_path], row_tokens=7).fingerprint != first
    assert TextSource([tmp_path], column="words").fingerprint != first
    os.utime(tmp_path / "a", ns=(2, 2))
    assert TextSource([tmp_path]).fingerprint != first


def test_text_suffixes_choose_files_in_folders(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": b"1", "b.txt": b"2", "cpy": b"3"})
    assert bytes_of(rows_of(TextSource([tmp_path], suffixes=(".py", ".txt")))) == b"12"
    assert bytes_of(rows_of(TextSource([tmp_path], suffixes=".py"))) == b"1"
    assert bytes_of(rows_of(TextSource([tmp_path / "cpy"], suffixes=".py"))) == b"3"


def test_text_that_is_not_there_or_empty_is_answered(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="'nowhere'"):
        TextSource(["nowhere"])
    with pytest.raises(UsageError, match=r"is empty: no text in .*0 unreadable, 0 empty"):
        TextSource([tmp_path])


@pytest.mark.parametrize("value", [0, -1, 1 << 25, 2.5, "9", None])
def test_text_row_length_that_is_none_is_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / "a").write_text("text")
    with pytest.raises(UsageError, match=r"row_tokens = .*2049"):
        TextSource([tmp_path], row_tokens=value)


def test_text_options_that_nobody_knows_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no option 'row_token'.*column, row_tokens, suffixes"):
        open_source(tmp_path, "text", {"row_token": 5})
