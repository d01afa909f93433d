"""What DICOM files say of the patient and the study, before any pixel is read. Spark tasks, and the driver.

In: image files and archives. Out: by place, the texts of the elements that were asked for; then the labels,
filled where they do not say it.
"""

import io
import posixpath
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from pyspark.sql import SparkSession

from chexspark.config import DICOM_FACTS
from chexspark.extras import check_extra
from chexspark.ingestion.image_names import label_name
from chexspark.ingestion.images import BadImageError
from chexspark.ingestion.kinds import DICOM, HEAD, kind_by_name, kind_of
from chexspark.ingestion.label_facts import Unreadable
from chexspark.ingestion.label_records import PARSED
from chexspark.ingestion.sources import SourceFile, is_archive, read_source_images
from chexspark.spark_progress import watched
from chexspark.storage import locate

KEYWORDS = {
    "study": ("StudyInstanceUID",), "series": ("SeriesInstanceUID",), "view": ("ViewPosition",),
    "sex": ("PatientSex",), "age": ("PatientAge",), "institution": ("InstitutionName",),
    "manufacturer": ("Manufacturer",), "device": ("ManufacturerModelName",),
    "date": ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"),
}  # fmt: skip
LAST_GROUP = 0x0020  # of the elements above; what follows in a file is not looked at
HEADER_BYTES = 1 << 20  # in which these elements are, of a file that is not deflated
FILES_OF_TASK = 256
Texts = dict[str, str]  # fact → the element's value
Key = tuple[str, str]  # URI of a file, or of an archive with the member's path


def asked_facts(asked: Sequence[str]) -> tuple[str, ...]:
    """The facts of `--dicom-columns`, each once, in their order."""
    return tuple(fact for fact in DICOM_FACTS if fact in asked or "all" in asked)


def header_texts(content: bytes, facts: Sequence[str]) -> Texts:
    """The values of a DICOM file that has these bytes, or begins with them; those that are there.

    A damaged file has none: that it is, is told where its pixels are read.
    """
    try:
        from pydicom.filereader import read_partial
        from pydicom.multival import MultiValue
        from pydicom.tag import Tag

        from chexspark.ingestion.dicom import MARK, PREAMBLE, check_inflated

        if content.startswith(MARK):
            content = PREAMBLE + content
        check_inflated(content)
        dataset = read_partial(
            io.BytesIO(content), lambda tag, vr, length: tag >> 16 > LAST_GROUP, force=True,
            specific_tags=[Tag(keyword) for fact in facts for keyword in KEYWORDS[fact]],
        )  # fmt: skip
        found = {}
        for fact in facts:
            values = (dataset.get(keyword) for keyword in KEYWORDS[fact])
            first = (v[0] if isinstance(v, MultiValue) else v for v in values if v)
            text = next((str(value).strip() for value in first if str(value).strip()), "")
            if text:
                found[fact] = text
    except Exception:  # whatever pydicom raises, it is about this file
        return {}
    return found


def deflated(head: bytes) -> bool:
    """Whether a DICOM file that begins so is deflated, and must be read whole."""
    return b"1.2.840.10008.1.2.1.99" in head[:4096]


def headers_of(sources: Sequence[SourceFile], facts: Sequence[str]) -> Iterator[tuple[Key, Texts]]:
    """Where each DICOM file of some files and archives is, and its values."""
    for source in sources:
        if is_archive(source):
            for image in read_source_images([source]):
                if (
                    not isinstance(image.content, BadImageError)
                    and kind_of(image.content[:HEAD]) == DICOM
                ):
                    yield (
                        (source.uri, image.path.removeprefix(f"{source.uri}!")),
                        header_texts(image.content, facts),
                    )
        elif kind_by_name(source.name) in (DICOM, None):
            try:
                head = locate(source.uri).read_bytes(HEADER_BYTES)
                content = locate(source.uri).read_bytes() if deflated(head) else head
            except OSError:
                continue  # told where its pixels are read
            if kind_of(head[:HEAD]) == DICOM:
                yield (source.uri, ""), header_texts(content, facts)


def read_headers(
    spark: SparkSession, files: list[SourceFile], archives: list[SourceFile], facts: Sequence[str]
) -> dict[Key, Texts]:
    """The values of all DICOM files by where they are.

    Raises UserError where pydicom is not installed.
    """
    check_extra("dicom", "--dicom-columns")
    groups = [tuple(files[i : i + FILES_OF_TASK]) for i in range(0, len(files), FILES_OF_TASK)]
    groups += [(archive,) for archive in archives]
    if not groups:
        return {}
    with watched(spark, "reading DICOM headers", len(groups)):
        spread = spark.sparkContext.parallelize(groups, len(groups))
        return dict(spread.flatMap(lambda sources: headers_of(sources, facts)).collect())


def filled(
    rows: pd.DataFrame, headers: Mapping[Key, Texts], names: Mapping[str, str], facts: Sequence[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Labels with what DICOM files say where they say nothing; and what is to be said of it, a line each.

    `names`: URI of a loose file → the name of its label.
    """
    labels = rows.set_index("image_index", drop=False)
    said: dict[str, Texts] = {}
    known = set(labels.index)
    for (uri, member), texts in headers.items():
        name = label_name(member, known) if member else names.get(uri)
        if name is not None and name in known:
            said[name] = texts
    unreadable = Unreadable()
    notes = []
    for fact in facts:
        column, parse = PARSED[fact]
        before = labels[column].to_dict()
        values = {
            name: unreadable.read(fact, texts.get(fact, ""), posixpath.basename(name), parse)
            for name, texts in said.items()
        }
        differing = [n for n, v in values.items() if None not in (v, before[n]) and v != before[n]]
        labels[column] = pd.Series(
            [values.get(name) if value is None else value for name, value in before.items()],
            labels.index, dtype=object,
        )  # fmt: skip
        if differing:
            notes.append(
                f"{column} of {len(differing):,} images is another in the DICOM file than in the "
                f"labels, which are taken: {differing[0]} is {values[differing[0]]} there, "
                f"{before[differing[0]]} here"
            )
        if not any(value is not None for value in labels[column]):
            notes.append(f"--dicom-columns: no image has a {fact}")
    notes += [f"DICOM: {note}" for note in unreadable.notes()]
    return labels.reset_index(drop=True), notes
