"""Soak: many short requests of every kind; memory, descriptors and threads of router and worker must not grow.

The suite runs it (test_soak.py); by hand: DSPARK_BIN=build/release/bin python tests/e2e/soak.py [REQUESTS [fake|real]]
fake: router and a drafting fake worker. real: dsparkd with its own worker and a random checkpoint.
"""

import concurrent.futures
import http.client
import json
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import fake_model  # noqa: E402
from conftest import BIN, Stage, wait_for  # noqa: E402

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


def start(s, kind):
    """The router, and the process id of its worker."""
    if kind == "fake":
        d = s.router()
        worker = s.fake("fake-0", "--draft-block", 5, "--draft-right", 0.7).process.pid
        return d.wait_ready(), worker
    subprocess.run([BIN / "dspark-bench", "make-model", "--shape", "tiny", "--dir", s.folder / "tiny"], check=True,
                   capture_output=True)
    d = s.daemon(fake_model.write_model(s.folder / "tiny"), "--threads", 1, "--kv-bytes", "4M", "--max-seqs", 8).wait_ready(30)
    return d, int(pathlib.Path(f"/proc/{d.process.pid}/task/{d.process.pid}/children").read_text().split()[0])


def judge(name, marks):
    """The second half against its start: what a warm process still takes is growth."""
    for who, warm, end in zip(("router", "worker"), marks[len(marks) // 2], marks[-1]):
        assert end[1] <= warm[1] + 2 and end[2] == warm[2], f"{name}: the {who}'s descriptors or threads grow: {marks}"
        assert end[0] <= warm[0] * 1.03 + 512, f"{name}: the {who}'s memory grows: {marks}"


def main(total, kind="fake"):
    with tempfile.TemporaryDirectory() as folder:
        s = Stage(pathlib.Path(folder))
        try:
            d, worker = start(s, kind)
            block, marks = min(BLOCK, total // 8), []
            with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
                for first in range(0, total, block):
                    assert all(pool.map(lambda i: one(d.port, i), range(first, first + block)))
                    wait_for(lambda: d.metric("dspark_running") == 0, what="an idle worker")
                    marks.append((look(d.process.pid), look(worker)))
                    print(f"{first + block} requests:", *(f"{who} RSS {m[0]} KiB, {m[1]} fds, {m[2]} threads;"
                                                          for who, m in zip(("router", "worker"), marks[-1])), flush=True)
            judge(kind, marks)
            answer = d.post("/v1/completions", {"prompt": "x", "max_tokens": 2, "temperature": 0})[1]["choices"][0]["text"]
            assert kind == "real" or answer == fake_model.decode(fake_model.generate(fake_model.encode("x"), 2))
        finally:
            s.end()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10000, *sys.argv[2:3])
