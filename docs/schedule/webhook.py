"""Run `dvc repro` when a version gets the alias `champion` in MLflow: a receiver of MLflow's webhooks.

    WEBHOOK_SECRET=... python docs/schedule/webhook.py 127.0.0.1 8099 [COMMAND ...]

Requests that arrive while the command runs cause one more run together. It also runs at the start, for what was missed.
"""

import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

OLDEST_SECONDS = 300  # a request that was recorded cannot be sent again later
LARGEST_BYTES = 1 << 16
SECRET = os.environ["WEBHOOK_SECRET"].encode()
COMMAND = sys.argv[3:] or ["dvc", "--wait-for-lock", "repro"]
is_wanted = threading.Event()


class Receiver(BaseHTTPRequestHandler):
    timeout = 30  # seconds, for one request

    def do_POST(self) -> None:
        """Check signature and time; wake the command for a new champion."""
        body = self.rfile.read(min(int(self.headers.get("Content-Length") or 0), LARGEST_BYTES))
        names = ("Delivery-Id", "Timestamp", "Signature")
        delivery, sent, signature = (self.headers.get(f"X-MLflow-{name}", "") for name in names)
        digest = hmac.digest(SECRET, f"{delivery}.{sent}.".encode() + body, hashlib.sha256)
        expected = f"v1,{base64.b64encode(digest).decode()}"
        is_recent = sent.isdecimal() and abs(time.time() - int(sent)) < OLDEST_SECONDS
        if not (hmac.compare_digest(signature.encode(), expected.encode()) and is_recent):
            self.send_error(401)
            return
        event = json.loads(body)
        kind = f"{event['entity']}.{event['action']}"
        if kind == "model_version_alias.created" and event["data"]["alias"] == "champion":
            is_wanted.set()
        self.send_response(204)
        self.end_headers()


def run_command() -> None:
    """Run the command each time that it is wanted."""
    while is_wanted.wait():
        is_wanted.clear()
        code = subprocess.call(COMMAND)
        print(f"{' '.join(COMMAND)} ended with {code}", flush=True)


if __name__ == "__main__":
    is_wanted.set()
    threading.Thread(target=run_command, daemon=True).start()
    ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Receiver).serve_forever()
