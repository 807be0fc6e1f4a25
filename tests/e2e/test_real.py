"""The embedded default with a real, tiny checkpoint: dsparkd starts its own worker, and the answers are the model's."""

import os
import pathlib
import signal
import threading
import time

import pytest
from conftest import BIN, wait_for

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
GOLDEN = ROOT / "tests" / "golden" / "data" / "qwen3-f32"
DEMO = ROOT / "models" / "spark-demo"

pytestmark = pytest.mark.skipif(not (BIN / "dspark-worker").exists(), reason="no worker was built")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from conftest import Stage
    s = Stage(tmp_path_factory.mktemp("real"))
    d = s.daemon(GOLDEN, "--threads", 1, "--kv-bytes", "64M", "--max-seqs", 16)
    d.wait_ready(30)
    yield d
    s.end()


IDS = [5, 17, 3, 99, 42, 7, 100, 31]


def ask(d, **body):
    status, answer = d.post("/v1/completions", {"prompt": IDS, "return_token_ids": True} | body)
    assert status == 200, answer
    return answer


def test_same_seed_alone_and_in_a_crowd(model):
    alone = [ask(model, max_tokens=20, seed=i, temperature=0.9)["choices"][0]["token_ids"] for i in range(12)]
    crowd = {}

    def one(i):
        crowd[i] = ask(model, max_tokens=20, seed=i, temperature=0.9)["choices"][0]["token_ids"]

    threads = [threading.Thread(target=one, args=(i,)) for i in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [crowd[i] for i in range(12)] == alone


def test_echo_scores_what_was_generated(model):
    """Prompt log-probabilities of an answer equal those it was generated with."""
    first = ask(model, max_tokens=10, temperature=0, logprobs=0)["choices"][0]
    again = ask(model, prompt=IDS + first["token_ids"], max_tokens=0, echo=True, logprobs=0)["choices"][0]
    assert again["logprobs"]["token_logprobs"][len(IDS):] == first["logprobs"]["token_logprobs"]
    assert again["logprobs"]["token_logprobs"][0] is None


def test_greedy_is_the_likeliest(model):
    c = ask(model, max_tokens=10, temperature=0, logprobs=1)["choices"][0]
    for own, top in zip(c["logprobs"]["token_logprobs"], c["logprobs"]["top_logprobs"]):
        assert own == max(top.values())


def test_the_worker_is_restarted_and_the_stream_goes_on(stage):
    d = stage.daemon(GOLDEN, "--threads", 1, "--kv-bytes", "64M", "--max-seqs", 4)
    d.wait_ready(30)
    want = ask(d, max_tokens=1000, seed=3, ignore_eos=True)["choices"][0]["token_ids"]
    out = {}
    t = threading.Thread(target=lambda: out.update(answer=ask(d, max_tokens=1000, seed=3, ignore_eos=True)))
    t.start()
    wait_for(lambda: d.metric("dspark_running") == 1, what="the request")
    children = pathlib.Path(f"/proc/{d.process.pid}/task/{d.process.pid}/children").read_text().split()
    assert len(children) == 1
    os.kill(int(children[0]), signal.SIGKILL)
    t.join(30)
    assert out["answer"]["choices"][0]["token_ids"] == want
    wait_for(d.ready, 10, "/ready")


def test_worker_ends_with_its_router(stage):
    d = stage.daemon(GOLDEN, "--threads", 1, "--kv-bytes", "64M")
    d.wait_ready(30)
    child = pathlib.Path(f"/proc/{d.process.pid}/task/{d.process.pid}/children").read_text().split()[0]
    d.signal(signal.SIGKILL)
    d.wait()
    wait_for(lambda: not pathlib.Path(f"/proc/{child}").exists() or
             ") Z" in pathlib.Path(f"/proc/{child}/stat").read_text(), 5, "the worker's end")


def test_a_bad_model_ends_the_router(stage):
    bad = stage.folder / "bad"
    bad.mkdir()
    (bad / "config.json").write_text("{}")
    d = stage.daemon(bad)
    assert d.wait(15) in (65, 66), d.text()


@pytest.mark.skipif(not (DEMO / "model.safetensors").exists(), reason="the demo model is not here")
def test_demo_model_chats(stage):
    d = stage.daemon(DEMO, "--kv-bytes", "64M")
    start = time.monotonic()
    d.wait_ready(30)
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20, "seed": 1}
    status, a = d.post("/v1/chat/completions", body)
    assert status == 200 and a["choices"][0]["message"]["content"]
    assert time.monotonic() - start < 30
