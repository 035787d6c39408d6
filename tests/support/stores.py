"""An S3 store and a plain web server on the loopback, behind a layer that breaks requests by a fixed schedule."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import fsspec
from werkzeug.serving import make_server

Environment = dict[str, Any]


class Faults:
    """Breaks requests, by rules that know nothing of time and threads.

    Attributes:
      kinds: how first attempts are broken, each request one way that its address decides; () breaks none.
        "500" and "503" answer so; "reset" resets the connection; "cut" ends the body before its length is reached;
        "short" sends half a body and calls it whole; "slow" sends it in pieces.
      always: requests (method and path) that match it get a 503 each time.
      conditions: whether the store knows puts under a condition.
      seen: requests by method.
      read: GETs by path.
    """

    def __init__(self, app: Callable) -> None:
        self._app = app
        self.reset()

    def reset(self) -> None:
        """No faults; nothing seen."""
        self.kinds: tuple[str, ...] = ()
        self.always: re.Pattern[str] | None = None
        self.conditions = True
        self.seen: Counter[str] = Counter()
        self.read: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        self._attempts: Counter[tuple[str, ...]] = Counter()

    def __call__(self, environ: Environment, start_response: Callable) -> Iterable[bytes]:
        kind = self._kind(environ)
        if environ.get("HTTP_IF_NONE_MATCH") and not self.conditions:
            kind = "501"
        self.broken[kind] += bool(kind)
        if kind in ("500", "501", "503"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(f"{kind} Broken", [("Content-Length", "0")])
            return [b""]
        if kind == "reset":
            return self._hang_up(environ)
        status: list[Any] = []
        body = b"".join(self._app(environ, lambda *answer: status.extend(answer)))
        if kind in ("cut", "short") and len(body) > 1:
            half = body[: len(body) // 2]
            if kind == "short" and environ.get("HTTP_RANGE"):  # nobody can tell that a whole answer should be longer
                length = ("Content-Length", str(len(half)))
                status[1] = [*(one for one in status[1] if one[0].lower() != "content-length"), length]
            body = half
        start_response(*status[:2])
        return _in_pieces(body) if kind == "slow" else [body]

    def _kind(self, environ: Environment) -> str:
        names = ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "HTTP_RANGE")
        request = tuple(environ.get(name, "") for name in names)
        self.seen[request[0]] += 1
        self.read[request[1]] += request[0] == "GET"
        if self.always is not None and self.always.search(" ".join(request[:2])):
            return "503"
        self._attempts[request] += 1
        if not self.kinds or self._attempts[request] > 1:
            return ""
        return self.kinds[zlib.crc32(" ".join(request).encode()) % len(self.kinds)]

    def _hang_up(self, environ: Environment) -> Iterable[bytes]:
        connection = environ["werkzeug.socket"]
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError


def _in_pieces(body: bytes) -> Iterator[bytes]:
    size = max(1, -(-len(body) // 3))
    for start in range(0, len(body), size):
        time.sleep(0.002)
        yield body[start : start + size]


@contextlib.contextmanager
def serving(app: Callable) -> Iterator[str]:
    """Serves an application from a thread; its address."""
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    server.daemon_threads = True
    server.RequestHandlerClass.protocol_version = "HTTP/1.1"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def s3_app() -> Callable:
    """moto's S3."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    return DomainDispatcherApplication(create_backend_app)


class Web:
    """A web server of files in memory.

    Attributes:
      files: path -> bytes.
      ranges: whether it knows ranges; a server that doesn't sends the whole file.
      lengths: whether it tells sizes.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges = self.lengths = True

    def __call__(self, environ: Environment, start_response: Callable) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path not in self.files:
            return self._page(path, start_response)
        data, status = self.files[path], "200 OK"
        headers = [("ETag", f'"{zlib.crc32(data)}"')]
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", environ.get("HTTP_RANGE", ""))
        if asked and self.ranges:
            start, stop = int(asked[1]), int(asked[2]) + 1
            headers.append(("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}"))
            data, status = data[start:stop], "206 Partial Content"
        if self.lengths:
            headers.append(("Content-Length", str(len(data))))
        else:
            headers.append(("Transfer-Encoding", "chunked"))
        start_response(status, headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [data]

    def _page(self, path: str, start_response: Callable) -> Iterable[bytes]:
        folder = path.rstrip("/") + "/"
        names = sorted({name[len(folder) :].split("/")[0] for name in self.files if name.startswith(folder)})
        text = "".join(f'<a href="{folder}{name}">{name}</a>\n' for name in names).encode()
        status = "200 OK" if names else "404 Not Found"
        start_response(status, [("Content-Type", "text/html"), ("Content-Length", str(len(text)))])
        return [text]


def use_s3(patch: Any, address: str) -> None:
    """Makes a served S3 the one that this process and those it starts use, by the usual variables."""
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        patch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # those of another server
