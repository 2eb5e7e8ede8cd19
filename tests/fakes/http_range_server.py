"""A local HTTP server with range requests, like an object store: `python http_range_server.py FOLDER`.

It runs in a process of its own, because GDAL may keep the GIL while it waits for a response.
"""

import re
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextmanager
def serve_folder(folder):
    """Serve the files of a folder for the block, and yield the server's URL."""
    command = [sys.executable, __file__, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


class RangeRequestHandler(BaseHTTPRequestHandler):
    """Responds to HEAD and GET, and logs the requested ranges of each file in `FILE.ranges`."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._respond(head=True)

    def do_GET(self):
        self._respond(head=False)

    def _respond(self, *, head):
        path = Path(sys.argv[1], self.path.split("?")[0].lstrip("/"))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        size, code = len(content), 200
        found = None if head else re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if found:
            start, stop = int(found[1]), min(int(found[2] or size - 1), size - 1) + 1
            content, code = content[start:stop], 206
            with path.with_suffix(".ranges").open("a") as log:
                log.write(f"{start}-{stop}\n")
        self.send_response(code)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content)))
        if found:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        if not head:
            self.wfile.write(content)

    def log_message(self, *_):
        """Log nothing."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), RangeRequestHandler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)  # noqa: T201
    server.serve_forever()
