"""Checkpoints that are wrong in one place each: dsparkd ends with the documented exit code and names what is wrong.

Each case changes a good folder of the golden set; the unchanged one serves (test_the_good_one_serves)."""
import json
import math
import os
import pathlib
import shutil
import struct
import subprocess

import fake_model
import pytest
from conftest import BIN

DATA = pathlib.Path(__file__).resolve().parents[1] / "golden/data"
ONE, SHARDED = DATA / "qwen3-f32", DATA / "qwen3-bf16-yarn-sharded"
CORRUPT, NOTFOUND, NOFIT = 65, 66, 69
Q = "model.layers.1.self_attn.q_proj.weight"

pytestmark = pytest.mark.skipif(not (BIN / "dspark-worker").exists(), reason="no worker was built")


class Weights:
    """A safetensors file in pieces."""

    def __init__(self, path):
        self.path = path
        data = path.read_bytes()
        n = struct.unpack("<Q", data[:8])[0]
        self.header, self.data = json.loads(data[8:8 + n]), bytearray(data[8 + n:])

    def write(self):
        head = json.dumps(self.header).encode()
        head += b" " * (-len(head) % 8)
        self.path.write_bytes(struct.pack("<Q", len(head)) + head + self.data)


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(ONE, tmp_path / "m", ignore=shutil.ignore_patterns("golden.json"), copy_function=shutil.copyfile)
    return tmp_path / "m"


@pytest.fixture
def shards(tmp_path):
    shutil.copytree(SHARDED, tmp_path / "m", ignore=shutil.ignore_patterns("golden.json"), copy_function=shutil.copyfile)
    return tmp_path / "m"


def refused(folder, code, *words, flags=()):
    p = subprocess.run([BIN / "dsparkd", "--model", folder, "--listen", "127.0.0.1:0", "--threads", "1", "--kv-bytes", "16M",
                        *flags], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    text = p.stdout + p.stderr
    assert p.returncode == code, (p.returncode, text)
    errors = [line for line in text.splitlines() if " error " in line]
    assert any(all(w in line for w in words) for line in errors), (words, text)


def test_the_good_one_serves(stage, folder):
    d = stage.daemon(folder, "--threads", 1, "--kv-bytes", "16M").wait_ready(20)
    assert d.post("/v1/completions", {"prompt": [1, 2], "max_tokens": 2})[0] == 200


# ---- weights ----

def change_entry(tensor, **changes):
    def change(w):
        w.header[tensor] |= changes
    return change


def overlap(w):
    a, b = sorted((k for k in w.header if k != "__metadata__"), key=lambda k: w.header[k]["data_offsets"])[:2]
    size = w.header[b]["data_offsets"][1] - w.header[b]["data_offsets"][0]
    start = w.header[a]["data_offsets"][0]
    w.header[b]["data_offsets"] = [start, start + size]


def poison(value):
    def change(w):
        at = w.header[Q]["data_offsets"][0] + 4 * 57
        w.data[at:at + 4] = struct.pack("<f", value)
    return change


def leave_hole(w):
    w.header.pop(Q)


def take_out(w):
    begin, end = w.header.pop(Q)["data_offsets"]
    del w.data[begin:end]
    for t in w.header.values():
        if "data_offsets" in t and t["data_offsets"][0] >= end:
            t["data_offsets"] = [x - (end - begin) for x in t["data_offsets"]]


def move_out(w):
    begin, end = w.header[Q]["data_offsets"]
    w.header[Q]["data_offsets"] = [begin + 10**6, end + 10**6]


def backwards(w):
    w.header[Q]["data_offsets"] = w.header[Q]["data_offsets"][::-1]


def transpose(w):
    w.header[Q]["shape"] = w.header[Q]["shape"][::-1]


@pytest.mark.parametrize("change,words", [
    (take_out, [Q]), (leave_hole, ["model.safetensors"]), (transpose, [Q]), (change_entry(Q, shape=[1, 2, 3]), [Q]),
    (change_entry(Q, shape=[2**40, 2**40]), [Q]), (change_entry(Q, shape=[-1, 5]), [Q]), (change_entry(Q, shape="x"), [Q]),
    (change_entry(Q, dtype="F64"), [Q]), (change_entry(Q, dtype="F8_E4M3"), [Q]), (change_entry(Q, dtype=7), [Q]),
    (change_entry(Q, data_offsets=[0]), [Q]), (change_entry(Q, data_offsets=[0.5, 3]), [Q]), (overlap, ["model.safetensors"]),
    (move_out, [Q]), (backwards, [Q]), (poison(math.nan), [Q, "NaN"]), (poison(math.inf), [Q, "inf"]),
    (poison(-math.inf), [Q, "inf"])],
    ids=["missing", "hole", "transposed", "rank", "huge_shape", "negative_shape", "shape_type", "f64", "f8", "dtype_type", "one_offset",
         "fractional_offset", "overlap", "outside", "backwards", "nan", "inf", "minus_inf"])
def test_bad_tensors(folder, change, words):
    w = Weights(folder / "model.safetensors")
    change(w)
    w.write()
    refused(folder, CORRUPT, *words)


@pytest.mark.parametrize("keep", [0, 5, 8, 200, -100, -1])
def test_truncated_file(folder, keep):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    refused(folder, CORRUPT, "model.safetensors")


@pytest.mark.parametrize("head", [b"\xff" * 8, struct.pack("<Q", 2**63), struct.pack("<Q", 10) + b"not a json",
                                  struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 4) + b"null"])
def test_bad_header(folder, head):
    (folder / "model.safetensors").write_bytes(head + b"\0" * 64)
    refused(folder, CORRUPT, "model.safetensors")


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, NOTFOUND, "safetensors")


def test_weights_are_a_folder(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    p = subprocess.run([BIN / "dsparkd", "--model", folder, "--listen", "127.0.0.1:0"], capture_output=True, text=True, timeout=30)
    assert p.returncode in (CORRUPT, NOTFOUND, 74) and "model.safetensors" in p.stderr, p.stderr


# ---- shards ----

def index(shards):
    return json.loads((shards / "model.safetensors.index.json").read_text())


def test_truncated_shard(shards):
    last = sorted(shards.glob("model-*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-10])
    refused(shards, CORRUPT, last.name)


def test_missing_shard(shards):
    last = sorted(shards.glob("model-*.safetensors"))[-1]
    last.unlink()
    refused(shards, NOTFOUND, last.name)


@pytest.mark.parametrize("where", ["../outside.safetensors", "/etc/passwd", "", 7])
def test_index_names_a_path(shards, where):
    i = index(shards)
    tensor = sorted(i["weight_map"])[0]
    i["weight_map"][tensor] = where
    (shards / "model.safetensors.index.json").write_text(json.dumps(i))
    refused(shards, CORRUPT, tensor)


def test_index_names_the_wrong_shard(shards):
    i = index(shards)
    files = sorted(set(i["weight_map"].values()))
    tensor = next(t for t, f in sorted(i["weight_map"].items()) if f == files[0])
    i["weight_map"][tensor] = files[-1]
    (shards / "model.safetensors.index.json").write_text(json.dumps(i))
    refused(shards, CORRUPT, tensor)


def test_index_is_not_json(shards):
    (shards / "model.safetensors.index.json").write_text("{")
    refused(shards, CORRUPT, "model.safetensors.index.json")


# ---- config.json ----

@pytest.mark.parametrize("field,value", [
    ("vocab_size", None), ("vocab_size", 0), ("vocab_size", -5), ("vocab_size", "131"), ("vocab_size", 131.5), ("vocab_size", 132),
    ("hidden_size", 57), ("num_attention_heads", 0), ("num_key_value_heads", 2), ("head_dim", 23), ("num_hidden_layers", 10**9),
    ("num_hidden_layers", 4), ("intermediate_size", 91), ("rms_norm_eps", "x"), ("rms_norm_eps", -1),
    ("hidden_act", "gelu"), ("architectures", ["LlamaForCausalLM"]), ("model_type", "llama"),
    ("rope_parameters", {"rope_type": "longrope", "rope_theta": 1e6}),
    ("rope_parameters", {"rope_type": "default", "rope_theta": -1}), ("max_position_embeddings", 2**40),
    ("quantization_config", {"quant_method": "fp8"}), ("use_sliding_window", True)])
def test_bad_config(folder, field, value):
    config = json.loads((folder / "config.json").read_text())
    if value is None:
        del config[field]
    else:
        config[field] = value
    if field == "use_sliding_window":
        config |= {"sliding_window": 64, "max_window_layers": 1, "layer_types": ["full_attention"] + ["sliding_attention"] * 2}
    (folder / "config.json").write_text(json.dumps(config))
    names = {"hidden_size": "weight", "head_dim": "head_dim", "num_hidden_layers": "layers", "intermediate_size": "mlp",
             "rope_parameters": "rope", "architectures": "LlamaForCausalLM", "use_sliding_window": "layer_types"}
    word = "lm_head.weight" if value == 132 else names.get(field, field)
    refused(folder, CORRUPT, word)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{\"vocab_size\": 1, \"vocab_size\": 2}", "\xff"])
def test_config_is_not_json(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refused(folder, CORRUPT, "config.json")


def test_no_config(folder):
    (folder / "config.json").unlink()
    refused(folder, NOTFOUND, "config.json")


def test_the_plan_does_not_fit(folder):
    refused(folder, NOFIT, "KV", flags=("--kv-bytes", "1000T"))


# ---- tokenizer.json ----

def test_a_tokenizer_larger_than_the_vocabulary(stage, folder):
    """Ids the model does not have are refused by the request that uses them; the daemon lives."""
    fake_model.write_model(folder)
    d = stage.daemon(folder, "--threads", 1, "--kv-bytes", "16M").wait_ready(20)
    status, body = d.post("/v1/completions", {"prompt": "~", "max_tokens": 2})
    assert status == 400 and body["error"]["param"] == "prompt" and "130" in body["error"]["message"], body
    assert d.get("/health")[0] == 200


@pytest.mark.parametrize("change,word", [
    (lambda t: t.pop("model"), "model"), (lambda t: t["model"].pop("vocab"), "vocab"),
    (lambda t: t["model"].update(type="Unigram"), "model.type"), (lambda t: t["model"]["vocab"].update(zz=-1), "vocab"),
    (lambda t: t["model"]["vocab"].update(zz=8), "vocab"), (lambda t: t["model"].update(merges=[["q", "\u4e00"]]), "merge 0"),
    (lambda t: t["added_tokens"][0].update(id=2**40), "added_tokens"),
    (lambda t: t.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+("}, "behavior": "Isolated"}), "pre_tokenizer"),
    (lambda t: t.update(normalizer={"type": "Lowercase"}), "normalizer")],
    ids=["no_model", "no_vocab", "type", "negative_id", "id_twice", "merge", "added_id", "regex", "normalizer"])
def test_bad_tokenizer(folder, change, word):
    fake_model.write_model(folder)
    t = json.loads((folder / "tokenizer.json").read_text())
    change(t)
    (folder / "tokenizer.json").write_text(json.dumps(t))
    refused(folder, CORRUPT, word)


# ---- drafts, on the bundled pair ----

MODELS = pathlib.Path(__file__).resolve().parents[2] / "models"
PAIR = MODELS / "spark-demo", MODELS / "spark-demo-draft"
needs_pair = pytest.mark.skipif(not all((p / "model.safetensors").exists() for p in PAIR), reason="the demo pair is not here")


@pytest.fixture
def draft(tmp_path):
    shutil.copytree(PAIR[1], tmp_path / "d", ignore=shutil.ignore_patterns("*.md", "*.png", "*.svg"), copy_function=shutil.copyfile)
    return tmp_path / "d"


def draft_refused(draft, code, *words):
    refused(PAIR[0], code, *words, flags=("--draft", draft))


@needs_pair
@pytest.mark.parametrize("field,value,word", [
    ("vocab_size", 123, ""), ("hidden_size", 100, ""), ("block_size", 10**6, "block_size"), ("block_size", 0, "block_size"),
    ("target_layer_ids", [0, 999], "target_layer_ids"), ("target_layer_ids", [], "target_layer_ids"),
    ("markov_head_type", "magic", "markov_head_type"), ("mask_token_id", -1, "mask_token_id")])
def test_a_draft_that_does_not_fit(draft, field, value, word):
    config = json.loads((draft / "config.json").read_text())
    config[field] = value
    if field == "vocab_size":
        config["mask_token_id"] = 1
    (draft / "config.json").write_text(json.dumps(config))
    pairing = field in ("vocab_size", "hidden_size")  # the folder may be good: the two do not go together
    draft_refused(draft, 64 if pairing else CORRUPT, "target" if pairing else word)


@needs_pair
def test_bad_draft_files(draft, tmp_path):
    draft_refused(tmp_path / "none", NOTFOUND, "none/config.json")
    draft_refused(PAIR[0], CORRUPT, "not a draft")
    good = (draft / "model.safetensors").read_bytes()
    (draft / "model.safetensors").write_bytes(good[:-100])
    draft_refused(draft, CORRUPT, "truncated")
    (draft / "model.safetensors").write_bytes(good)
    w = Weights(draft / "model.safetensors")
    tensor = next(t for t in w.header if t.endswith("q_proj.weight"))
    w.header[tensor]["shape"] = [1, 2]
    w.write()
    draft_refused(draft, CORRUPT, tensor)


# ---- the folder ----

def test_the_folder_is_a_file(tmp_path):
    (tmp_path / "f").write_text("x")
    p = subprocess.run([BIN / "dsparkd", "--model", tmp_path / "f", "--listen", "127.0.0.1:0"], capture_output=True, text=True,
                       timeout=30)
    assert p.returncode in (CORRUPT, NOTFOUND, 74) and str(tmp_path / "f") in p.stderr, p.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_weights(folder):
    (folder / "model.safetensors").chmod(0)
    refused(folder, 74, "model.safetensors")
