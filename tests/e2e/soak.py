"""Soak: many short requests of every kind; memory, descriptors and threads of the router must not grow.

Run by hand or by scripts/check: DSPARK_BIN=build/release/bin python tests/e2e/soak.py [REQUESTS]
"""

import concurrent.futures
import http.client
import json
import os
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import fake_model  # noqa: E402
from conftest import Stage, wait_for  # noqa: E402

BLOCK, CLIENTS = 1000, 16


def look(pid):
    status = open(f"/proc/{pid}/status").read()
    value = {k: int(line.split()[1]) for line in status.splitlines() for k in ("VmRSS", "Threads") if line.startswith(k)}
    return value["VmRSS"], len(os.listdir(f"/proc/{pid}/fd")), value["Threads"]


def one(port, i):
    kind = i % 6
    body = {"prompt": f"soak {i % 50}", "max_tokens": 1 + i % 20, "seed": i, "stream": kind < 2}
    if kind == 2:
        body |= {"logprobs": 3, "echo": True, "n": 2}
    if kind == 3:
        body |= {"temperature": 9}
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    path = "/v1/completions"
    if kind == 4:
        path, body = "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "seed": 1}
    if kind == 5:
        body |= {"max_tokens": 500, "stream": True}
    c.request("POST", path, json.dumps(body))
    r = c.getresponse()
    if kind == 5:
        r.read(50)  # and leave
    else:
        r.read()
    c.close()
    return r.status == (400 if kind == 3 else 200)


def main(total):
    with tempfile.TemporaryDirectory() as folder:
        s = Stage(pathlib.Path(folder))
        try:
            d = s.router()
            s.fake()
            d.wait_ready()
            marks = []
            with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
                for start in range(0, total, BLOCK):
                    assert all(pool.map(lambda i: one(d.port, i), range(start, start + BLOCK)))
                    wait_for(lambda: d.metric("dspark_running") == 0, what="an idle worker")
                    marks.append(look(d.process.pid))
                    print(f"{start + BLOCK} requests: RSS {marks[-1][0]} KiB, {marks[-1][1]} fds, {marks[-1][2]} threads")
            warm = marks[min(2, len(marks) - 1)]
            assert marks[-1][1] <= warm[1] + 2 and marks[-1][2] == warm[2], "descriptors or threads grow"
            assert marks[-1][0] <= warm[0] * 1.05 + 512, "memory grows"
            assert d.post("/v1/completions", {"prompt": "x", "max_tokens": 2, "temperature": 0})[1]["choices"][0]["text"] == \
                fake_model.decode(fake_model.generate(fake_model.encode("x"), 2))
        finally:
            s.end()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10000)
