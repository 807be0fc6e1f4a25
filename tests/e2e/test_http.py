"""Hostile HTTP on raw sockets: one reading of each byte, every state with a deadline and a limit."""

import json
import re
import socket
import threading
import time

import fake_model
import pytest
from conftest import wait_for

BODY = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 2, "temperature": 0}).encode()


def connect(d):
    s = socket.create_connection(("127.0.0.1", d.port), timeout=10)
    return s


def read_all(s):
    data = b""
    while True:
        try:
            piece = s.recv(65536)
        except ConnectionResetError:
            return data
        if not piece:
            return data
        data += piece


def talk(d, data):
    """Send, then read until the server closes."""
    with connect(d) as s:
        s.sendall(data)
        return read_all(s)


def statuses(answer):
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) [A-Z]", answer)]


def post(body=BODY, extra=b"", version=b"1.1", close=True):
    return (b"POST /v1/completions HTTP/%s\r\nHost: a\r\nContent-Length: %d\r\n%s%s\r\n" %
            (version, len(body), b"Connection: close\r\n" if close else b"", extra) + body)


SMUGGLED = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("head", [
    b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: chunked\r\nContent-Length: 5",
    b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: 5\r\nContent-Length: 5", b"Content-Length: 5, 5",
    b"Content-Length: +5", b"Content-Length: 0x5", b"Content-Length: -1", b"Content-Length: 9223372036854775808",
    b"Content-Length: 18446744073709551621", b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding : chunked", b"Transfer-Encoding:\x0bchunked",
    b"Content-Length: 5\r\n folded: x", b"X: a\nContent-Length: 5", b"X: a\rContent-Length: 5", b"X: a\x00b",
    b"Content-Length : 5", b"Content Length: 5", b"Host: b"])
def test_ambiguous_framing_is_refused_and_closes(served, head):
    answer = talk(served, b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n" + head + b"\r\n\r\n0\r\n\r\n" + SMUGGLED)
    assert len(statuses(answer)) == 1 and statuses(answer)[0] in (400, 501), answer
    assert b"dspark_" not in answer


@pytest.mark.parametrize("body", [
    b"3\r\nabcXX0\r\n\r\n", b"3\nabc\r\n0\r\n\r\n", b"3;a\nb\r\nabc\r\n0\r\n\r\n", b"g\r\n", b"0\r\nX: y\r\n\r\n",
    b"3 \r\nabc\r\n0\r\n\r\n", b"ffffffffffffffff\r\n"])
def test_bad_chunks(served, body):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = talk(served, head + body + SMUGGLED)
    assert len(statuses(answer)) == 1 and statuses(answer)[0] in (400, 413), answer


def test_good_chunks(served):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"".join(b"1;x=y\r\n" + BODY[i:i + 1] + b"\r\n" for i in range(len(BODY))) + b"0\r\n\r\n"
    answer = talk(served, head + body)
    assert statuses(answer) == [200]
    want = fake_model.decode(fake_model.generate(fake_model.encode("x"), 2))
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["choices"][0]["text"] == want


@pytest.mark.parametrize("data,status", [
    (b"GET / HTTP/1.1\n\n", 400), (b"GET /\r\n\r\n", 505), (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 501),
    (b"GET http://a/health HTTP/1.1\r\nHost: a\r\n\r\n", 400), (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400), (b"TRACE /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 405),
    (b"GET /health HTTP/1.1\r\n\r\n", 400), (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 40000 + b"\r\n\r\n", 431),
    (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
    (b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n", 413),
    (b"POST /tokenize HTTP/1.1\r\nHost: a\r\nExpect: cake\r\nContent-Length: 2\r\n\r\n{}", 417),
    (b"DELETE /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 405),
    (b"GET /etc/passwd HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 404),
    (b"GET /v1/../metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 404)])
def test_refusals(served, data, status):
    answer = talk(served, data)
    assert statuses(answer) == [status], answer
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["message"]


def test_a_large_body_that_is_refused_still_gets_its_answer(served):
    with connect(served) as s:
        s.sendall(b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 20000000\r\n\r\n")
        try:
            for _ in range(20):
                s.sendall(b"x" * 100000)
        except (ConnectionResetError, BrokenPipeError):
            pass
        assert statuses(read_all(s)) == [413]


def test_expect_continue(served):
    with connect(served) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\n"
                  b"Content-Length: %d\r\n\r\n" % len(BODY))
        assert s.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        s.sendall(BODY)
        assert statuses(read_all(s)) == [200]


def test_pipelined_requests_are_answered_in_order(served):
    data = b""
    for i in range(100):
        if i % 3:
            data += b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
        else:
            data += post(json.dumps({"prompt": f"p{i}", "max_tokens": 1, "temperature": 0}).encode(), close=False)
    data += b"GET /nothing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answer = talk(served, data)
    assert statuses(answer) == [200] * 100 + [404]
    parts = answer.split(b"HTTP/1.1 ")[1:]
    for i in range(0, 100, 3):
        want = fake_model.decode(fake_model.generate(fake_model.encode(f"p{i}"), 1))
        assert json.loads(parts[i].split(b"\r\n\r\n", 1)[1])["choices"][0]["text"] == want


def test_head_is_get_without_the_body(served):
    answer = talk(served, b"HEAD /health HTTP/1.1\r\nHost: a\r\n\r\nHEAD /nothing HTTP/1.1\r\nHost: a\r\n\r\n"
                  b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert statuses(answer) == [200, 404, 200]
    parts = answer.split(b"HTTP/1.1 ")[1:]
    assert parts[0].endswith(b"\r\n\r\n") and parts[1].endswith(b"\r\n\r\n") and parts[2].endswith(b'{"status":"ok"}')
    assert b"Content-Length: 15\r\n" in parts[0]


def test_byte_by_byte(served):
    with connect(served) as s:
        for b in post():
            s.sendall(bytes([b]))
        assert statuses(read_all(s)) == [200]


def test_http_1_0(served):
    answer = talk(served, post(version=b"1.0", close=False))
    assert statuses(answer) == [200] and b"Connection: close" in answer
    body = json.dumps({"prompt": "x", "max_tokens": 3, "stream": True}).encode()
    answer = talk(served, post(body, version=b"1.0", close=False))
    assert b"chunked" not in answer and answer.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense", b"{", b'{"prompt":"x","prompt":"y"}', b'{"prompt":"\xff"}',
                                  b'{"prompt":' + b"[" * 100000, b'{"prompt":1e999}', b"\xef\xbb\xbf{}", b"null"])
def test_bad_json(served, body):
    start = time.monotonic()
    answer = talk(served, post(body))
    assert statuses(answer) == [400] and b'"error"' in answer
    assert time.monotonic() - start < 5


def test_deadlines(stage):
    d = stage.router("--head-ms", 300, "--idle-ms", 600)
    with connect(d) as slow, connect(d) as idle:
        start = time.monotonic()
        slow.sendall(b"GET / HT")
        assert slow.recv(100) == b""  # cut while its head dribbles
        assert 0.2 < time.monotonic() - start < 3
        assert idle.recv(100) == b""
    with connect(d) as s:  # a dribbling client is not saved by sending a byte now and then
        start = time.monotonic()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            for _ in range(200):
                s.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - start < 5


def test_connection_limit(stage):
    d = stage.router("--max-connections", 5)
    held = [connect(d) for _ in range(5)]
    wait_for(lambda: statuses(talk(d, b"")) == [503], 3, "the refusal")
    held.pop().close()
    wait_for(lambda: statuses(talk(d, b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")) == [200], 3,
             "a free place")
    for s in held:
        s.close()


def test_a_client_that_does_not_read_is_dropped_alone(stage):
    d = stage.router("--max-backlog-bytes", 65536)
    stage.fake("fake-0", "--max-positions", 65536, "--kv-pages", 65536)
    d.wait_ready()
    body = json.dumps({"prompt": "x", "max_tokens": 60000, "stream": True, "logprobs": 5, "seed": 1}).encode()
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", d.port))
    deaf.sendall(post(body))
    good = {}

    def listen():
        good["answer"] = talk(d, post(json.dumps({"prompt": "y", "max_tokens": 2000, "stream": True, "seed": 1}).encode()))

    t = threading.Thread(target=listen)
    t.start()
    wait_for(lambda: d.metric("dspark_cancelled_total") == 1, 20, "the cut")
    t.join(30)
    assert good["answer"].endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert d.metric("dspark_http_dropped_total") == 1
    deaf.close()


def test_idle_connections_cost_little(stage):
    d = stage.router()

    def rss():
        return int(next(line for line in open(f"/proc/{d.process.pid}/status") if line.startswith("VmRSS")).split()[1])

    assert d.get("/health")[0] == 200
    before = rss()
    held = []
    for _ in range(500):
        s = connect(d)
        s.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert s.recv(1000).startswith(b"HTTP/1.1 200")
        held.append(s)
    assert d.metric("dspark_http_connections") == 501
    assert (rss() - before) / 500 < 32, "KiB per idle connection"
    for s in held:
        s.close()
