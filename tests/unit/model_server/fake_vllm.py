"""
Stands in for the interpreter of an environment that has vLLM: answers what is asked of one.

Asked what it has (`-I -c …`), it says vLLM and Python.h. Told to serve (`-m vllm…`), it says so in
vLLM's words, and answers /health and /metrics.
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BYTES_PER_TOKEN = 23_040


def _option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer /health and /metrics alike."""
        tokens = int(_option("--kv-cache-memory-bytes")) // BYTES_PER_TOKEN
        self.send_response(200)
        self.end_headers()
        self.wfile.write(
            f'vllm:cache_config_info{{kv_cache_size_tokens="{tokens}"}} 1.0\n'.encode()
        )

    def log_message(self, *_: object) -> None:  # type: ignore[override]  # silence
        """Say nothing."""


if __name__ == "__main__":
    if "-c" in sys.argv:
        sys.stdout.write("[true, true]")
        sys.exit(0)
    sys.stdout.write("INFO Starting to load model …\n")
    sys.stdout.flush()
    ThreadingHTTPServer(("127.0.0.1", int(_option("--port"))), _Handler).serve_forever()
