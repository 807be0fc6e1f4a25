"""The embedded default with a real, tiny checkpoint: dsparkd starts its own worker, and the answers are the model's."""

import math
import os
import pathlib
import signal
import subprocess
import threading
import time

import fake_model
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


def ids(model, **body):
    return ask(model, **body)["choices"][0]["token_ids"]


GREEDY = dict(max_tokens=24, temperature=0, ignore_eos=True)


def test_filters_that_leave_one_token_are_greedy(model):
    greedy = ids(model, **GREEDY)
    for one in (dict(top_k=1), dict(top_p=1e-6), dict(min_p=1.0)):
        assert ids(model, **{**GREEDY, "temperature": 2.0, "seed": 5, **one}) == greedy, one
    assert ids(model, **{**GREEDY, "temperature": 2.0, "seed": 5}) != greedy
    assert ids(model, **{**GREEDY, "top_k": -1, "min_p": 0, "top_p": 1}) == greedy


def test_logit_bias_forces_and_forbids(model):
    greedy = ids(model, **GREEDY)
    assert ids(model, **GREEDY, logit_bias={"77": 100}) == [77] * 24
    banned = ids(model, **GREEDY, logit_bias={str(t): -100 for t in set(greedy)})
    assert not set(banned) & set(greedy)


def test_penalties_count_the_tokens(model):
    greedy = ids(model, **GREEDY)
    bias = {str(t): 60 for t in (70, 71, 72, 73)}  # far above all others, so that only penalties choose among them
    alone = ids(model, **GREEDY, logit_bias=bias)
    assert set(alone) <= {70, 71, 72, 73} and len(set(alone[:4])) < 4
    spread = ids(model, **GREEDY, logit_bias=bias, frequency_penalty=2.0)
    assert max(spread.count(t) for t in (70, 71, 72, 73)) < max(alone.count(t) for t in (70, 71, 72, 73))
    assert ids(model, **GREEDY, presence_penalty=2.0) != greedy or len(set(greedy)) == len(greedy)
    assert ids(model, **GREEDY, repetition_penalty=1.0) == greedy != ids(model, **GREEDY, repetition_penalty=5.0)


def test_stop_token_ids_and_min_tokens(model):
    greedy = ids(model, **GREEDY)
    stop = greedy[3]
    first = greedy.index(stop)
    c = ask(model, **GREEDY, stop_token_ids=[stop])
    assert c["choices"][0]["token_ids"] == greedy[:first + 1] and c["choices"][0]["finish_reason"] == "stop"
    assert c["usage"]["completion_tokens"] == first + 1
    later = ids(model, **GREEDY, stop_token_ids=[stop], min_tokens=first + 3)
    assert later[:first] == greedy[:first] and stop not in later[:first + 3]
    c = ask(model, max_tokens=24, temperature=0, logit_bias={"3": 100})  # 3 is an eos of this checkpoint
    assert c["choices"][0]["finish_reason"] == "stop" and c["usage"]["completion_tokens"] == 1
    c = ask(model, max_tokens=24, temperature=0, logit_bias={"3": 100}, ignore_eos=True)
    assert c["choices"][0]["token_ids"] == [3] * 24 and c["choices"][0]["finish_reason"] == "length"


def test_prompts_in_a_batch_are_the_prompts_alone(model):
    prompts = [IDS, IDS[:3], [9], IDS * 20]
    batch = ask(model, prompt=prompts, max_tokens=8, seed=2, n=2, logprobs=1, echo=True)
    assert [c["index"] for c in batch["choices"]] == list(range(8))
    assert batch["usage"]["prompt_tokens"] == sum(map(len, prompts)) and batch["usage"]["completion_tokens"] == 64
    for i, p in enumerate(prompts):
        alone = ask(model, prompt=p, max_tokens=8, seed=2, n=2, logprobs=1, echo=True)["choices"]
        for k in (0, 1):
            assert batch["choices"][2 * i + k]["token_ids"] == alone[k]["token_ids"]
            assert batch["choices"][2 * i + k]["logprobs"] == alone[k]["logprobs"]
            assert batch["choices"][2 * i + k]["prompt_token_ids"] == p


def test_logprobs_are_probabilities(model):
    c = ask(model, max_tokens=6, temperature=0.7, seed=1, logprobs=20)["choices"][0]["logprobs"]
    for own, top in zip(c["token_logprobs"], c["top_logprobs"]):
        assert 0.1 < sum(math.exp(x) for x in top.values()) <= 1.000001 and own in top.values() and len(top) in (20, 21)


def test_the_context_is_filled_to_the_last_position(model):
    """2048 positions: prompt + output may be 2049, since the last token is not fed back; one more is refused."""
    prompt = (IDS * 300)[:2040]
    c = ask(model, prompt=prompt, max_tokens=9, temperature=0, ignore_eos=True)
    assert c["usage"]["total_tokens"] == 2049
    status, body = model.post("/v1/completions", {"prompt": prompt, "max_tokens": 10})
    assert status == 400 and body["error"]["code"] == "context_length_exceeded" and "2048" in body["error"]["message"]
    scored = ask(model, prompt=prompt + [1] * 8, max_tokens=0, echo=True, logprobs=0)["choices"][0]["logprobs"]
    assert len(scored["token_logprobs"]) == 2048 and scored["token_logprobs"][0] is None
    assert model.post("/v1/completions", {"prompt": prompt + [1] * 9, "max_tokens": 0, "echo": True})[0] == 400


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


def test_ids_without_a_text(stage):
    """Vocabularies are padded beyond the tokenizer: such ids are generated, named, decoded to nothing, and offset nothing."""
    subprocess.run([BIN / "dspark-bench", "make-model", "--shape", "tiny", "--dir", stage.folder / "padded"], check=True,
                   capture_output=True)
    d = stage.daemon(fake_model.write_model(stage.folder / "padded"), "--threads", 1, "--kv-bytes", "4M").wait_ready(30)
    special, odd, a = 1, 300, fake_model.encode("a")[0]  # <|im_start|>, beyond the tokenizer's 264, a letter

    def forced(path, body, tokens):
        """An answer of these tokens, by a bias that the next one outgrows."""
        bias = {str(t): 100 - 1.3 * i for i, t in enumerate(tokens)}
        return d.post(path, {**body, "max_tokens": len(tokens), "temperature": 0, "logit_bias": bias, "presence_penalty": 2,
                             "frequency_penalty": 2, "return_token_ids": True})[1]["choices"][0]

    c = forced("/v1/completions", {"prompt": "x", "logprobs": 0, "echo": True}, [odd, special, a])
    assert c["token_ids"] == [odd, special, a] and c["text"] == "xa"
    assert c["logprobs"]["tokens"] == ["x", "token_id:300", "<|im_start|>", "a"]
    assert c["logprobs"]["text_offset"] == [0, 1, 1, 1]
    c = forced("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "logprobs": True}, [odd, a])
    assert [e["bytes"] for e in c["logprobs"]["content"]] == [[], [97]] and c["message"]["content"] == "a"
    assert d.post("/detokenize", {"tokens": [a, odd, 511, a]}) == (200, {"prompt": "aa"})
    status, body = d.post("/detokenize", {"tokens": [a, 512]})
    assert status == 400 and body["error"]["param"] == "tokens" and "[0, 511]" in body["error"]["message"]


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
