"""The one place where text files of users, and of our own formats, are read. Runs anywhere.

In: a place, and what a message is to call it (``--labels /a/b.csv``). Out: text, rows of a CSV, or
a dict from JSON or YAML. UTF-8 is read with and without a byte-order mark, UTF-16 with one; what
cannot be read is a UserError of one line: file, line where known, reason, remedy. A CSV may have
semicolons or tabs between its cells, and be compressed with gzip.
"""

import codecs
import csv
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import xxhash
import yaml
from pyarrow import fs

from chexspark.errors import UserError
from chexspark.storage import Location

LARGEST_BYTES = 1 << 30  # NIH's labels are 7 MB; what is larger is a mistake, and would fill memory
NEW_LINE = re.compile(r"\r\n?|\n")
SEPARATORS = (",", ";", "\t")  # between the cells of a CSV
GZIP_MARK = b"\x1f\x8b"
SAVE = "save it as UTF-8"
CHECKSUM = "checksum"  # the key of a JSON object under which that of its other values is
RESTORE = "put back a whole copy of it"


def read_text(place: Location, name: str) -> str:
    """The text of a file, line ends as they are. Raises UserError."""
    return decoded(read_content(place, name), f"{name} is not text in UTF-8")


def read_csv_rows(place: Location, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line of the file on which a row begins (from 1), and the row's cells.

    The header is the first row; blank rows are passed over. What is between the cells is told by the
    header, or by a first line ``sep=;`` as Excel reads it. Raises UserError, also midway.
    """
    fault = f"{name} is not a CSV in UTF-8"
    text = decoded(unpacked(read_content(place, name), name), fault)
    said = re.match(r"sep=(.)\r?\n", text, re.IGNORECASE)
    text = text[said.end() :] if said else text
    between = said[1] if said else separator(text)
    # Strict: a quote that is never closed would swallow the rest of the file as one cell.
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=between, strict=True)
    first = 2 if said else 1
    line = first
    try:
        for row in rows:
            if any(cell.strip() for cell in row):
                yield line, row
            line = rows.line_num + first
    except csv.Error as error:
        raise UserError(f"{fault}: line {line}: {error}; check its quotes") from error


def separator(text: str) -> str:
    """What is between the cells of a CSV: of comma, semicolon and tab, what its header has most of."""
    header = NEW_LINE.split(text.lstrip(), maxsplit=1)[0]
    outside = re.sub(r'"[^"]*"', "", header)
    return max(SEPARATORS, key=outside.count)


def unpacked(content: bytes, name: str) -> bytes:
    """The bytes of a file that may be compressed with gzip. Raises UserError where that is damaged."""
    if not content.startswith(GZIP_MARK):
        return content
    whole, unread = io.BytesIO(), content
    try:
        while unread and whole.tell() <= LARGEST_BYTES:  # a file may be of several parts
            part = zlib.decompressobj(wbits=31)
            whole.write(part.decompress(unread, LARGEST_BYTES + 1 - whole.tell()))
            if not part.eof and whole.tell() <= LARGEST_BYTES:
                raise UserError(f"{name} is damaged: its gzip breaks off; {RESTORE}")
            unread = part.unused_data
    except zlib.error as error:
        raise UserError(f"{name} is damaged: {one_line(error)}; {RESTORE}") from error
    if whole.tell() > LARGEST_BYTES:
        raise UserError(f"{name} has more than {LARGEST_BYTES:,} bytes when unpacked")
    return whole.getvalue()


def read_json(place: Location, name: str, remedy: str = RESTORE) -> dict:
    """The object that a JSON file holds. Raises UserError, which ends with `remedy`."""
    fault = f"{name} is damaged"
    text = decoded(read_content(place, name), fault, remedy)
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{fault}: line {error.lineno}: {error.msg}; {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{fault}: {one_line(error)}; {remedy}") from error
    return checked_dict(found, f"{fault}: it must hold an object, {{…}}", remedy)


class PlainLoader(yaml.SafeLoader):
    """YAML's safe loader without aliases, by which a few lines can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node of the text. Raises ComposerError for an alias."""
        if self.check_event(yaml.AliasEvent):
            place = self.peek_event().start_mark
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not read here", place
            )
        return super().compose_node(parent, index)


def read_yaml(place: Location, name: str, remedy: str = "mend it") -> dict:
    """The mapping that a YAML file holds; of an empty file, none. Raises UserError."""
    fault = f"{name} is not YAML"
    text = decoded(read_content(place, name), fault, SAVE)
    try:
        found = yaml.load(text, PlainLoader)
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
        raise UserError(f"{fault}: {yaml_reason(error, text)}; {remedy}") from error
    must = f"{name} must hold lines of the form 'setting: value'"
    return {} if found is None else checked_dict(found, must, remedy)


def read_content(place: Location, name: str) -> bytes:
    """The bytes of a file. Raises UserError where it is not there, too large, or out of reach."""
    try:
        info = place.filesystem.get_file_info(place.path)
        if info.type == fs.FileType.NotFound:
            raise UserError(f"{name}: there is no such file")
        if info.type == fs.FileType.Directory:
            raise UserError(f"{name} is a folder: give a file")
        if info.size > LARGEST_BYTES:
            raise UserError(f"{name} has {info.size:,} bytes, and text at most {LARGEST_BYTES:,}")
        return place.read_bytes()
    except OSError as error:
        raise UserError(f"{name} cannot be read: {one_line(error)}") from error


def decoded(content: bytes, fault: str, remedy: str = SAVE) -> str:
    """Bytes as text. Raises UserError, which begins with `fault`, for another encoding."""
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if wide else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = line_at(content[: error.start].decode(encoding, "ignore"))
        wrong = content[error.start]
        raise UserError(f"{fault}: line {line} has the byte 0x{wrong:02X}; {remedy}") from error
    if "\0" in text:
        line = line_at(text[: text.index("\0")])
        raise UserError(f"{fault}: line {line} holds a NUL byte, as no text does; {remedy}")
    return text


def checked_dict(found: object, must: str, remedy: str) -> dict:
    """`found`, which must be a dict. Raises UserError, which begins with `must`, where it is none."""
    if not isinstance(found, dict):
        raise UserError(f"{must}, and holds a {type(found).__name__}; {remedy}")
    return found


def line_at(before: str) -> int:
    """The line, from 1, that follows the text `before`; lines end with CR, LF or both."""
    return 1 + len(NEW_LINE.findall(before))


def yaml_reason(error: Exception, text: str) -> str:
    """``line 3: could not find expected ':'``; without the excerpt that PyYAML adds."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    if isinstance(error, yaml.reader.ReaderError):
        return f"line {line_at(text[: error.position])}: {error.reason}"
    return one_line(error)


def one_line(error: Exception) -> str:
    """What an exception says, on one line; its name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a JSON object, and one more: the XXH3 of the others. It finds damage, not forgery."""
    return {**values, CHECKSUM: checksum_of(values)}


def is_whole(values: Mapping[str, Any]) -> bool:
    """Whether a JSON object is as it was written, as far as it has a checksum: earlier ones have none."""
    return CHECKSUM not in values or values[CHECKSUM] == checksum_of(values)


def checksum_of(values: Mapping[str, Any]) -> str:
    """XXH3, 64 bits in hex, of all values of a JSON object but its checksum."""
    others = {name: value for name, value in values.items() if name != CHECKSUM}
    return xxhash.xxh3_64_hexdigest(json.dumps(others, sort_keys=True).encode())
