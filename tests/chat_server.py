"""A chat-completions endpoint on this machine that answers what a test tells it to."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """A chat-completions endpoint; `behave(body, number)` returns what it answers.

    A text is what the model says, (status, text) a failure, bytes a whole body, None silence.
    """

    def __init__(self, behave):
        self.bodies, self.lock = [], threading.Lock()
        self.behave = behave
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            number = len(self.server.bodies)
        answer = self.server.behave(body, number)
        if answer is None:  # nothing at all
            self.close_connection = True
            return
        if isinstance(answer, bytes):  # a whole body with status 200, whatever it is
            self._send(200, answer, "text/html" if answer.startswith(b"<") else "application/json")
            return
        status, text = answer if isinstance(answer, tuple) else (200, answer)
        if status == 200:
            message = {"role": "assistant", "content": text}
            reply = {
                "id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
            }  # fmt: skip
            text = json.dumps(reply)
        self._send(status, text.encode(), "application/json")

    def _send(self, status: int, data: bytes, content_type: str):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass
