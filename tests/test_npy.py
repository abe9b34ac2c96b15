"""Arrays from anybody: every header is either sound, or refused in one line that names the file."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hivlp.errors import DataError, QueryError
from hivlp.files.npy import HEADER_LIMIT, map_file, open_npy, parse, read_npy

PREFIX = b"\x93NUMPY\x01\x00"


def with_header(path: Path, text: str, data: bytes = b"", version: bytes = PREFIX) -> Path:
    body = text.encode("latin-1")
    path.write_bytes(version + len(body).to_bytes(2 if version[6] == 1 else 4, "little") + body + data)
    return path


def header(descr: str = "'<f4'", order: str = "False", shape: str = "(2, 3)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "f8", "i4", "u1", "?"])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (0, 4), (2, 3, 4)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_writes_is_read_as_it_was(tmp_path: Path, dtype: str, shape: tuple[int, ...], order: str) -> None:
    array = np.asarray(np.arange(int(np.prod(shape))).reshape(shape), dtype, order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "a.npy", array)
    for read in (open_npy(tmp_path / "a.npy", kinds="fiub"), read_npy(tmp_path / "a.npy", kinds="fiub", limit=1000)):
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert np.array_equal(read, array)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_format_and_what_other_programs_write(tmp_path: Path, version: int) -> None:
    data = np.arange(6, dtype="<f4").tobytes()
    texts = [
        header(),
        header(shape="(2,3)"),
        header(shape="(2L, 3L)"),
        '{"shape": (2, 3), "descr": "<f4", "fortran_order": False}',
    ]
    for text in texts:
        path = with_header(tmp_path / "a.npy", text, data, b"\x93NUMPY" + bytes((version, 0)))
        assert open_npy(path).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_flipped_bit_anywhere_in_the_header_is_refused_or_leaves_the_shape_as_it_was(tmp_path: Path) -> None:
    array = np.arange(300 * 24, dtype=np.float32).reshape(300, 24)
    np.save(tmp_path / "a.npy", array)
    whole = (tmp_path / "a.npy").read_bytes()
    damaged = tmp_path / "damaged.npy"
    read = []
    for bit in range(1024):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        damaged.write_bytes(content)
        try:
            found = open_npy(damaged)
        except DataError as error:
            assert "damaged.npy" in str(error)
            assert "\n" not in str(error)
        else:
            assert found.shape == array.shape
            read.append(bit)
    assert len(read) <= 4  # the byte order, and white space that is still white


def test_a_file_that_ends_anywhere_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((4, 4), np.float16))
    whole = (tmp_path / "a.npy").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut.npy").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.npy"):
            open_npy(tmp_path / "cut.npy")
    (tmp_path / "cut.npy").write_bytes(whole + b"\0")
    with pytest.raises(DataError, match="its header says 32 bytes of data, it holds 33"):
        open_npy(tmp_path / "cut.npy")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (header(shape="(-2, 3)"), "header is damaged"),
        (header(shape="(4294967296, 4294967296)"), "bytes of data"),
        (header(shape=f"({2**62}, 4)"), "bytes of data"),
        (header(shape=f"({2**63}, 1)"), "shape is damaged"),
        (header(shape="(" + "9" * 5000 + ", 1)"), "shape is damaged"),
        (header(shape="(0, 9223372036854775807)"), "shape is damaged"),
        (header(shape=f"(0, {2**40})"), "its shape is"),
        (header(shape="(" + "1, " * 40 + ")"), "shape is damaged"),
        (header(shape="(2, , 3)"), "shape is damaged"),
        (header(shape="(6)"), "header is damaged"),
        (header(shape="6"), "header is damaged"),
        (header(shape="(True, 3)"), "header is damaged"),
        (header(descr="'|O'"), "Python objects"),
        (header(descr="[('a', '<f4')]"), "records"),
        (header(descr="'<c8'"), "plain numbers"),
        (header(descr="'<U4'"), "plain numbers"),
        (header(descr="'<M8'"), "plain numbers"),
        (header(descr="'<f3'"), "no dtype"),
        (header(descr="'<i4'"), "holds int32, not floats"),
        (header(order="1"), "header is damaged"),
        (header() + header(), "header is damaged"),
        ("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}", "header is damaged"),
        ("{'descr': '<f4', 'shape': (2, 3)}", "header is damaged"),
        ("(" * 9000, "header is damaged"),
        ("{" + "[" * 5000 + "]" * 3000, "header is damaged"),
        ("x" * (HEADER_LIMIT + 1), "header claims"),
        ("", "header is damaged"),
        ("\0" * 118, "header is damaged"),
    ],
)
def test_headers_that_are_crafted_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = with_header(tmp_path / "a.npy", text, bytes(24))
    with pytest.raises(QueryError, match=message) as caught:
        open_npy(path, error=QueryError)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_what_is_no_regular_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "device.npy").symlink_to("/dev/zero")
    (tmp_path / "loop.npy").symlink_to(tmp_path / "loop.npy")
    for name in ("pipe", "folder", "device", "loop", "missing", "nul\0"):
        with pytest.raises(DataError, match=r"is not a readable \.npy file: "):
            open_npy(tmp_path / f"{name}.npy")


def test_other_files_by_that_name_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npy", "w") as archive:
        archive.writestr("b.npy", b"")
    with pytest.raises(DataError, match=r"it is a \.npz archive"):
        open_npy(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(b"\x80\x04K\x01.")  # a pickle
    with pytest.raises(DataError, match=r"not a readable \.npy file"):
        open_npy(tmp_path / "a.npy")


def test_dimensions_and_size_are_the_callers_to_limit(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((4, 4), np.float32))
    with pytest.raises(DataError, match=r"has shape \(4, 4\), not 1 dimension$"):
        open_npy(tmp_path / "a.npy", ndim=1)
    with pytest.raises(DataError, match="too large: 64 bytes"):
        read_npy(tmp_path / "a.npy", limit=63)


def test_records_are_for_those_who_ask_for_them(tmp_path: Path) -> None:
    array = np.zeros((3, 2), [("codes", "u1", (5,)), ("stretch", "<u2"), ("grid", "<f4", (2, 2))])
    array["stretch"] = np.arange(6).reshape(3, 2)
    np.save(tmp_path / "a.npy", array)
    read = parse(map_file(tmp_path / "a.npy"))
    assert read.dtype == array.dtype
    assert np.array_equal(read, array)
    with pytest.raises(DataError, match=r"a\.npy is not a readable \.npy file: it holds Python objects or records"):
        open_npy(tmp_path / "a.npy", kinds="fiub")


@pytest.mark.parametrize(
    "descr",
    [
        "[]",
        "[('a', '|O')]",
        "[('a', '<f4'), ('a', '<f4')]",
        "[('a', '<f4', (0,))]",
        "[('a', '<f4', (-1,))]",
        f"[('a', '<f4', ({2**40},))]",
        "[('a', [('b', '<f4')])]",
        "[('a', '<f4') ('b', '<f4')]",
        "[('a', '<U4')]",
        "(('a', '<f4'),)",
    ],
)
def test_records_that_are_crafted_are_refused(tmp_path: Path, descr: str) -> None:
    text = header(descr=descr, shape="(1,)")
    path = with_header(tmp_path / "a.npy", text + " " * (-(len(text) + 10) % 16), bytes(4))
    with pytest.raises(ValueError, match="it "):
        parse(map_file(path))
    with pytest.raises(DataError, match=r"a\.npy"):
        open_npy(path)
