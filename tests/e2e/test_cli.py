"""dsparkctl and dspark-bench against a stub of the daemon's HTTP door: requests sent, output, exit codes."""
import json
import os
import pty
import select
import signal
import subprocess
import time

import pytest

from stub_daemon import StubDaemon

BIN = os.environ.get("DSPARK_BIN", "build/release/bin")


@pytest.fixture
def stub():
    with StubDaemon() as s:
        yield s


def run(program, *args, stdin="", env=None, timeout=60):
    return subprocess.run([f"{BIN}/{program}", *args], input=stdin, capture_output=True, text=True, timeout=timeout,
                          env={**os.environ, **(env or {})})


def ctl(stub, *args, **kw):
    return run("dsparkctl", *args, "--url", stub.url, **kw)


def test_models(stub):
    r = ctl(stub, "models")
    assert (r.returncode, r.stdout) == (0, "stub\t2048 tokens\n")
    assert json.loads(ctl(stub, "models", "--json").stdout)["data"][0]["id"] == "stub"


def test_status_table_and_json(stub):
    r = ctl(stub, "status", "--interval-ms", "100")
    assert r.returncode == 0, r.stderr
    lines = r.stdout.splitlines()
    assert "ready, model stub, 2 workers" in lines[0]
    assert lines[3].split()[:4] == ["w0", "up", "3", "2"] and "25%" in lines[3]
    assert lines[5].split()[0] == "total"
    view = json.loads(ctl(stub, "status", "--json", "--interval-ms", "100").stdout)
    assert view["total"]["running"] == 4 and view["state"] == "ready"
    assert 500 < view["workers"][0]["output_tokens_per_s"] < 1100


def test_status_while_draining(stub):
    stub.ready = False
    assert "draining" in ctl(stub, "status", "--interval-ms", "50").stdout


def test_tokenize(stub):
    r = ctl(stub, "tokenize", "one two three")
    assert r.stdout == "10 11 12\n3 tokens\n"
    assert stub.requests[-1] == ("/tokenize", {"prompt": "one two three"})
    assert json.loads(ctl(stub, "tokenize", "x", "--json").stdout) == {"tokens": [10], "count": 1}


def test_complete_streams_and_sends_the_options(stub):
    r = ctl(stub, "complete", "once", "upon", "--max-tokens", "3", "--temperature=0", "--seed", "5", "--stop", "END")
    assert (r.returncode, r.stdout) == (0, "a b ü\n")
    path, body = stub.requests[-1]
    assert path == "/v1/completions"
    assert body["prompt"] == "once upon" and body["stream"] and body["max_tokens"] == 3
    assert body["temperature"] == 0 and body["seed"] == 5 and body["stop"] == "END" and body["model"] == "stub"


def test_complete_reads_stdin_and_writes_json(stub):
    r = ctl(stub, "complete", "--json", "--model-id", "m", stdin="from stdin")
    answer = json.loads(r.stdout)
    assert answer["text"] == "a b ü\n" and answer["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 4, "cached_tokens": 3,
                               "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}
    assert stub.requests[-1][1]["prompt"] == "from stdin" and stub.requests[-1][1]["model"] == "m"


def test_chat_keeps_the_conversation(stub):
    r = ctl(stub, "chat", "--system", "be brief", "--no-thinking", stdin="hello\nmore\n/reset\nanew\n")
    assert (r.returncode, r.stdout) == (0, "a b ü\n\n" * 3)
    turns = [b["messages"] for p, b in stub.requests if p == "/v1/chat/completions"]
    assert [m["role"] for m in turns[1]] == ["system", "user", "assistant", "user"]
    assert turns[1][2]["content"] == "a b ü\n" and turns[1][3]["content"] == "more"
    assert [m["content"] for m in turns[2]] == ["be brief", "anew"]
    assert stub.requests[-1][1]["chat_template_kwargs"] == {"enable_thinking": False}


def test_reasoning_is_shown_dim_at_a_terminal_only(stub):
    stub.thought = "let me see"
    assert ctl(stub, "chat", "hello").stdout == "a b ü\n\n"
    r = ctl(stub, "chat", "hello", "--marks", "color")
    assert r.stdout == "\x1b[0m\x1b[2mlet me see\n\x1b[0ma b ü\n\n"


def test_interrupt_stops_the_request(stub):
    stub.words, stub.gap_s = ["x"] * 400, 0.05
    p = subprocess.Popen([f"{BIN}/dsparkctl", "complete", "go", "--url", stub.url], stdout=subprocess.PIPE)
    assert p.stdout.read(1) == b"x"
    p.send_signal(signal.SIGINT)
    assert p.wait(10) == 130
    for _ in range(100):
        if stub.disconnects:
            break
        time.sleep(0.05)
    assert stub.disconnects == 1


@pytest.mark.parametrize("args,code,words", [
    (["complete", "x"], 1, "max_tokens is 9 (HTTP 400)"),
])
def test_errors_of_the_daemon_are_told(stub, args, code, words):
    stub.fail = (400, {"error": {"message": "max_tokens is 9", "param": "max_tokens"}})
    r = ctl(stub, *args)
    assert r.returncode == code and words in r.stderr


def test_a_broken_stream_is_an_error(stub):
    stub.break_off = True
    r = ctl(stub, "complete", "x")
    assert r.returncode == 74 and "the worker was lost" in r.stderr


def test_wrong_usage_and_no_daemon():
    assert run("dsparkctl").returncode == 64
    r = run("dsparkctl", "sttus")
    assert r.returncode == 64 and "commands are status" in r.stderr
    r = run("dsparkctl", "status", "--intervall-ms", "3")
    assert r.returncode == 64 and "did you mean --interval-ms?" in r.stderr
    r = run("dsparkctl", "models", "--url", "http://127.0.0.1:1")
    assert r.returncode == 74 and "127.0.0.1:1" in r.stderr
    assert run("dsparkctl", "models", env={"DSPARK_URL": "http://127.0.0.1:1"}).returncode == 74
    assert run("dsparkctl", "--help").stdout.startswith("Usage: dsparkctl")


def read_until(fd, words, seconds=10):
    seen, end = b"", time.time() + seconds
    while words not in seen and time.time() < end:
        if select.select([fd], [], [], 0.1)[0]:
            seen += os.read(fd, 65536)
    return seen


def test_top_draws_and_quits(stub):
    pid, fd = pty.fork()
    if pid == 0:
        os.environ["LC_ALL"] = "C.UTF-8"
        os.execv(f"{BIN}/dsparkctl", ["dsparkctl", "top", "--url", stub.url, "--interval-ms", "100"])
    seen = read_until(fd, "█".encode())
    assert b"\x1b[?1049h" in seen and "█".encode() in seen
    assert b"w1" in read_until(fd, b"w1")
    os.write(fd, b"q")
    seen = read_until(fd, b"\x1b[?1049l")
    assert b"\x1b[?25h\x1b[?1049l" in seen
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(fd)


def test_top_without_a_terminal_is_a_table(stub):
    r = ctl(stub, "top", "--interval-ms", "50")
    assert r.returncode == 0 and "WORKER" in r.stdout and "\x1b" not in r.stdout


def bench(stub, *args, **kw):
    return run("dspark-bench", "--url", stub.url, *args, **kw)


def test_bench_sweep(stub, tmp_path):
    stub.words, stub.gap_s = [f" w{i}" for i in range(20)], 0.01
    out = tmp_path / "out.json"
    r = bench(stub, "--concurrency", "1,4", "--requests", "8", "--max-tokens", "20", "--prompt-tokens", "33",
              "--json", str(out))
    assert r.returncode == 0, r.stderr
    assert len(r.stdout.splitlines()) == 3
    runs = json.loads(out.read_text())["runs"]
    for one, conc in zip(runs, (1, 4)):
        assert one["concurrency"] == conc and one["ok"] == 8 and one["failed"] == 0
        assert one["output_tokens"] == 160 and one["prompt_tokens"] == 56 and one["itl_ms"]["n"] == 8 * 19
        assert 10 <= one["itl_ms"]["p50"] < 100 and one["ttft_ms"]["p50"] <= one["e2e_ms"]["p50"]
        assert one["ttft_ms"]["p50"] <= one["ttft_ms"]["p90"] <= one["ttft_ms"]["p99"] <= one["ttft_ms"]["max"]
    assert runs[1]["seconds"] < runs[0]["seconds"]
    sent = [b for p, b in stub.requests if p == "/v1/completions"]
    assert len(sent) == 17  # one to warm up
    assert all(len(b["prompt"]) == 33 for b in sent)
    assert len({tuple(b["prompt"]) for b in sent}) == 17 and len({b["seed"] for b in sent}) == 17


def test_bench_open_loop_counts_from_the_planned_arrival(stub, tmp_path):
    stub.words, stub.gap_s = ["x"] * 5, 0.02
    out = tmp_path / "out.json"
    r = bench(stub, "--rate", "50", "--arrival", "constant", "--requests", "20", "--max-outstanding", "1",
              "--json", str(out))
    assert r.returncode == 0, r.stderr
    one = json.loads(out.read_text())["runs"][0]
    assert one["ok"] == 20 and one["late"] >= 15
    # one at a time, 100 ms each, planned 20 ms apart: the last waits for about 1.6 s
    assert one["ttft_ms"]["max"] > 1000


def test_bench_conversations(stub, tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"turns": ["first", "second"]}\n{"prompt": "raw"}\n')
    r = bench(stub, "--prompts", str(prompts), "--concurrency", "1", "--requests", "3", "--warmup", "0")
    assert r.returncode == 0, r.stderr
    (p0, b0), (p1, b1), (p2, b2) = stub.requests
    assert p0 == p1 == "/v1/chat/completions" and p2 == "/v1/completions"
    assert [m["content"] for m in b1["messages"]] == ["first", "a b ü\n", "second"]
    assert b2["prompt"] == "raw"


def test_bench_256_streams(stub, tmp_path):
    stub.words, stub.gap_s = ["x"] * 4, 0.2
    out = tmp_path / "out.json"
    r = bench(stub, "--concurrency", "256", "--requests", "256", "--json", str(out))
    assert r.returncode == 0, r.stderr
    one = json.loads(out.read_text())["runs"][0]
    assert one["ok"] == 256 and one["output_tokens"] == 1024


def test_bench_json_has_stdout_for_itself(stub):
    r = bench(stub, "--concurrency", "1", "--requests", "1", "--json", "-")
    assert json.loads(r.stdout)["runs"][0]["ok"] == 1 and "TTFT" in r.stderr


def test_bench_failures(stub, tmp_path):
    stub.fail = (429, {"error": {"message": "the queue is full"}})
    r = bench(stub, "--concurrency", "2", "--requests", "6", "--warmup", "0")
    assert "the queue is full" in r.stdout and " 6 " in r.stdout
    r = bench(stub, "--concurrency", "2", "--duration-s", "30", "--warmup", "0")
    assert r.returncode == 74 and "none went well" in r.stderr
    assert bench(stub, "--concurrency", "0").returncode == 1
    assert bench(stub, "nonsense").returncode == 64
    assert bench(stub, "--prompts", str(tmp_path / "none")).returncode == 1


def test_make_model_repeats(tmp_path):
    for name in ("a", "b"):
        r = run("dspark-bench", "make-model", "--shape", "tiny", "--dir", str(tmp_path / name))
        assert r.returncode == 0, r.stderr
    weights = (tmp_path / "a/model.safetensors").read_bytes()
    assert weights == (tmp_path / "b/model.safetensors").read_bytes()
    size = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8:8 + size])
    assert header["model.layers.1.self_attn.q_proj.weight"]["shape"] == [64, 64]
    assert max(t["data_offsets"][1] for t in header.values()) == len(weights) - 8 - size
    assert json.loads((tmp_path / "a/config.json").read_text())["hidden_size"] == 64
    r = run("dspark-bench", "make-model", "--shape", "huge", "--dir", str(tmp_path / "c"))
    assert r.returncode == 1 and "known are tiny" in r.stderr


def test_forward_on_a_random_model(tmp_path):
    r = run("dspark-bench", "forward", "--random", "tiny", "--dir", str(tmp_path), "--rows", "1,3,16", "--reps", "3",
            "--context", "40", "--sequences", "2", "--threads", "1", "--json", "-")
    assert r.returncode == 0, r.stderr
    passes = json.loads(r.stdout)["passes"]
    assert [p["rows"] for p in passes] == [1, 3, 16] and [p["sequences"] for p in passes] == [1, 2, 2]
    assert passes[0]["ratio"] == 1 and all(0 < p["min_ms"] <= p["median_ms"] for p in passes)
    r = run("dspark-bench", "forward", "--random", "tiny", "--dir", str(tmp_path), "--context", "5000")
    assert r.returncode == 1 and "position" in r.stderr
    assert run("dspark-bench", "forward").returncode == 1
