"""Speculation through the router: same tokens, exact counts, who wrote which token, metrics, and a worker's death."""

import json
import re
import subprocess

import fake_model
import pytest
from conftest import BIN, wait_for

BLOCK = 5


def want(prompt, n, seed):
    return fake_model.decode(fake_model.generate(fake_model.encode(prompt), n, seed))


def drafting(stage, name="fake-0", *flags):
    return stage.fake(name, "--draft-block", BLOCK, "--draft-right", 0.7, *flags)


@pytest.fixture(scope="module")
def drafted(tmp_path_factory):
    import conftest

    s = conftest.Stage(tmp_path_factory.mktemp("drafted"))
    d = s.router("--rpc", f"ipc://{s.folder}/rpc")
    d.rpc = f"ipc://{s.folder}/rpc"
    drafting(s)
    d.wait_ready()
    yield d
    s.end()


def complete(d, **fields):
    status, body = d.post("/v1/completions", {"prompt": "abc", "max_tokens": 100, "seed": 3, "return_speculation": True, **fields})
    assert status == 200, body
    return body["choices"][0], body["usage"], body["usage"]["completion_tokens_details"]


def test_counts_and_provenance_agree(drafted):
    choice, usage, details = complete(drafted)
    assert choice["text"] == want("abc", 100, 3)
    assert len(choice["accepted_draft"]) == usage["completion_tokens"] == 100
    assert sum(choice["accepted_draft"]) == details["accepted_prediction_tokens"] > 30
    assert details["rejected_prediction_tokens"] > 10
    assert choice["accepted_draft"][0] == 0  # the first token comes from the prompt's pass
    p = choice["provenance"]
    assert len(p["source"]) == len(p["slot"]) == len(p["confidence"]) == 100
    assert [int(s == "accepted") for s in p["source"]] == choice["accepted_draft"]
    assert (p["source"][0], p["slot"][0], p["confidence"][0]) == ("plain", 0, 0)
    assert p["source"].count("corrected") > 5 and p["source"].count("bonus") > 0
    before = 0
    for source, slot, confidence in zip(p["source"], p["slot"], p["confidence"]):
        if source == "plain":
            assert slot == 0 and confidence == 0
        else:  # slots of a block count up; its last token is the corrected one or the bonus
            assert slot == before + 1 and slot <= BLOCK + 1
            assert (confidence == 0) == (source == "bonus") and 0 <= confidence <= 1
        before = slot if source == "accepted" else 0


def test_modes(drafted):
    for fields, most in [({"mode": "off"}, 0), ({"mode": "max", "max_draft": 1}, 1), ({"mode": "max", "max_draft": 3}, 3),
                         ({"mode": "max"}, BLOCK)]:
        choice, _, details = complete(drafted, speculation=fields)
        assert choice["text"] == want("abc", 100, 3)
        runs = [len(r) for r in "".join(map(str, choice["accepted_draft"])).split("0")]
        assert max(runs) == most, (fields, choice["accepted_draft"])
        assert (details["accepted_prediction_tokens"] > 0) == (most > 0)
        assert (details["rejected_prediction_tokens"] > 0) == (most > 0)


@pytest.mark.parametrize("field,value,names", [
    ("speculation", {"max_draft": 33}, ["speculation.max_draft", "32"]),
    ("speculation", {"max_draft": -1}, ["speculation.max_draft", "-1"]),
    ("speculation", {"max_draft": "7"}, ["speculation.max_draft", "integer"]),
    ("speculation", {"mode": "always"}, ["speculation.mode", "auto", "off", "max"]),
    ("speculation", {"depth": 1}, ["speculation.depth"]),
    ("speculation", "max", ["speculation", "object"]),
    ("return_speculation", 1, ["return_speculation", "true"]),
])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_wrong_fields_are_named(drafted, path, field, value, names):
    body = {"prompt": "x"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "x"}]}
    status, answer = drafted.post(path, {**body, field: value})
    assert status == 400 and all(n in answer["error"]["message"] for n in names), answer


def stream(d, path, body):
    status, text, _ = d.request("POST", path, {**body, "stream": True, "stream_options": {"include_usage": True},
                                               "return_speculation": True, "return_token_ids": True})
    assert status == 200, text
    events = [json.loads(e[6:]) for e in text.split("\n\n") if e.startswith("data: {")]
    assert not [e for e in events if "error" in e], events[-1]
    ids, flags = [], []
    for e in events:
        for c in e["choices"]:
            assert len(c["token_ids"]) == len(c["accepted_draft"])
            ids += c["token_ids"]
            flags += c["accepted_draft"]
    return ids, flags, events[-1]["usage"]


def check(ids, flags, usage, n):
    assert len(ids) == usage["completion_tokens"] == n
    assert sum(flags) == usage["completion_tokens_details"]["accepted_prediction_tokens"] > 0


def test_streams(drafted):
    ids, flags, usage = stream(drafted, "/v1/completions", {"prompt": "abc", "max_tokens": 100, "seed": 3})
    assert fake_model.decode(ids) == want("abc", 100, 3)
    check(ids, flags, usage, 100)
    ids, flags, usage = stream(drafted, "/v1/chat/completions",
                               {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 50, "seed": 3})
    check(ids, flags, usage, 50)


def test_stop_string_inside_a_block(drafted):
    """What was drafted behind the stop counts as rejected; what is shown is exactly what plain decoding shows."""
    text = want("abc", 100, 3)
    for at in range(10, 30):
        stop = text[at:at + 2]
        end = text.index(stop) + 2
        choice, usage, details = complete(drafted, stop=stop)
        assert choice["text"] == text[:end - 2] and usage["completion_tokens"] == end
        assert sum(choice["accepted_draft"]) == details["accepted_prediction_tokens"]


def test_metrics(drafted):
    complete(drafted)
    page = lambda name: drafted.metric(name)
    wait_for(lambda: page("vllm:spec_decode_num_drafts_total") > 0, what="metrics")
    assert page("dspark_worker_schedule_seconds_total") > 0
    assert page("dspark_worker_drafted_step_seconds_total") > 0 and page("dspark_worker_plain_step_seconds_total") > 0
    assert page("dspark_worker_calibration_drift") in (0, 1)
    text = drafted.get("/metrics")[1]
    assert 'vllm:spec_decode_num_accepted_tokens_per_pos_total{model_name="tiny",worker="fake-0",position="0"}' in text
    assert f'position="{BLOCK - 1}"' in text and f'position="{BLOCK}"' not in text
    assert page("vllm:spec_decode_num_accepted_tokens_per_pos_total") == page("vllm:spec_decode_num_accepted_tokens_total")
    assert page("dspark_spec_decode_num_draft_tokens_per_pos_total") == page("vllm:spec_decode_num_draft_tokens_total")
    assert page("dspark_worker_draft_passes_total") >= page("vllm:spec_decode_num_drafts_total")


@pytest.mark.parametrize("door", ["--url", "--rpc"])
def test_ctl_shows_the_accepted_length(drafted, door):
    complete(drafted)
    where = [door, drafted.url if door == "--url" else drafted.rpc, "--interval-ms", "700"]
    run = lambda *flags: subprocess.run([BIN / "dsparkctl", "status", *where, *flags], capture_output=True, text=True, check=True).stdout
    total = json.loads(run("--json"))["total"]
    assert 2 < total["accepted_length"] < 1 + BLOCK and 0.3 < total["acceptance"] < 0.8
    assert "TAU" in run()


def answer(drafted, *flags, ask="chat"):
    return subprocess.run([BIN / "dsparkctl", ask, "hello", "--url", drafted.url, "--max-tokens", "60", "--seed", "4",
                           "--summary", "on", *flags], capture_output=True, text=True, check=True)


@pytest.mark.parametrize("ask", ["chat", "complete"])
def test_ctl_marks_what_was_drafted(drafted, ask):
    """The same text with and without marks; the marked part is exactly the accepted drafts; the figures are its own."""
    plain = answer(drafted, ask=ask)
    shown = answer(drafted, "--marks", "brackets", ask=ask)
    color = answer(drafted, "--marks", "color", ask=ask)
    assert re.sub("[\u2039\u203a]", "", shown.stdout) == plain.stdout == re.sub(r"\x1b\[[0-9;]*m", "", color.stdout)
    marked = "".join(re.findall("\u2039(.*?)\u203a", shown.stdout, re.S))
    assert marked == "".join(re.findall(r"\x1b\[4;32m(.*?)\x1b\[0m", color.stdout, re.S))
    path = "/v1/chat/completions" if ask == "chat" else "/v1/completions"
    body = {"messages": [{"role": "user", "content": "hello"}]} if ask == "chat" else {"prompt": "hello"}
    ids, flags, _ = stream(drafted, path, {**body, "max_tokens": 60, "seed": 4, "temperature": 0.7})
    assert marked == fake_model.decode([i for i, f in zip(ids, flags) if f]) and len(marked) > 15
    tokens, steps, saved = map(int, re.search(r"(\d+) tokens in (\d+) steps of the target: (\d+) steps saved", shown.stderr).groups())
    assert tokens == 60 and saved == 60 - steps and abs(saved - len(marked)) <= 1
    assert "marked" in shown.stderr and "marked" not in plain.stderr and "tokens/s" in plain.stderr


def test_ctl_counts_over_rpc(drafted):
    a = json.loads(subprocess.run([BIN / "dsparkctl", "complete", "hello", "--rpc", drafted.rpc, "--max-tokens", "60", "--json"],
                                  capture_output=True, text=True, check=True).stdout)
    assert a["usage"]["completion_tokens"] == 60 and a["target_steps"] >= 60 - a["usage"]["accepted_prediction_tokens"]
    assert a["usage"]["accepted_prediction_tokens"] > 15 and a["target_steps"] < 50


def test_a_stream_has_an_event_for_each_run(drafted):
    """Who wrote a piece of text is told by its own event."""
    _, text, _ = drafted.request("POST", "/v1/completions", {"prompt": "abc", "max_tokens": 100, "seed": 3, "stream": True,
                                                             "return_speculation": True})
    events = [json.loads(e[6:])["choices"][0] for e in text.split("\n\n") if e.startswith("data: {")]
    assert all(len(set(e["accepted_draft"])) <= 1 and len(e["text"]) == len(e["accepted_draft"]) for e in events)
    assert "".join(e["text"] for e in events) == want("abc", 100, 3)


def test_counts_survive_a_worker(stage):
    """The accepted drafts of both workers are counted, the tokens are the same."""
    d = stage.router()
    first = drafting(stage, "first", "--step-us", 5000, "--fault", "die", "--fault-after", 150)
    d.wait_ready()
    drafting(stage, "second", "--step-us", 1000)
    wait_for(lambda: d.metric("dspark_workers") == 2, what="two workers")
    moved = 0
    for seed in range(4):
        ids, flags, usage = stream(d, "/v1/completions", {"prompt": "abc", "max_tokens": 200, "seed": seed})
        assert fake_model.decode(ids) == want("abc", 200, seed)
        check(ids, flags, usage, 200)
        assert sum(flags) > 60
        moved = d.metric("dspark_moved_total")
    assert moved == 1 and first.process.poll() is not None
