"""What one router core does, against a fake worker: SSE events per second with 256 streams, and latency at 64 connections.

Usage: DSPARK_BIN=build/release/bin python tests/bench/bench_router.py
Events per core: events / CPU seconds of the router process, so that load generator and worker do not count.
"""

import json
import os
import pathlib
import selectors
import socket
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/e2e"), str(ROOT / "client")]
import example  # noqa: E402
import fake_model  # noqa: E402
import zmq  # noqa: E402
from conftest import Stage  # noqa: E402

TICK = os.sysconf("SC_CLK_TCK")


def cpu(pid):
    f = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(f[11]) + int(f[12])) / TICK


def request(body, host="a"):
    body = json.dumps(body).encode()
    return b"POST /v1/completions HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n" % (host.encode(), len(body)) + body


def connect(port):
    s = socket.create_connection(("127.0.0.1", port))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


def streams(d, n, tokens):
    sel = selectors.DefaultSelector()
    body = {"prompt": "bench", "max_tokens": tokens, "seed": 1, "stream": True}
    start, cpu0 = time.monotonic(), cpu(d.process.pid)
    for _ in range(n):
        s = connect(d.port)
        s.sendall(request(body))
        sel.register(s, selectors.EVENT_READ, b"")
    left, events, size = n, 0, 0
    while left:
        for key, _ in sel.select():
            data = key.fileobj.recv(1 << 18)
            assert data, "the stream broke"
            events += data.count(b"data: ")
            size += len(data)
            tail = key.data + data[-32:]
            if tail.endswith(b"\r\n0\r\n\r\n"):
                sel.unregister(key.fileobj)
                key.fileobj.close()
                left -= 1
            else:
                sel.modify(key.fileobj, selectors.EVENT_READ, data[-16:])
    wall, used = time.monotonic() - start, cpu(d.process.pid) - cpu0
    print(f"{n} streams, {events} events of {size // events} bytes in {wall:.2f} s: {events / wall:.0f} events/s over all; "
          f"router CPU {used:.2f} s: {events / used:.0f} events/s per router core")


def latency(d, n, count, gap_s):
    """One request at a time over n kept connections in turn: what a request costs when nothing queues."""
    socks = [connect(d.port) for _ in range(n)]
    data = request({"prompt": "latency", "max_tokens": 1, "seed": 1})
    times = []
    for i in range(count):
        s = socks[i % n]
        t = time.perf_counter()
        s.sendall(data)
        answer = s.recv(65536)
        times.append(time.perf_counter() - t)
        assert answer.startswith(b"HTTP/1.1 200")
        time.sleep(gap_s)
    times.sort()
    health = []
    for i in range(count):
        t = time.perf_counter()
        socks[0].sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        socks[0].recv(65536)
        health.append(time.perf_counter() - t)
    print(f"{n} connections: request of one token, worker included: p50 {statistics.median(times) * 1e6:.0f} us, "
          f"p99 {times[int(count * 0.99)] * 1e6:.0f} us; /health p50 {statistics.median(health) * 1e6:.0f} us")
    return statistics.median(times)


def direct(folder, count, gap_s):
    """The same request given to a fake worker by this script itself: what the router's part is measured against."""
    pb, stage = example.load_messages(), Stage(folder)
    socket = zmq.Context.instance().socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind(stage.endpoint)
    stage.fake("fake-0", "--max-seqs", 256)

    def send(peer, **body):
        socket.send_multipart([peer, pb.Envelope(version=1, **body).SerializeToString()])

    def take(kind):
        while True:
            peer, data = socket.recv_multipart()
            frame = pb.Envelope.FromString(data)
            if frame.WhichOneof("body") == kind:
                return peer

    try:
        peer = take("hello")
        send(peer, hello=pb.Hello(role="router", name="bench", incarnation=1, heartbeat_ms=250))
        take("credits")
        times = []
        for i in range(count):
            t = time.perf_counter()
            send(peer, submit=pb.Submit(id=i + 1, prompt_ids=fake_model.encode("latency"), sampling=pb.Sampling(
                max_tokens=1, temperature=1, top_p=1, repetition_penalty=1, seed=1, logprobs=-1, prompt_logprobs=-1)))
            take("done")
            times.append(time.perf_counter() - t)
            if i % 100 == 0:
                send(peer, heartbeat=pb.Heartbeat())
            time.sleep(gap_s)
        return statistics.median(times)
    finally:
        stage.end()
        socket.close()


def idle(d, n):
    def rss():
        return int(next(x for x in open(f"/proc/{d.process.pid}/status") if x.startswith("VmRSS")).split()[1])

    before = rss()
    socks = [connect(d.port) for _ in range(n)]
    for s in socks:
        s.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        s.recv(65536)
    print(f"{n} idle connections: {before / 1024:.1f} MiB before, {rss() / 1024:.1f} MiB with them")
    for s in socks:
        s.close()


def main():
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(pathlib.Path(folder))
        try:
            d = stage.router()
            stage.fake("fake-0", "--max-seqs", 256)
            d.wait_ready()
            idle(d, 1000)
            streams(d, 256, 10)
            for _ in range(3):
                streams(d, 256, 400)
            for turn in range(3):
                whole = latency(d, 64, 2000, 0.0005)
                (pathlib.Path(folder) / f"direct-{turn}").mkdir()
                alone = direct(pathlib.Path(folder) / f"direct-{turn}", 2000, 0.0005)
                print(f"the worker alone, asked without a router: p50 {alone * 1e6:.0f} us; the router adds "
                      f"{(whole - alone) * 1e6:.0f} us")
        finally:
            stage.end()


if __name__ == "__main__":
    main()
