"""dsparkctl and dspark-bench against a real daemon with a fake worker, over HTTP and over RPC."""
import json
import re
import subprocess

import fake_model
import pytest
from conftest import BIN


def run(program, *args, stdin=""):
    return subprocess.run([BIN / program, *map(str, args)], input=stdin, capture_output=True, text=True, timeout=120)


@pytest.fixture(params=["http", "rpc"])
def door(request, served):
    return ["--url", served.url] if request.param == "http" else ["--rpc", f"ipc://{served.stage.folder}/rpc"]


def test_status(door):
    r = run("dsparkctl", "status", "--interval-ms", "300", *door)
    assert r.returncode == 0, r.stderr
    assert "ready, model tiny, 1 worker" in r.stdout
    assert re.search(r"^fake-0 +up ", r.stdout, re.M)
    view = json.loads(run("dsparkctl", "status", "--json", "--interval-ms", "300", *door).stdout)
    assert view["workers"][0]["kv_total"] == 16384 * 16


def test_models_and_tokenize(door):
    assert run("dsparkctl", "models", *door).stdout.startswith("tiny")
    ids = fake_model.encode("Hi you")
    assert json.loads(run("dsparkctl", "tokenize", "Hi you", "--json", *door).stdout)["tokens"] == ids


def test_complete_is_what_the_model_says(door):
    r = run("dsparkctl", "complete", "Hello", "--max-tokens", 30, "--temperature", 0, *door)
    assert r.returncode == 0, r.stderr
    assert r.stdout == fake_model.decode(fake_model.generate(fake_model.encode("Hello"), 30)) + "\n"
    r = run("dsparkctl", "complete", "Hello", "--max-tokens", 5, "--temperature", 0, "--json", *door)
    answer = json.loads(r.stdout)
    assert answer["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == 5
    assert answer["usage"]["prompt_tokens"] == 5


def test_wrong_model_is_told(served):
    r = run("dsparkctl", "complete", "x", "--model-id", "other", "--url", served.url)
    assert r.returncode == 1 and "other" in r.stderr


def test_chat(served):
    r = run("dsparkctl", "chat", "Hello there", "--max-tokens", 12, "--url", served.url)
    assert r.returncode == 0, r.stderr
    assert len(r.stdout) == 13


def test_bench(door, tmp_path):
    out = tmp_path / "out.json"
    r = run("dspark-bench", "--concurrency", "1,32", "--requests", 64, "--prompt-tokens", 50, "--max-tokens", 40,
            "--json", out, *door)
    assert r.returncode == 0, r.stderr
    for one in json.loads(out.read_text())["runs"]:
        assert one["ok"] == 64 and one["failed"] == 0, one["first_error"]
        assert one["prompt_tokens"] == 64 * 50 and one["output_tokens"] == 64 * 40
        assert one["ttft_ms"]["n"] == 64 and one["ttft_ms"]["p50"] > 0


def test_bench_open_loop(door, tmp_path):
    out = tmp_path / "out.json"
    r = run("dspark-bench", "--rate", 100, "--requests", 50, "--prompt-tokens", 8, "--max-tokens", 4, "--json", out,
            *door)
    assert r.returncode == 0, r.stderr
    assert json.loads(out.read_text())["runs"][0]["ok"] == 50
