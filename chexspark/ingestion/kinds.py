"""What a file is, by its name or its first bytes. Pure functions; runs anywhere.

In: a name, or bytes. Out: PNG, JPEG, DICOM, or nothing.
"""

PNG, JPEG, DICOM = "PNG", "JPEG", "DICOM"
EXTENSIONS = {
    ".png": PNG,
    ".jpg": JPEG,
    ".jpeg": JPEG,
    ".dcm": DICOM,
    ".dicom": DICOM,
    ".ima": DICOM,
}
OF_MACOS = "._"  # how files begin in which macOS keeps what it knows of the file of that name
NO_IMAGE = "passed over: not a PNG, JPEG or DICOM file"
HEAD = 256  # bytes by which `kind_of` knows a file
PNG_MARK = b"\x89PNG\r\n\x1a\n"
DICOM_MARK = b"DICM"
DICOM_FOLDER = (
    b"UI\x14\x001.2.840.10008.1.3.10"  # what a DICOMDIR, which lists others, says that it is
)
VALUE_TYPES = (  # PS3.5, 6.2
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OW PN SH SL SQ SS ST TM UI UL UN US UT".split()
)
LONGEST_FIRST = 256  # bytes of the first value of a DICOM file


def kind_by_name(name: str) -> str | None:
    """What the name of a file says that it is; of a ``._`` file of macOS nothing, whatever its end."""
    name = name.rpartition("/")[2]
    if name.startswith(OF_MACOS):
        return None
    return next((kind for end, kind in EXTENSIONS.items() if name.lower().endswith(end)), None)


def kind_of(content: bytes) -> str | None:
    """What the bytes are, whatever the file is called; None when they are none of the three.

    The first `HEAD` of them are enough.
    """
    if content.startswith(PNG_MARK):
        return PNG
    if content.startswith(b"\xff\xd8\xff"):
        return JPEG
    marked = content[128:132] == DICOM_MARK or content.startswith(DICOM_MARK)
    if not marked and not begins_as_data_set(content):
        return None
    return None if DICOM_FOLDER in content[:HEAD] else DICOM


def begins_as_data_set(content: bytes) -> bool:
    """Whether the bytes are DICOM without preamble: an element of group 2 or 8, with a type or a length.

    One that is empty and has no type is known by the next element. Source: DICOM PS3.5, 7.1.
    """
    for order in ("little", "big"):
        (group, element), (group_2, element_2) = (
            [int.from_bytes(content[i : i + 2], order) for i in (at, at + 2)] for at in (0, 8)
        )
        length = int.from_bytes(content[4:8], order)
        if not (group in (2, 8) and element < 0x100 and len(content) > 8):
            continue
        if content[4:6] in VALUE_TYPES or (length % 2 == 0 and 0 < length <= LONGEST_FIRST):
            return True
        if length == 0 and group == group_2 and element < element_2 < 0x100:
            return True
    return False
