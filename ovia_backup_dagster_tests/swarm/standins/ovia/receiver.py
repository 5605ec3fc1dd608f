"""A receiver of notifications: prints each one as a line of JSON."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Told(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        print(self.rfile.read(int(self.headers["Content-Length"])).decode(), flush=True)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Log nothing but the notifications."""


ThreadingHTTPServer(("0.0.0.0", 9999), Told).serve_forever()
