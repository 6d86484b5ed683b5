"""An S3 server in this process (moto), which can lose answers and throttle as real ones do."""

from __future__ import annotations

import logging
import os
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote

SECRET = "canary-secret-9f3b71c2e6"  # what no log, manifest or report may hold
TOKEN = "canary-token-51d0aa77"
_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>slower</Message></Error>"


class S3Server:
    """``lose``: share of conditional puts that are done and then not answered (the connection is
    cut). ``throttle``: share of requests that are answered 503 SlowDown and not done. ``refused``:
    status and code by a part of ``METHOD URL`` that a request is refused for."""

    def __init__(self, lose: float = 0.0, throttle: float = 0.0, seed: int = 0) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._app = DomainDispatcherApplication(create_backend_app)
        self.lose, self.throttle = lose, throttle
        self.refused: dict[str, tuple[int, str]] = {}
        self._dice, self._lock = random.Random(seed), Lock()
        self.asked: Counter[str] = Counter()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self) -> dict[str, str]:
        """What a process needs to reach it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "canary-key",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_SESSION_TOKEN": TOKEN,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        query, method = environ["QUERY_STRING"], environ["REQUEST_METHOD"]
        once = method == "PUT" and "HTTP_IF_NONE_MATCH" in environ
        with self._lock:
            slow, lost = self._dice.random() < self.throttle, self._dice.random() < self.lose
            self.asked["create" if once else method] += 1
            self.asked["part"] += "partNumber" in query
            self.asked["page"] += "continuation-token" in query
        if slow:
            with self._lock:
                self.asked["throttled"] += 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return [_SLOW_DOWN]
        url = f"{method} {environ['PATH_INFO']}?{unquote(query)}"
        for part, (status, code) in self.refused.items():
            if part in url:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start(f"{status} {code}", [("Content-Type", "application/xml")])
                body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
                return [] if method == "HEAD" else [body]
        if not (once and lost):
            return self._app(environ, start)
        list(self._app(environ, lambda *_: None))
        with self._lock:
            self.asked["lost"] += 1
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return []


@contextmanager
def reachable(environment: dict[str, str]) -> Iterator[None]:
    """Points this process, and those it starts, at the server."""
    import fsspec

    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    filesystem = fsspec.get_filesystem_class("s3")
    filesystem.clear_instance_cache()  # instances keep the endpoint of their first use
    try:
        yield
    finally:
        filesystem.clear_instance_cache()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
