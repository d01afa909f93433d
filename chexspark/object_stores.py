"""Object stores behind pyarrow: S3, Google Cloud Storage, Azure. Runs on driver, in tasks and on ranks.

In: ``s3://``, ``s3a://``, ``gs://``, ``abfss://``. Out: a file system and the path on it. For S3, settings are those of
Hadoop's ``fs.s3a.*`` as the Spark session has them, of a bucket before those of all, then ``AWS_*``. The driver hands both to
tasks in their environment, and a rank has that of its task: keys stand in no command line, no log and no file.
"""

import contextlib
import datetime
import functools
import json
import os
import re
import sys
import threading
from typing import Any

import pyarrow as pa
from pyarrow import fs

from chexspark.errors import UserError
from chexspark.patient_files import PatientHandler

S3 = ("s3", "s3a")
SCHEMES = (*S3, "gs", "abfss")
TYPES = ("s3", "py::s3", "gcs", "abfs")  # what pyarrow calls such a file system
VARIABLE = "CHEXSPARK_OBJECT_STORES"  # of a task's environment: settings, JSON
SECRETS = ("fs.s3a.access.key", "fs.s3a.secret.key", "fs.s3a.session.token")
PLAIN = ("fs.s3a.endpoint", "fs.s3a.endpoint.region", "fs.s3a.path.style.access",
         "fs.s3a.connection.ssl.enabled", "fs.s3a.aws.credentials.provider")  # fmt: skip
PREFIXES = ("fs.s3a.bucket.", "fs.azure.account.key.")
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
AMAZON = re.compile(r"s3[.-]?[a-z0-9-]*\.amazonaws\.com")  # endpoints that S3 has by itself
REGION = re.compile(r"\b[a-z]{2}(?:-[a-z]+)+-\d\b")
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# What a URI of pyarrow may end with; nothing could be put below such a place.
OPTIONS = re.compile(
    r"\?(access_key|secret_key|session_token|region|scheme|endpoint_override|allow_\w+|proxy_\w+)="
)
ATTEMPTS = 6  # of a request that fails: with longer and longer pauses, some 15 s
CONNECT_SECONDS, ANSWER_SECONDS = 10, 60
EMULATOR = "STORAGE_EMULATOR_HOST"  # what all of Google's clients call it
GIVE_UP = datetime.timedelta(seconds=60)  # of Google's client, which else tries for 15 minutes
LOCK = threading.Lock()  # two threads that come first to S3 crash in Arrow

Settings = dict[str, str]


class UnreachableError(UserError, OSError):
    """An object store that does not answer, or not to this user: a mistake in settings, as a rule."""


def scheme_of(uri: str) -> str:
    """``s3`` of ``s3://bucket``; empty for a path."""
    return uri.partition("://")[0] if "://" in uri else ""


def check_no_keys(uri: str) -> None:
    """Raise UserError, which does not repeat them, for a URI of S3 that may have keys in it, or has options."""
    if scheme_of(uri) not in S3:
        return
    scheme, bucket = scheme_of(uri), uri.partition("://")[2].partition("/")[0]
    # A secret may have a slash: then what comes after it looks like a path.
    if ":" in bucket or "@" in bucket:
        raise UserError(
            f"a {scheme}:// URI has more than a bucket's name before its path: keys belong into "
            "spark.hadoop.fs.s3a.access.key and spark.hadoop.fs.s3a.secret.key, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    if OPTIONS.search(uri):
        raise UserError(
            f"{uri.partition('?')[0]} is followed by options: give them as spark.hadoop.fs.s3a.endpoint and the like, or as "
            "AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )


def without_user(uri: str) -> str:
    """A URI without the user and password that it may have."""
    return re.sub(r"(?<=://).*@", "", uri)


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI of `SCHEMES`, and the path on it, whose letters are taken as they are.

    Raises UserError for what is no place, or where pyarrow lacks the file system.
    """
    check_no_keys(uri)
    scheme, _, rest = uri.partition("://")
    name, _, path = rest.partition("/")
    host = ""
    if scheme == "abfss":
        name, _, host = name.partition("@")
        if not re.fullmatch(r"[a-z0-9]+\.[a-z0-9.-]+", host):
            raise UserError(
                f"{uri}: it must be abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH"
            )
    if not BUCKET.fullmatch(name):
        raise UserError(f"{uri}: {scheme}:// is followed by no name of a bucket")
    place = "/".join([name, *filter(None, path.split("/"))])
    found = settings()
    try:
        with LOCK:
            if scheme == "gs":
                return of_google(os.environ.get(EMULATOR, "")), place
            if scheme == "abfss":
                return of_azure(host, found.get(f"fs.azure.account.key.{host}")), place
            return of_s3(**arguments(name, found)), place
    except (pa.ArrowException, ValueError, OSError) as error:
        raise UnreachableError(
            f"{uri} cannot be reached: {' '.join(str(error).split())}"
        ) from error


def arguments(bucket: str, found: Settings) -> dict[str, Any]:
    """What `of_s3` takes for a bucket, by settings: see the module."""

    def of(name: str) -> str:
        whole = found.get(f"fs.s3a.bucket.{bucket}.{name}") or found.get(f"fs.s3a.{name}")
        return (whole or "").strip()

    def variable(names: tuple[str, ...]) -> str:
        every = (source.get(name) for source in (found, os.environ) for name in names)
        return next(filter(None, every), "")

    given = of("endpoint")
    endpoint = "" if AMAZON.fullmatch(given.partition("://")[2] or given) else given
    endpoint = (endpoint or ("" if REGION.search(given) else variable(ENDPOINTS))).rstrip("/")
    scheme, _, host = endpoint.rpartition("://")
    plain = of("connection.ssl.enabled").lower() == "false"
    in_name = REGION.search(given)
    region = of("endpoint.region") or (in_name[0] if in_name else "") or variable(REGIONS)
    keys = tuple(of(name.removeprefix("fs.s3a.")) for name in SECRETS)
    if not (keys[0] and keys[1]):
        keys = tuple(found.get(name, "") for name in KEYS)
    return {
        "bucket": bucket,
        "keys": keys if keys[0] and keys[1] else None,
        "anonymous": "AnonymousAWSCredentialsProvider" in of("aws.credentials.provider"),
        "endpoint": host,
        "scheme": scheme or ("http" if plain else "https"),
        "region": region,
        # Of a server by its address there are no names of buckets in front of that, unless somebody says so.
        "virtual": bool(host) and of("path.style.access").lower() == "false",
    }


@functools.cache
def of_s3(
    bucket: str,
    keys: tuple[str, ...] | None,
    anonymous: bool,
    endpoint: str,
    scheme: str,
    region: str,
    virtual: bool,
) -> fs.FileSystem:
    """S3 with these settings, one per process. Raises OSError where the bucket's region cannot be found."""
    if not region:
        region = "us-east-1" if endpoint else fs.resolve_s3_region(bucket)
    key, secret, token = keys or (None, None, None)
    base = fs.S3FileSystem(
        access_key=key, secret_key=secret, session_token=token or None,
        anonymous=anonymous and not keys, region=region, scheme=scheme, endpoint_override=endpoint or None,
        force_virtual_addressing=virtual, connect_timeout=CONNECT_SECONDS, request_timeout=ANSWER_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        allow_delayed_open=True,  # small files then take one request, and are there whole or not at all
    )  # fmt: skip
    return fs.PyFileSystem(PatientHandler(base))


@functools.cache
def of_google(emulator: str) -> fs.FileSystem:
    """Google Cloud Storage, with the credentials that Google's client finds, or an emulator, which takes none.

    Raises UserError where pyarrow lacks it.
    """
    if not hasattr(fs, "GcsFileSystem"):
        raise UserError("gs:// needs a pyarrow that has GcsFileSystem: install pyarrow from PyPI")
    scheme, _, host = emulator.rpartition("://")
    return fs.GcsFileSystem(
        anonymous=bool(host), endpoint_override=host or None, scheme=scheme or ("http" if host else None),
        retry_time_limit=GIVE_UP,
    )  # fmt: skip


@functools.cache
def of_azure(host: str, key: str | None) -> fs.FileSystem:
    """Azure's storage of an account, with its key or the credentials that Azure's client finds.

    Raises UserError where pyarrow lacks it.
    """
    if not hasattr(fs, "AzureFileSystem"):
        raise UserError(
            "abfss:// needs a pyarrow that has AzureFileSystem: install pyarrow from PyPI"
        )
    return fs.AzureFileSystem(account_name=host.partition(".")[0], account_key=key)


def settings() -> Settings:
    """By name, what is known here: in tasks and ranks what they were handed, on the driver the session's."""
    handed = os.environ.get(VARIABLE)
    if handed is not None:
        return json.loads(handed)
    found = {n: os.environ[n] for n in (*KEYS, *ENDPOINTS, *REGIONS) if os.environ.get(n)}
    if in_driver():
        from chexspark.session import hadoop_settings, hand_to_tasks

        of_session = dict(hadoop_settings(SECRETS, PLAIN, PREFIXES))
        token, key = SECRETS[2], SECRETS[0]
        # Spark puts AWS_* among Hadoop's settings: such a token does not belong to another key.
        if of_session.get(token) == found.get(KEYS[2]) and of_session.get(key) != found.get(
            KEYS[0]
        ):
            of_session.pop(token, None)
        found |= of_session
        hand_to_tasks(VARIABLE, json.dumps(found) if found else None)
    return found


def in_driver() -> bool:
    """Whether this process has a Spark of its own, or was started by ``spark-submit``."""
    if "HOROVOD_RANK" in os.environ:
        return False
    submitted = ("PYSPARK_GATEWAY_PORT", "PYSPARK_SUBMIT_ARGS")
    return "pyspark" in sys.modules or any(name in os.environ for name in submitted)


@contextlib.contextmanager
def told(place: Any) -> Any:
    """Inside, what an object store answers is said in one line, but for what is not there.

    `place`: a `Location`. Raises UnreachableError, which is an OSError, and FileNotFoundError.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if place.is_object_store and not isinstance(error, UnreachableError):
            reason = " ".join(str(error).split())
            raise UnreachableError(f"{place} cannot be reached: {reason}") from error
        raise
