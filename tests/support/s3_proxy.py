"""Stands before an S3 server, and does what storage does to its users: errors, silence, slow answers, outages."""

import contextlib
import http.client
import http.server
import itertools
import threading
import time

_SLOW_S, _SILENT_S = 1.0, 12.0  # longer than our client waits


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes requests on to the server, but for the first ``failures``, and those whose path holds ``refused``.

    Refused ones are answered after ``refused_after_s``.
    Of the others, each ``error_every``-th is answered by an error of the server, ``slow_every``-th late, and
    ``silent_every``-th never; while ``away`` is set, nobody is answered.
    """

    protocol_version = "HTTP/1.1"
    failures, status, code, behind, refused, refused_after_s = 0, 503, "SlowDown", 0, None, 0.0
    error_every, slow_every, silent_every, away = 0, 0, 0, False
    number = itertools.count(1)
    requests, errors, late, refused_away = 0, 0, 0, 0

    @classmethod
    @contextlib.contextmanager
    def listening(cls, behind, **behaviour):
        """Gives the class of its handlers, which counts what it did, and its port."""
        handler = type("Proxy", (cls,), {"behind": behind, "number": itertools.count(1), **behaviour})
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield handler, server.server_address[1]
            server.shutdown()

    def _answer(self):
        kind = type(self)
        kind.requests = number = next(self.number)
        body = self._body()
        if self._is_unanswered(number):
            self.close_connection = True
            return
        if self.slow_every and number % self.slow_every == 0:
            kind.late += 1
            time.sleep(_SLOW_S)
        failure = self._failure(number)
        self._send(*(self._failed(*failure) if failure else self._asked(body)))

    def _is_unanswered(self, number):
        if self.away:
            type(self).refused_away += 1
            return True
        if self.silent_every and number % self.silent_every == 0:
            time.sleep(_SILENT_S)
            return True
        return False

    def _failure(self, number):
        """The status and the code of the error that this request gets, if any."""
        if self.error_every and number % self.error_every == 0:
            type(self).errors += 1
            return (503, "SlowDown") if self.errors % 2 else (500, "InternalError")
        if self.refused and self.refused in self.path:
            time.sleep(self.refused_after_s)
            return self.status, self.code
        return (self.status, self.code) if number <= self.failures else None

    def _failed(self, status, code):
        return status, {}, f"<Error><Code>{code}</Code></Error>".encode()

    def _asked(self, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.behind)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            response = connection.getresponse()
            return response.status, dict(response.headers), response.read()

    def _send(self, status, headers, answer):
        self.send_response(status)
        for name in headers.keys() & {"ETag", "Content-Type", "Last-Modified", "Content-Range"}:
            self.send_header(name, headers[name])
        head = self.command == "HEAD"
        self.send_header("Content-Length", headers.get("Content-Length", "0") if head else str(len(answer)))
        self.end_headers()
        self.wfile.write(b"" if head else answer)

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer  # noqa: N815

    def log_message(self, *_):
        pass
