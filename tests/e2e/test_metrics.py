"""/metrics by the rules of the Prometheus text format 0.0.4, read strictly, after every kind of request."""

import math
import re
import socket

import pytest
from conftest import wait_for

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
SAMPLE = re.compile(rf"^({NAME})(?:\{{(.*)\}})? (\S+)$")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(?:,|$)')


def labels(text):
    out, at = [], 0
    while at < len(text or ""):
        m = LABEL.match(text, at)
        assert m, f"bad labels: {text}"
        out.append((m[1], m[2]))
        at = m.end()
    assert len({k for k, _ in out}) == len(out) and not (text or "").endswith(",")
    return tuple(sorted(out))


def parse(page):
    """{family: (type, {(sample name, labels): value})}; every departure from the format is an assertion."""
    assert page.endswith("\n") and "\r" not in page
    families, family, seen = {}, None, set()
    for line in page.splitlines():
        if line.startswith("# HELP "):
            name, help_text = line[7:].split(" ", 1)
            assert re.fullmatch(NAME, name) and help_text.strip() and name not in families, line
            family = name
            families[family] = [None, {}]
        elif line.startswith("# TYPE "):
            name, kind = line[7:].split(" ")
            assert name == family and families[family][0] is None and not families[family][1], line
            assert kind in ("counter", "gauge", "histogram"), line
            families[family][0] = kind
        else:
            m = SAMPLE.match(line)
            assert m and family, line
            kind, samples = families[family]
            suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
            assert m[1] in {family + s for s in suffixes}, f"{line} does not belong to {family}"
            key = (m[1], labels(m[2]))
            assert key not in seen, f"twice: {line}"
            seen.add(key)
            value = float(m[3])
            assert not math.isnan(value) and (kind == "gauge" or value >= 0), line
            samples[key] = value
    return families


def check(families):
    for name, (kind, samples) in families.items():
        assert kind and samples, name
        assert (kind == "counter") == name.endswith("_total"), name
        if kind != "histogram":
            continue
        for (sample, labelset), count in samples.items():
            if sample != name + "_count":
                continue
            buckets = sorted((float(dict(k)["le"]), v) for (s, k), v in samples.items() if s == name + "_bucket" and
                             tuple(x for x in k if x[0] != "le") == labelset)
            assert buckets[-1] == (math.inf, count) and len(buckets) > 2
            assert [v for _, v in buckets] == sorted(v for _, v in buckets), name
            assert (name + "_sum", labelset) in samples


def exercise(d):
    ask = {"prompt": "m", "max_tokens": 4, "seed": 1}
    assert d.post("/v1/completions", ask)[0] == 200
    assert d.request("POST", "/v1/completions", {**ask, "stream": True})[0] == 200
    assert d.post("/v1/completions", {**ask, "temperature": 9})[0] == 400
    assert d.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2})[0] == 200
    assert d.get('/nothing"}\\here')[0] == 404
    with socket.create_connection(("127.0.0.1", d.port)) as s:
        s.sendall(b"nonsense\r\n\r\n")
        s.recv(1000)


def test_the_page_is_valid(stage):
    d = stage.router()
    check(parse(d.get("/metrics")[1]))  # before any worker
    stage.fake('odd "name" \\ here', "--draft-block", 4)
    d.wait_ready()
    exercise(d)
    wait_for(lambda: d.metric("dspark_worker_finished_total") >= 3, what="the worker's counts")
    status, page, headers = d.request("GET", "/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families = parse(page)
    check(families)
    worker = {dict(k).get("worker") for _, samples in families.values() for _, k in samples} - {None}
    assert worker == {'odd \\"name\\" \\\\ here'}
    requests = {(dict(k)["path"], dict(k)["code"]): v for (_, k), v in families["dspark_http_requests_total"][1].items()}
    assert requests[("/v1/completions", "200")] == 2 and requests[("/v1/completions", "400")] == 1
    assert families["dspark_first_token_seconds"][1][("dspark_first_token_seconds_count", ())] == 3
    assert not any("nothing" in path for path, _ in requests)  # a client cannot make series


def test_counters_never_fall(stage):
    d = stage.router()
    stage.fake("fake-0", "--draft-block", 4)
    d.wait_ready()
    before = {}
    for _ in range(5):
        exercise(d)
        now = {k: v for f in parse(d.get("/metrics")[1]).values() if f[0] != "gauge" for k, v in f[1].items()}
        assert all(now[k] >= v for k, v in before.items())
        before = now


@pytest.mark.parametrize("line", ["a 1", "# HELP a b\n# TYPE a counter\na 1\na 1", '# HELP a b\n# TYPE a gauge\na{x=1} 1',
                                  "# HELP a b\n# TYPE a gauge\nb 1", "# HELP a \n# TYPE a gauge\na 1",
                                  '# HELP a b\n# TYPE a gauge\na{x="\n"} 1', "# HELP a b\n# TYPE a gauge\na x"])
def test_the_reader_is_strict(line):
    with pytest.raises((AssertionError, ValueError)):
        parse(line + "\n")
