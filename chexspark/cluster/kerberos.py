"""Kerberos, as a run on a secured HDFS sees it: who the user is, and how long he counts as that. Runs on the driver.

In: a session. Out: lines of text: whose ticket or keytab, its remaining life, and what ends before a long run does.
"""

import ctypes
import ctypes.util
import math
import time
from dataclasses import dataclass

from pyspark.sql import SparkSession

from chexspark import hdfs
from chexspark.progress import duration
from chexspark.session import is_connect, spark_settings, token_ends

RENEWAL = "spark.kerberos.renewal.credentials"
FOREVER = 0xFFFFFFFF  # GSS_C_INDEFINITE
REMEDY = "give spark-submit --principal and --keytab, or --conf spark.kerberos.renewal.credentials=ccache"


@dataclass(frozen=True)
class Ticket:
    """A user's ticket. `seconds`: that are left of it."""

    principal: str
    seconds: float


class Text(ctypes.Structure):
    """``gss_buffer_desc`` of RFC 2744."""

    _fields_ = (("length", ctypes.c_size_t), ("value", ctypes.c_void_p))


def ticket() -> Ticket | None:
    """The ticket in this user's cache, by the library that opens HDFS with it (RFC 2744, ``gss_inquire_cred``).

    None where there is none that is valid, or no such library.
    """
    try:
        library = ctypes.CDLL(ctypes.util.find_library("gssapi_krb5") or "libgssapi_krb5.so.2")
    except OSError:
        return None
    minor, seconds = ctypes.c_uint32(), ctypes.c_uint32()
    name, text = ctypes.c_void_p(), Text()
    nothing = ctypes.c_void_p()
    if library.gss_inquire_cred(
        ctypes.byref(minor), nothing, ctypes.byref(name), ctypes.byref(seconds), nothing, nothing
    ):
        return None
    try:
        if library.gss_display_name(ctypes.byref(minor), name, ctypes.byref(text), nothing):
            return None
        principal = ctypes.string_at(text.value, text.length).decode()
        library.gss_release_buffer(ctypes.byref(minor), ctypes.byref(text))
    finally:
        library.gss_release_name(ctypes.byref(minor), ctypes.byref(name))
    left = math.inf if seconds.value == FOREVER else float(seconds.value)
    return Ticket(principal, left) if principal and left else None


def kerberos_lines(spark: SparkSession) -> tuple[list[str], list[str]]:
    """What to tell, and what to warn of; nothing where HDFS is not secured."""
    if is_connect(spark) or hdfs.settings().get("hadoop.security.authentication") != "kerberos":
        return [], []
    known = spark_settings((hdfs.PRINCIPAL, hdfs.KEYTAB, RENEWAL))
    ends = [end - time.time() for end in token_ends()]
    return said(
        known.get(hdfs.PRINCIPAL) if hdfs.KEYTAB in known else None,
        ticket(), known.get(RENEWAL) == "ccache", min(ends, default=None),
    )  # fmt: skip


def said(
    principal: str | None, found: Ticket | None, renews: bool, token_seconds: float | None
) -> tuple[list[str], list[str]]:
    """The lines of `kerberos_lines`.

    `principal`: whose keytab there is; `found`: the ticket; `renews`: whether Spark renews tokens by it; `token_seconds`:
    until the first token of HDFS ends, if there are tokens.
    """
    if principal:
        return [f"Kerberos: {principal}, by a keytab"], []
    lines = []
    if found:
        ends = f" that ends in {duration(found.seconds)}" if math.isfinite(found.seconds) else ""
        lines.append(f"Kerberos: {found.principal}, by a ticket{ends}")
    if token_seconds is None:
        return lines, ["Spark has no tokens of HDFS for the ranks: kinit before Spark starts"]
    if not renews:
        return lines, [
            f"what the ranks open HDFS with ends in {duration(token_seconds)}, and nothing renews it: {REMEDY}"
        ]
    if found and math.isfinite(found.seconds):
        return lines, [
            f"the ticket ends in {duration(found.seconds)}, and with it what the ranks open HDFS with: renew it "
            "meanwhile (kinit -R), or give spark-submit --principal and --keytab"
        ]
    return lines, []
