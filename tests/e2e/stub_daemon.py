"""A daemon's HTTP door with canned answers, so that the command-line tools are tested by themselves."""
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def metrics(n):
    """Two workers; counters grow by 100 tokens a look."""
    lines = []
    for worker, run in (("w0", 3), ("w1", 1)):
        for name, value in (("up", 1), ("running", run), ("waiting", 2), ("kv_tokens_used", 512),
                            ("kv_tokens", 2048), ("output_tokens_total", 1000 + 100 * n)):
            lines.append(f'dspark_worker_{name}{{worker="{worker}"}} {value}')
    return "\n".join(lines) + "\n"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, status, body, kind="application/json"):
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        stub = self.server.stub
        if self.path == "/v1/models":
            self.reply(200, {"object": "list", "data": [{"id": "stub", "max_model_len": 2048}]})
        elif self.path == "/metrics":
            stub.looks += 1
            self.reply(200, metrics(stub.looks), "text/plain")
        elif self.path == "/ready":
            self.reply(200 if stub.ready else 503, {"status": "ready" if stub.ready else "draining"})
        else:
            self.reply(404, {"error": {"message": "no such path"}})

    def chunk(self, text):
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def event(self, obj):
        self.chunk("data: " + (obj if isinstance(obj, str) else json.dumps(obj)) + "\n\n")

    def do_POST(self):
        stub = self.server.stub
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        stub.requests.append((self.path, body))
        if self.path == "/tokenize":
            ids = list(range(10, 10 + len(body["prompt"].split())))
            return self.reply(200, {"tokens": ids, "count": len(ids)})
        if stub.fail:
            return self.reply(*stub.fail)
        chat = self.path == "/v1/chat/completions"
        words = stub.words[: body.get("max_tokens", 16)]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            if chat and stub.thought:
                self.event({"choices": [{"index": 0, "finish_reason": None, "delta": {"reasoning_content": stub.thought}}]})
            for word in words:
                time.sleep(stub.gap_s)
                self.event({"choices": [{"index": 0, "finish_reason": None,
                                         **({"delta": {"content": word}} if chat else {"text": word})}]})
            if stub.break_off:
                self.event({"error": {"message": "the worker was lost"}})
            else:
                self.event({"choices": [{"index": 0, "finish_reason": "stop",
                                         **({"delta": {}} if chat else {"text": ""})}]})
                self.event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": len(words),
                                                     "prompt_tokens_details": {"cached_tokens": 3}}})
                self.event("[DONE]")
            self.chunk("")
        except (BrokenPipeError, ConnectionResetError):
            stub.disconnects += 1


class StubDaemon:
    def __init__(self):
        self.requests, self.looks, self.disconnects = [], 0, 0
        self.thought = ""
        self.words, self.gap_s, self.fail, self.break_off, self.ready = ["a", " b", " ü", "\n"], 0.0, None, False, True

    def __enter__(self):
        ThreadingHTTPServer.request_queue_size = 512
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.stub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()
