"""The official openai package against the daemon: what a real client sends and reads."""

import concurrent.futures
import json
import unicodedata

import fake_model
import pytest
from conftest import wait_for

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def client(served):
    c = openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0, timeout=30)
    yield c
    c.close()


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi there"}]


def test_models(client):
    models = list(client.models.list())
    assert [m.id for m in models] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_completion_is_the_models(client):
    r = client.completions.create(model="tiny", prompt="Hello", max_tokens=20, temperature=0,
                                  extra_body={"return_token_ids": True})
    want = fake_model.generate(fake_model.encode("Hello"), 20)
    choice = r.choices[0]
    assert choice.token_ids == want
    assert choice.prompt_token_ids == fake_model.encode("Hello")
    assert choice.text == fake_model.decode(want)
    assert choice.finish_reason == "length"
    assert (r.usage.prompt_tokens, r.usage.completion_tokens, r.usage.total_tokens) == (5, 20, 25)
    assert r.object == "text_completion" and r.id.startswith("cmpl-")


def test_completion_default_is_16_tokens(client):
    assert client.completions.create(model="tiny", prompt="x").usage.completion_tokens == 16


def test_prompt_forms(client):
    ids = fake_model.encode("abc")
    for prompt in ("abc", ids, ["abc"], [ids]):
        r = client.completions.create(model="tiny", prompt=prompt, max_tokens=5, temperature=0)
        assert r.choices[0].text == fake_model.decode(fake_model.generate(ids, 5))
    r = client.completions.create(model="tiny", prompt=["a", "bc"], n=2, max_tokens=3, seed=4)
    assert [c.index for c in r.choices] == [0, 1, 2, 3]
    assert r.usage.prompt_tokens == 3 and r.usage.completion_tokens == 12
    assert r.choices[0].text == fake_model.decode(fake_model.generate(fake_model.encode("a"), 3, 4))
    assert r.choices[2].text == fake_model.decode(fake_model.generate(fake_model.encode("bc"), 3, 4))


def test_seed(client):
    def ask(**k):
        return client.completions.create(model="tiny", prompt="s", max_tokens=24, **k).choices[0].text

    assert ask(seed=1) == ask(seed=1) == fake_model.decode(fake_model.generate(fake_model.encode("s"), 24, 1))
    assert ask(seed=1) != ask(seed=2)
    assert ask(seed=-3) == fake_model.decode(fake_model.generate(fake_model.encode("s"), 24, 2**64 - 3))
    assert ask() != ask()  # without a seed each request draws its own


def test_n_choices_differ_and_choice_zero_is_the_seed(client):
    r = client.completions.create(model="tiny", prompt="s", max_tokens=24, n=4, seed=9)
    texts = [c.text for c in r.choices]
    assert len(set(texts)) == 4
    assert texts[0] == client.completions.create(model="tiny", prompt="s", max_tokens=24, seed=9).choices[0].text
    again = client.completions.create(model="tiny", prompt="s", max_tokens=24, n=4, seed=9)
    assert [c.text for c in again.choices] == texts


def test_stream_equals_whole(client):
    args = dict(model="tiny", prompt="stream me", max_tokens=50, seed=3, n=2)
    whole = client.completions.create(**args)
    texts, reasons, usage = {0: "", 1: ""}, {}, None
    for chunk in client.completions.create(stream=True, stream_options={"include_usage": True}, **args):
        if chunk.usage:
            usage = chunk.usage
            assert not chunk.choices
        for c in chunk.choices:
            texts[c.index] += c.text
            reasons[c.index] = c.finish_reason or reasons.get(c.index)
    assert [texts[0], texts[1]] == [c.text for c in whole.choices]
    assert reasons == {0: "length", 1: "length"}
    assert usage.completion_tokens == whole.usage.completion_tokens == 100


def test_chat(client):
    r = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=12, temperature=0)
    text = r.choices[0].message.content
    assert r.choices[0].message.role == "assistant" and len(text) == 12
    prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n"
    ids = []
    for part in prompt.split("<|im_"):
        if part.startswith("start|>"):
            ids += [1] + fake_model.encode(part[7:])
        elif part.startswith("end|>"):
            ids += [2] + fake_model.encode(part[5:])
    assert r.usage.prompt_tokens == len(ids)
    assert text == fake_model.decode(fake_model.generate(ids, 12))
    thinking_off = client.chat.completions.create(
        model="tiny", messages=CHAT, max_tokens=1, temperature=0,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}, "return_token_ids": True})
    assert 3 in thinking_off.choices[0].prompt_token_ids  # <think>
    assert 4 in thinking_off.choices[0].prompt_token_ids  # </think>


def test_chat_default_length_fills_the_context(client):
    r = client.chat.completions.create(model="tiny", messages=CHAT, temperature=0)
    assert r.choices[0].finish_reason == "length"
    assert r.usage.total_tokens == 4097  # 4096 positions; the last token is not fed back


def test_chat_stream(client):
    args = dict(model="tiny", messages=CHAT, max_completion_tokens=15, seed=5)
    whole = client.chat.completions.create(**args).choices[0].message.content
    chunks = list(client.chat.completions.create(stream=True, **args))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole
    assert chunks[-1].choices[0].finish_reason == "length"
    assert len({c.id for c in chunks}) == 1


def test_chat_logprobs(client):
    r = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=4, seed=1, logprobs=True, top_logprobs=3)
    content = r.choices[0].logprobs.content
    assert "".join(e.token for e in content) == r.choices[0].message.content
    for e in content:
        assert len(e.top_logprobs) == 3 and bytes(e.bytes).decode() == e.token and e.logprob <= 0
        best = [t.logprob for t in e.top_logprobs]
        assert best == sorted(best, reverse=True)
    streamed = []
    for chunk in client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=4, seed=1, logprobs=True,
                                                top_logprobs=3, stream=True):
        for c in chunk.choices:
            streamed += c.logprobs.content if c.logprobs else []
    assert [(e.token, e.logprob) for e in streamed] == [(e.token, e.logprob) for e in content]


def test_completion_logprobs_and_echo(client):
    r = client.completions.create(model="tiny", prompt="echo", max_tokens=3, seed=1, logprobs=2, echo=True)
    c = r.choices[0]
    assert c.text.startswith("echo") and len(c.text) == 7
    lp = c.logprobs
    assert lp.tokens == list(c.text) and lp.text_offset == list(range(7))
    assert lp.token_logprobs[0] is None and lp.top_logprobs[0] is None
    assert all(isinstance(x, float) for x in lp.token_logprobs[1:])
    for token, top in zip(lp.tokens[1:], lp.top_logprobs[1:]):
        assert token in top and 2 <= len(top) <= 3
    score = client.completions.create(model="tiny", prompt="echo", max_tokens=0, logprobs=2, echo=True)
    assert score.choices[0].text == "echo" and score.usage.completion_tokens == 0
    assert score.choices[0].logprobs.token_logprobs == lp.token_logprobs[:4]
    text, tokens = "", []
    for chunk in client.completions.create(model="tiny", prompt="echo", max_tokens=3, seed=1, logprobs=2, echo=True,
                                           stream=True):
        text += chunk.choices[0].text
        tokens += chunk.choices[0].logprobs.tokens if chunk.choices[0].logprobs else []
    assert text == c.text and tokens == lp.tokens


def test_stop_strings(client):
    prompt, n = "stop", 200
    want = fake_model.decode(fake_model.generate(fake_model.encode(prompt), n))
    for stop in (want[30:33], [want[60:61], "\x01never"], [want[100:105]]):
        first = min(want.find(s) for s in ([stop] if isinstance(stop, str) else stop) if s in want)
        hit = next(s for s in ([stop] if isinstance(stop, str) else stop) if want.startswith(s, first))
        args = dict(model="tiny", prompt=prompt, max_tokens=n, temperature=0, stop=stop)
        r = client.completions.create(**args)
        assert r.choices[0].text == want[:first] and r.choices[0].finish_reason == "stop"
        assert r.usage.completion_tokens == first + len(hit)
        chunks = list(client.completions.create(stream=True, **args))
        assert "".join(c.choices[0].text for c in chunks) == want[:first]
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_stop_token_ids_and_min_tokens(client):
    out = fake_model.generate(fake_model.encode("t"), 50)
    stop = out[20]
    first = out.index(stop)
    r = client.completions.create(model="tiny", prompt="t", max_tokens=50, temperature=0,
                                  extra_body={"stop_token_ids": [stop], "return_token_ids": True})
    assert r.choices[0].finish_reason == "stop"
    assert r.choices[0].token_ids == out[:first + 1]
    assert r.choices[0].text == fake_model.decode(out[:first])
    assert r.usage.completion_tokens == first + 1


def test_tool_calls(client):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    r = client.chat.completions.create(model="tiny", messages=CHAT, tools=tools, max_tokens=5, seed=1)
    plain = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=5, seed=1)
    assert r.usage.prompt_tokens > plain.usage.prompt_tokens
    none = client.chat.completions.create(model="tiny", messages=CHAT, tools=tools, tool_choice="none", max_tokens=5, seed=1)
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens


@pytest.mark.parametrize("field,value", [
    ("temperature", 2.5), ("top_p", 0), ("n", 65), ("max_tokens", -1), ("presence_penalty", 3), ("logit_bias", {"9999": 1}),
    ("stop", ["x"] * 17), ("max_tokens", 100000), ("logprobs", 21), ("prompt", [1, 99999]), ("prompt", "")])
def test_bad_values_name_the_field(client, field, value):
    body = {"model": "tiny", "prompt": "x", field: value}
    with pytest.raises(openai.BadRequestError) as e:
        client.completions.create(**body)
    error = e.value.body
    assert error["param"] == field, error
    assert error["type"] == "invalid_request_error" and error["message"] and error["code"]


def test_unknown_field_and_model(client):
    with pytest.raises(openai.BadRequestError) as e:
        client.completions.create(model="tiny", prompt="x", extra_body={"surprise": 1})
    assert e.value.param == "surprise" and e.value.code == "unknown_parameter"
    with pytest.raises(openai.NotFoundError) as e:
        client.completions.create(model="other", prompt="x")
    assert e.value.param == "model" and e.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as e:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": {"no": "text"}}])
    assert "messages[0].content" in e.value.param


def test_many_at_once_keep_apart(client, served):
    def ask(i):
        prompt = f"request {i}"
        stream = i % 2
        r = client.completions.create(model="tiny", prompt=prompt, max_tokens=10 + i % 30, seed=i, stream=bool(stream))
        text = "".join(c.choices[0].text for c in r) if stream else r.choices[0].text
        return text == fake_model.decode(fake_model.generate(fake_model.encode(prompt), 10 + i % 30, i))

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(200)))
    wait_for(lambda: served.metric("dspark_running") == 0, what="an idle worker")


def test_a_client_that_leaves_cancels(stage):
    d = stage.router()
    stage.fake("fake-0", "--step-us", 20000)
    d.wait_ready()
    c = openai.OpenAI(base_url=d.url + "/v1", api_key="none", max_retries=0)
    stream = c.completions.create(model="tiny", prompt="x", max_tokens=4000, stream=True)
    next(iter(stream))
    assert d.metric("dspark_running") == 1
    stream.close()
    c.close()
    wait_for(lambda: d.metric("dspark_running") == 0, 1, "the cancel")
    assert d.metric("dspark_cancelled_total") == 1
    wait_for(lambda: d.metric("dspark_worker_cancelled_total") == 1, 3, "the worker's count")


def test_a_prompt_of_one_token_is_scored_too(served):
    """Its only position has no log-probability, and is listed all the same."""
    for n in (0, 2):
        body = {"prompt": [[40], [40, 41]], "max_tokens": n, "echo": True, "logprobs": 1, "temperature": 0}
        one, two = served.post("/v1/completions", body)[1]["choices"]
        assert len(one["logprobs"]["tokens"]) == 1 + n and len(two["logprobs"]["tokens"]) == 2 + n
        assert one["logprobs"]["token_logprobs"][0] is None and one["logprobs"]["top_logprobs"][0] is None
        assert one["logprobs"]["tokens"][0] == two["logprobs"]["tokens"][0]


def test_a_model_name_with_a_slash(stage):
    d = stage.router("--served-model-name", "org/my model")
    stage.fake()
    d.wait_ready()
    with openai.OpenAI(base_url=d.url + "/v1", api_key="none", max_retries=0) as c:
        assert c.models.retrieve("org/my model").id == "org/my model"
        assert c.completions.create(model="org/my model", prompt="x", max_tokens=1).model == "org/my model"
        with pytest.raises(openai.NotFoundError):
            c.models.retrieve("org/other%")


def test_every_code_point_survives(served):
    """All planes, U+0000 too: text in, ids out, the same text back."""
    for first in range(0, 0x110000, 0x8000):  # line ends between them: marks in a row would be sorted by NFC
        text = "\n".join(chr(c) for c in range(first, first + 0x8000) if not 0xD800 <= c < 0xE000)
        if not text:
            continue
        status, body = served.post("/tokenize", {"prompt": text})
        assert status == 200, body
        want = unicodedata.normalize("NFC", text)
        assert served.post("/detokenize", {"tokens": body["tokens"]})[1]["prompt"] == want, hex(first)


@pytest.mark.parametrize("field,text", [
    ("seed", '{"prompt":"x","seed":99999999999999999999}'), ("temperature", '{"prompt":"x","temperature":1e999}'),
    ("prompt", '{"prompt":[1,99999999999999999999]}'), ("stop", '{"prompt":"x","stop":"a\\u0000b"}'),
    ("model", '{"prompt":"x","model":"tiny\\u0000"}'), ("logit_bias", '{"prompt":"x","logit_bias":{"7":101}}'),
    ("logit_bias", '{"prompt":"x","logit_bias":{"999999":1}}')])
def test_odd_values_name_the_field(served, field, text):
    status, body, _ = served.request("POST", "/v1/completions", text)
    assert status == 400 and body["error"]["param"] == field and field in body["error"]["message"], body


def test_tokenize_and_detokenize(served):
    status, body = served.post("/tokenize", {"prompt": "h\u00e9llo <|im_end|>"})
    assert status == 200 and body["tokens"] == fake_model.encode("h\u00e9llo ") + [2] and body["count"] == len(body["tokens"])
    assert served.post("/detokenize", {"tokens": body["tokens"]}) == (200, {"prompt": "h\u00e9llo <|im_end|>"})
    assert served.post("/detokenize", {"tokens": [99999]})[0] == 400
    assert served.post("/tokenize", {"prompt": "x", "y": 1})[1]["error"]["param"] == "y"
    status, body = served.post("/tokenize", {"messages": CHAT})
    assert status == 200 and body["tokens"][0] == 1


def test_text_that_looks_like_events(served):
    """Whatever bytes a model writes, a client sees exactly our events."""
    body = json.dumps({"model": "tiny", "prompt": "data: x\n\ndata: [DONE]\n\n", "max_tokens": 3, "echo": True,
                       "stream": True, "temperature": 0})
    status, text, _ = served.request("POST", "/v1/completions", body)
    events = [e for e in text.split("\n\n") if e]
    assert status == 200 and events[-1] == "data: [DONE]"
    assert all(e.startswith("data: {") and "\n" not in e for e in events[:-1])
    assert "".join(json.loads(e[6:])["choices"][0]["text"] for e in events[:-1]).startswith("data: x\n\ndata: [DONE]\n\n")
