"""Text files that users can spoil: what is read, and the one line about what is not."""

import gzip

import pytest

from chexspark import text_files
from chexspark.errors import UserError
from chexspark.storage import locate
from chexspark.text_files import read_csv_rows, read_json, read_text, read_yaml

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16"]


@pytest.fixture
def written(tmp_path):
    """A function from bytes to the place of a file that holds them."""

    def write(content: bytes):
        (tmp_path / "file").write_bytes(content)
        return locate(str(tmp_path / "file"))

    return write


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings_that_are_known(written, encoding):
    assert read_text(written("Ö\r\né".encode(encoding)), "it") == "Ö\r\né"
    assert list(read_csv_rows(written("a,Ö\n1,é".encode(encoding)), "it")) == [
        (1, ["a", "Ö"]),
        (2, ["1", "é"]),
    ]
    assert read_json(written('{"a": "Ö"}'.encode(encoding)), "it") == {"a": "Ö"}
    assert read_yaml(written("a: Ö".encode(encoding)), "it") == {"a": "Ö"}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_rows_have_the_line_of_the_file_on_which_they_begin(written, end):
    text = end.join(["image,note", "", 'a.png,"two', 'lines"', " , ", "b.png,x", ""])
    rows = list(read_csv_rows(written(text.encode()), "it"))
    assert rows == [
        (1, ["image", "note"]), (3, ["a.png", f"two{end}lines"]), (6, ["b.png", "x"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "read, content, message",
    [
        (read_text, "a\r\nÖ".encode("latin-1"), "--x F is not text in UTF-8: line 2 has the byte 0xD6; save it as UTF-8"),
        (read_text, "a\nb".encode("utf-16")[:-1], "--x F is not text in UTF-8: line 2 has the byte"),
        (read_text, "a\rb".encode("utf-16-le"), "line 1 holds a NUL byte"),
        (read_csv_rows, b"a\n\nb\n\xff", "--x F is not a CSV in UTF-8: line 4 has the byte 0xFF"),
        (read_csv_rows, b'a,b\n1,"2\n3,4\n', "is not a CSV in UTF-8: line 2: unexpected end of data; check its quotes"),
        (read_json, b'{"a": 1,\n"b": }', "--x F is damaged: line 2: Expecting value; put back a whole copy"),
        (read_json, b"", "is damaged: line 1: Expecting value"),
        (read_json, b"[1]", "is damaged: it must hold an object, {…}, and holds a list"),
        (read_json, b'{"a": "\xe9"}', "is damaged: line 1 has the byte 0xE9"),
        (read_json, b"[" * 100_000, "is damaged: maximum recursion"),
        (read_json, b'{"a": ' + b"1" * 5000 + b"}", "is damaged: Exceeds the limit"),
        (read_yaml, b"a: 1\nb: [1\nc: 2", "--x F is not YAML: line 3: expected ',' or ']'"),
        (read_yaml, b"a: 1\nb: \x07", "is not YAML: line 2: special characters are not allowed"),
        (read_yaml, b"a: 2020-99-99", "is not YAML: month must be in 1..12; mend it"),
        (read_yaml, b"a: !!int ''", "is not YAML: string index out of range"),
        (read_yaml, b"a: !!python/object/apply:os.getcwd []", "is not YAML: line 1: could not determine a constructor"),
        (read_yaml, b"- 1", "must hold lines of the form 'setting: value', and holds a list"),
        (read_yaml, b"[" * 100_000, "is not YAML: maximum recursion"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line_with_the_line_and_the_remedy(
    written, read, content, message
):
    with pytest.raises(UserError) as caught:
        list(read(written(content), "--x F"))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_text, read_csv_rows, read_json, read_yaml])
def test_what_is_no_file(tmp_path, written, monkeypatch, read):
    with pytest.raises(UserError, match=r"^--x F: there is no such file$"):
        list(read(locate(str(tmp_path / "none")), "--x F"))
    with pytest.raises(UserError, match="--x F is a folder: give a file"):
        list(read(locate(str(tmp_path)), "--x F"))
    monkeypatch.setattr(text_files, "LARGEST_BYTES", 3)
    with pytest.raises(UserError, match="--x F has 4 bytes, and text at most 3"):
        list(read(written(b"{  }"), "--x F"))


def test_an_empty_yaml_file_sets_nothing_and_the_caller_names_the_remedy(written):
    assert read_yaml(written(b"# nothing but this\n"), "it") == {}
    with pytest.raises(UserError, match=r"; ingest again$"):
        read_json(written(b"{"), "it", remedy="ingest again")


@pytest.mark.parametrize(
    "text",
    [
        "image;patient;Mass, left\na.png;1;0\n",
        "image\tpatient\tMass, left\r\na.png\t1\t0\r\n",
        'image,patient,"Mass, left"\na.png,1,0\n',
        '\n"image";"patient";"Mass, left"\na.png;1;0\n',
        "sep=;\nimage;patient;Mass, left\na.png;1;0\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_is_between_cells_is_told_by_the_header(written, text, encoding):
    rows = list(read_csv_rows(written(text.encode(encoding)), "it"))
    assert [cells for _, cells in rows] == [["image", "patient", "Mass, left"], ["a.png", "1", "0"]]
    assert [line for line, _ in rows] == ([2, 3] if text[:3] in ("sep", '\n"i') else [1, 2])


def test_a_packed_csv(written):
    packed = gzip.compress(b"a,b\n") + gzip.compress(b"1,2\n")
    assert list(read_csv_rows(written(packed), "it")) == [(1, ["a", "b"]), (2, ["1", "2"])]
    for content, fault in (
        (packed[:-9], "its gzip breaks off"),
        (packed + b"\x1f\x8bxx", "is damaged"),
    ):
        with pytest.raises(UserError, match=fault):
            list(read_csv_rows(written(content), "it"))


def test_a_packed_csv_that_fills_memory(written, monkeypatch):
    monkeypatch.setattr(text_files, "LARGEST_BYTES", 1000)
    with pytest.raises(UserError, match="more than 1,000 bytes when unpacked"):
        list(read_csv_rows(written(gzip.compress(b"a" * 100_000)), "it"))


def test_yaml_whose_lines_stand_for_gigabytes_is_refused(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (tmp_path / "x.yaml").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"x.yaml is not YAML: line 2.*aliases"):
        read_yaml(locate(str(tmp_path / "x.yaml")), "x.yaml")
    (tmp_path / "x.yaml").write_text("a: &name [1, 2]\nb: 3\n")
    assert read_yaml(locate(str(tmp_path / "x.yaml")), "x.yaml") == {"a": [1, 2], "b": 3}
    (tmp_path / "x.yaml").write_text("a: " + "[" * 20_000 + "\n")
    with pytest.raises(UserError, match=r"x.yaml is not YAML"):
        read_yaml(locate(str(tmp_path / "x.yaml")), "x.yaml")
