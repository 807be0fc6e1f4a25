"""Command line, configuration, exit codes, drain."""

import json
import signal
import subprocess
import threading
import time

import fake_model
import pytest
from conftest import BIN, wait_for


def run(*args):
    p = subprocess.run([BIN / "dsparkd", *map(str, args)], capture_output=True, text=True, timeout=20,
                       stdin=subprocess.DEVNULL)
    return p.returncode, p.stdout + p.stderr


def test_help_and_reference():
    code, text = run("--help")
    assert code == 0 and "--model" in text and "--listen" in text and "Exit codes" in text
    code, text = run("--help-markdown")
    assert code == 0 and "worker_timeout_ms" in text
    assert run("--version")[0] == 0


@pytest.mark.parametrize("args,code,words", [
    ([], 64, "--model"), (["--model", "/nonexistent"], 66, "nonexistent"), (["--bogus"], 64, "bogus"),
    (["--model", ".", "--workers", "x"], 64, "workers"), (["--model", ".", "--workers", "65"], 64, "workers"),
    (["--model", ".", "--workers", "0"], 64, "bind-workers"), (["--model", ".", "--device", "tpu"], 64, "device"),
    (["--model", ".", "--listen", "nowhere"], 64, "listen"), (["--model", ".", "--listen", "1.2.3.4:99999"], 64, "listen"),
    (["--model", ".", "--worker-timeout-ms", "60"], 64, "heartbeat_ms"), (["--config", "/nonexistent"], 64, "nonexistent")])
def test_refusals(args, code, words):
    got, text = run(*args)
    assert got == code and words in text, text


def test_port_in_use(stage):
    d = stage.router()
    code, text = run("--model", stage.folder / "tiny", "--listen", f"127.0.0.1:{d.port}", "--workers", 0, "--bind-workers",
                     f"ipc://{stage.folder}/w2")
    assert code == 74 and "listen" in text


def test_file_flag_and_check(stage):
    conf = stage.folder / "conf"
    conf.write_text("queue_ms = 123\nmax_waiting = 7\nlisten = 127.0.0.1:0\n")
    model = fake_model.write_model(stage.folder / "tiny")
    code, text = run("--model", model, "--config", conf, "--max-waiting", 9, "--check-config")
    assert code == 0 and "queue_ms = 123" in text and "max_waiting = 9" in text
    conf.write_text("no_such_key = 1\n")
    code, text = run("--model", model, "--config", conf, "--check-config")
    assert code == 64 and "no_such_key" in text


def test_environment_and_precedence(stage, monkeypatch):
    conf = stage.folder / "conf"
    conf.write_text("queue_ms = 1\nmax_waiting = 2\nmax_body_bytes = 3M\n")
    monkeypatch.setenv("DSPARK_MAX_WAITING", "20")
    monkeypatch.setenv("DSPARK_MAX_BODY_BYTES", "4M")
    monkeypatch.setenv("DSPARK_SOMETHING_ELSE", "x")  # programs share the prefix
    code, text = run("--model", ".", "--config", conf, "--max-body-bytes", "5M", "--check-config")
    assert code == 0 and {"queue_ms = 1", "max_waiting = 20", "max_body_bytes = 5M"} <= set(text.splitlines()), text
    monkeypatch.setenv("DSPARK_MAX_WAITING", "many")
    code, text = run("--model", ".", "--check-config")
    assert code == 64 and "DSPARK_MAX_WAITING" in text and "65536" in text


def test_check_config_checks_what_needs_no_file():
    for args, word in ((["--listen", "1.2.3.4"], "listen"), (["--workers", "0"], "bind-workers"),
                       (["--worker-timeout-ms", "60"], "heartbeat_ms")):
        code, text = run("--model", ".", "--check-config", *args)
        assert code == 64 and word in text


def test_corrupt_tokenizer(stage):
    model = fake_model.write_model(stage.folder / "bad")
    (model / "tokenizer.json").write_text("{")
    code, text = run("--model", model, "--workers", 0, "--bind-workers", f"ipc://{stage.folder}/w3", "--listen", "127.0.0.1:0")
    assert code == 65 and "tokenizer" in text


def test_a_model_without_tokenizer_is_served_by_ids(stage):
    (stage.folder / "bare").mkdir()
    d = stage.daemon(stage.folder / "bare", "--workers", 0, "--bind-workers", stage.endpoint)
    stage.fake()
    d.wait_ready()
    ids = [20, 30, 40]
    status, a = d.post("/v1/completions", {"prompt": ids, "max_tokens": 3, "temperature": 0, "return_token_ids": True,
                                           "logprobs": 1, "echo": True})
    assert status == 200 and a["choices"][0]["token_ids"] == fake_model.generate(ids, 3)
    assert a["choices"][0]["logprobs"]["tokens"][0] == "token_id:20"
    assert d.post("/v1/completions", {"prompt": "x"})[1]["error"]["param"] == "prompt"
    assert d.post("/v1/completions", {"prompt": ids, "stop": "x"})[1]["error"]["param"] == "stop"
    assert d.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})[0] == 400


def test_served_model_name(stage):
    d = stage.router("--served-model-name", "my/model")
    assert d.get("/v1/models")[1]["data"][0]["id"] == "my/model"
    assert d.get("/v1/models/my/model")[0] == 200


def drain(stage, n, signals):
    d = stage.router("--drain-ms", 20000)
    stage.fake("a", "--step-us", 10000)
    d.wait_ready()
    out = {}
    body = {"prompt": "d", "max_tokens": n, "temperature": 0, "stream": True}
    t = threading.Thread(target=lambda: out.update(answer=d.request("POST", "/v1/completions", body, timeout=60)))
    t.start()
    wait_for(lambda: d.metric("dspark_running") == 1, what="the request")
    for _ in range(signals):
        d.signal(signal.SIGTERM)
        time.sleep(0.2)
    return d, t, out


def test_sigterm_drains(stage):
    d, t, out = drain(stage, 100, 1)
    assert d.process.poll() is None
    t.join(30)
    assert out["answer"][0] == 200 and out["answer"][1].rstrip().endswith("data: [DONE]")
    text = "".join(json.loads(e[6:])["choices"][0]["text"] for e in out["answer"][1].split("\n\n") if e.startswith("data: {"))
    assert text == fake_model.decode(fake_model.generate(fake_model.encode("d"), 100))
    assert d.wait(10) == 0


def test_a_second_sigterm_stops(stage):
    d, t, out = drain(stage, 4000, 2)
    assert d.wait(5) == 75
    t.join(30)
    assert '"draining"' in out["answer"][1].rstrip().split("\n\n")[-1]  # the stream ends with an error event, not in silence


def test_idle_sigterm(stage):
    d = stage.router()
    stage.fake()
    d.wait_ready()
    d.signal(signal.SIGTERM)
    assert d.wait(5) == 0
    assert stage.programs[-1].wait(5) == 0  # the worker was told to go, and went
