"""An S3 server on loopback, run by a Python that has moto: it is started by `tests/s3.py`.

In: a line of JSON: the key and secret that it takes, which requests fail, how long each takes. Out: a line with its
port; on standard error a line per request. It ends with its standard input. Requests without the right signature
get 403, so that what works has had the secret as it is.
"""

import hashlib
import hmac
import itertools
import json
import sys
import threading
import time

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

ERROR = (
    "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{0}</Code><Message>{0}</Message></Error>"
)


def digest(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def signature(environ, secret):
    """What the signature of a request must be (AWS Signature Version 4)."""
    words = environ["HTTP_AUTHORIZATION"].removeprefix("AWS4-HMAC-SHA256 ").split(",")
    fields = dict(word.strip().split("=", 1) for word in words)
    names = fields["SignedHeaders"].split(";")
    own = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}
    headers = [environ.get(own.get(n, "HTTP_" + n.upper().replace("-", "_")), "") for n in names]
    path, _, query = environ["RAW_URI"].partition("?")
    pairs = sorted(pair if "=" in pair else pair + "=" for pair in query.split("&") if pair)
    canonical = "\n".join(
        [environ["REQUEST_METHOD"], path, "&".join(pairs),
         *(f"{n}:{' '.join(v.split())}" for n, v in zip(names, headers, strict=True)), "",
         fields["SignedHeaders"], environ["HTTP_X_AMZ_CONTENT_SHA256"]]
    )  # fmt: skip
    scope = fields["Credential"].split("/", 1)[1]
    to_sign = "\n".join(["AWS4-HMAC-SHA256", environ["HTTP_X_AMZ_DATE"], scope,
                         hashlib.sha256(canonical.encode()).hexdigest()])  # fmt: skip
    key = ("AWS4" + secret).encode()
    for part in scope.split("/"):
        key = digest(key, part)
    return digest(key, to_sign).hex(), fields


class Guarded:
    """The server behind who asks for the signature, fails some requests and takes its time."""

    def __init__(self, key, secret, fails_every=0, seconds=0.0):
        self.key, self.secret, self.fails_every, self.seconds = key, secret, fails_every, seconds
        self.app = DomainDispatcherApplication(create_backend_app)
        self.numbers, self.lock = itertools.count(1), threading.Lock()

    def refuse(self, environ, start, status, code):
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = ERROR.format(code).encode()
        start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    def __call__(self, environ, start):
        with self.lock:
            number = next(self.numbers)
        print(environ["REQUEST_METHOD"], environ["RAW_URI"], file=sys.stderr, flush=True)
        time.sleep(self.seconds)
        if self.fails_every and number % self.fails_every == 0:
            return self.refuse(environ, start, "503 Slow Down", "SlowDown")
        try:
            right, fields = signature(environ, self.secret)
        except KeyError:
            return self.refuse(environ, start, "403 Forbidden", "AccessDenied")
        if fields["Credential"].split("/")[0] != self.key:
            return self.refuse(environ, start, "403 Forbidden", "InvalidAccessKeyId")
        if not hmac.compare_digest(right, fields["Signature"]):
            return self.refuse(environ, start, "403 Forbidden", "SignatureDoesNotMatch")
        return self.app(environ, start)


class Handler(WSGIRequestHandler):
    """Connections that stay open, and no line per request."""

    protocol_version = "HTTP/1.1"

    def log(self, *_):
        pass


if __name__ == "__main__":
    settings = json.loads(sys.stdin.readline())
    server = make_server(
        "127.0.0.1", 0, Guarded(**settings), threaded=True, request_handler=Handler
    )
    print(server.server_port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
