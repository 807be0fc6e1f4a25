"""Try dsparkd on checkpoints it has never seen, over HTTP, against Hugging Face transformers.

Run by hand (CI has no PyTorch):  DSPARK_BIN=build/release/bin python tools/golden/blind.py [NAME...]
Random Qwen3 checkpoints are written in many spellings (keys absent or of older versions, biases, dtypes, shards, head
sizes, YaRN in all its keys) and served as they are. Every log-probability of an echoed prompt and of a greedy
continuation must be within 2e-3 of transformers in f32 on the same files, and so must the best five at each position.
Then the pairs of tests/golden/pairs are served with speculation under both rules: log-probabilities must be the target's,
and under `coupled` the sampled text that of speculation off.
"""
import json
import os
import pathlib
import shutil
import sys
import tempfile

os.environ["TQDM_DISABLE"] = "1"
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: E402
from transformers.utils import logging  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "e2e"), str(ROOT / "tools" / "golden")]
from conftest import Stage  # noqa: E402
from make_qwen3 import randomise  # noqa: E402

BOUND = 2e-3
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
BASE = dict(vocab_size=113, hidden_size=48, intermediate_size=66, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=2048, tie_word_embeddings=False, rms_norm_eps=1e-6,
            rope_parameters=dict(rope_type="default", rope_theta=1e6), eos_token_id=None, bos_token_id=None, pad_token_id=None)


def rope(kind, theta=1e6, **more):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=theta, **more))


def without(*keys):
    return lambda c, folder: [c.pop(k, None) for k in keys]


def having(**keys):
    return lambda c, folder: c.update(keys)


def older(scaling, theta=1e6):
    """The spelling of transformers 4."""
    def edit(c, folder):
        c.pop("rope_parameters")
        c.update(rope_theta=theta, rope_scaling=scaling, torch_dtype=c.pop("dtype"))
    return edit


def generation(**keys):
    return lambda c, folder: (folder / "generation_config.json").write_text(json.dumps(keys))


def retype(c, folder):
    """Norms in F32, MLPs in F16, the rest as it was."""
    t = load_file(folder / "model.safetensors")
    t = {k: v.float() if "norm" in k else v.half() if "mlp" in k else v for k, v in t.items()}
    save_file(t, folder / "model.safetensors", {"format": "pt"})


def both_tables(c, folder):
    t = load_file(folder / "model.safetensors")
    t["lm_head.weight"] = t["model.embed_tokens.weight"].clone()
    save_file(t, folder / "model.safetensors", {"format": "pt"})


YARN = dict(factor=4.0, original_max_position_embeddings=512)
# name: (changes of BASE, dtype, edit of the saved folder, prompt tokens)
CASES = {
    "no-head-dim": (dict(head_dim=128), F32, without("head_dim"), 300),
    "tied": (dict(tie_word_embeddings=True), F32, None, 2000),
    "untied": (dict(num_hidden_layers=3), F32, None, 2000),
    "tied-both-stored": (dict(tie_word_embeddings=True), F32, both_tables, 300),
    "bias": (dict(attention_bias=True), F32, None, 600),
    "bias-f16": (dict(attention_bias=True), F16, None, 600),
    "bf16": (dict(), BF16, None, 2000),
    "mixed-dtypes": (dict(), BF16, retype, 300),
    "sharded": (dict(), F32, "shards", 300),
    "sharded-bf16": (dict(), BF16, "shards", 300),
    "older-plain": (rope("default", 1e4), F32, older(None, 1e4), 600),
    "no-theta": (rope("default", 1e4), F32, without("rope_parameters"), 600),
    "older-yarn": (rope("yarn", **YARN), F32, older(dict(YARN, type="yarn")), 2000),
    "older-yarn-rope-type": (rope("yarn", **YARN), BF16, older(dict(YARN, rope_type="yarn")), 2000),
    "yarn-attention-factor": (rope("yarn", 1e4, factor=16.0, original_max_position_embeddings=128, attention_factor=1.3),
                              F32, None, 2000),
    "yarn-mscale": (rope("yarn", 1e4, factor=16.0, original_max_position_embeddings=128, mscale=0.707, mscale_all_dim=1.2),
                    F32, None, 1000),
    "yarn-mscale-alone": (rope("yarn", 1e4, factor=16.0, original_max_position_embeddings=128, mscale=0.707), F32, None, 1000),
    "yarn-no-original": (rope("yarn", 1e4, factor=4.0), F32, None, 1000),
    "yarn-betas": (rope("yarn", 5e5, factor=4.0, original_max_position_embeddings=256, beta_fast=8, beta_slow=4,
                        truncate=False), F32, None, 1000),
    "linear": (rope("linear", 1e5, factor=3.0), F32, None, 1000),
    "older-linear": (rope("linear", 1e5, factor=3.0), F32, older(dict(type="linear", factor=3.0), 1e5), 1000),
    "both-spellings": (dict(), F32, having(rope_theta=7e4, rope_scaling={}), 300),
    "wide-heads": (dict(hidden_size=24, head_dim=64, num_attention_heads=3, num_key_value_heads=3), F32, None, 600),
    "heads-7-1": (dict(num_attention_heads=7, num_key_value_heads=1, head_dim=18), F32, None, 600),
    "heads-15-5": (dict(num_attention_heads=15, num_key_value_heads=5, head_dim=6), BF16, None, 600),
    "head-dim-2": (dict(head_dim=2), F32, None, 600),
    "head-dim-256": (dict(head_dim=256, num_attention_heads=2, num_key_value_heads=1), F32, None, 300),
    "odd": (dict(vocab_size=1009, intermediate_size=67, hidden_size=37), F32, None, 600),
    "odd-bf16": (dict(vocab_size=1009, intermediate_size=67, hidden_size=37), BF16, None, 600),
    "one-layer": (dict(num_hidden_layers=1, intermediate_size=1), F32, None, 600),
    "big-eps": (dict(rms_norm_eps=0.5), F32, None, 600),
    "zero-eps": (dict(rms_norm_eps=0.0), F32, None, 100),
    "eos-list": (dict(eos_token_id=[3, 5]), F32, generation(eos_token_id=[7, 9, 112]), 100),
    "eos-number": (dict(eos_token_id=3), F32, generation(eos_token_id=8), 100),
    "no-window": (dict(), F32, having(use_sliding_window=False, sliding_window=32, max_window_layers=0), 300),
    "no-architectures": (dict(), F32, without("architectures"), 100),
    "no-model-type": (dict(), F32, without("model_type"), 100),
    "defaults": (dict(), F32, without("hidden_act", "rms_norm_eps", "attention_bias", "tie_word_embeddings", "layer_types"), 100),
}


def write(folder, name, index):
    changes, dtype, edit, _ = CASES[name]
    config = Qwen3Config(**{**BASE, **changes})
    config._attn_implementation = "eager"
    model = Qwen3ForCausalLM(config).eval()
    randomise(model, index)
    model.to(dtype).save_pretrained(folder, **({"max_shard_size": "20KB"} if edit == "shards" else {}))
    if callable(edit):
        path = folder / "config.json"
        c = json.loads(path.read_text())
        edit(c, folder)
        path.write_text(json.dumps(c))


def reference(folder):
    return Qwen3ForCausalLM.from_pretrained(folder, dtype=F32, attn_implementation="eager").eval()


def worst_of(model, ids, choice, first):
    """Largest difference of the answer's log-probabilities (from index `first` of ids on) from the model's."""
    with torch.no_grad():
        lp = torch.log_softmax(model(torch.tensor([ids]), use_cache=False).logits[0].double(), -1)
    got, top = choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]
    assert len(got) == len(ids) - first, (len(got), len(ids), first)
    worst = 0.0
    for i in range(max(first, 1), len(ids)):
        row = lp[i - 1]
        worst = max(worst, abs(got[i - first] - float(row[ids[i]])))
        want = row.topk(min(5, row.numel())).values.tolist()
        have = sorted(top[i - first].values(), reverse=True)[:len(want)]
        assert len(have) == len(want), (i, have)
        worst = max([worst] + [abs(a - b) for a, b in zip(want, have)])
    return worst


def ask(d, ids, **body):
    status, answer = d.post("/v1/completions", {"prompt": ids, "return_token_ids": True, "logprobs": 5, **body})
    assert status == 200, answer
    return answer["choices"][0], answer["usage"]


def blind(root, name, index):
    folder = root / name
    write(folder, name, index)
    model = reference(folder)
    n = CASES[name][3]
    ids = torch.randint(0, model.config.vocab_size, (n,), generator=torch.Generator().manual_seed(index)).tolist()
    stage = Stage(pathlib.Path(tempfile.mkdtemp(dir=root)))
    d = stage.daemon(folder, "--threads", 1, "--kv-bytes", "64M", "--worker-config", root / "worker.conf")
    try:
        d.wait_ready(60)
        choice, usage = ask(d, ids, max_tokens=24, temperature=0, echo=True)
        out = choice["token_ids"]
        assert usage["prompt_tokens"] == n
        worst = worst_of(model, ids + out[-usage["completion_tokens"]:], choice, 0)
        stops = model.generation_config.eos_token_id
        ended = out[-1] in ([stops] if isinstance(stops, int) else stops or [])
        assert (choice["finish_reason"] == "stop") == ended, (choice["finish_reason"], out, stops)
    finally:
        stage.end()
    return worst, f"{n} + {usage['completion_tokens']} tokens"


def drafted(root, folder, rule):
    (root / "draft.conf").write_text(f"kv_dtype = f32\nacceptance = {rule}\n")
    model = reference(folder.parent / "target")
    stage = Stage(pathlib.Path(tempfile.mkdtemp(dir=root)))
    d = stage.daemon(folder.parent / "target", "--draft", folder, "--threads", 1, "--kv-bytes", "64M", "--worker-config",
                     root / "draft.conf")
    worst, accepted, rejected = 0.0, 0, 0
    try:
        d.wait_ready(60)
        rolls = json.loads((folder / "golden" / "golden.json").read_text())["rollouts"]
        for i, roll in enumerate(rolls):
            for temperature in (0, 0.7):
                how = dict(max_tokens=48, temperature=temperature, seed=i, speculation={"mode": "max"}, ignore_eos=True)
                choice, usage = ask(d, roll["prompt"], **how)
                out = choice["token_ids"]
                worst = max(worst, worst_of(model, roll["prompt"] + out, choice, len(roll["prompt"])))
                details = usage["completion_tokens_details"]
                accepted += details["accepted_prediction_tokens"]
                rejected += details["rejected_prediction_tokens"]
                plain = ask(d, roll["prompt"], **{**how, "speculation": {"mode": "off"}})[0]["token_ids"]
                assert plain == out or (rule == "rejection" and temperature), (i, temperature)
    finally:
        stage.end()
    assert accepted > 0 and rejected > 0
    return worst, f"{accepted} drafts accepted, {rejected} rejected"


def main(names):
    bad = 0
    root = pathlib.Path(tempfile.mkdtemp(prefix="blind-"))
    (root / "worker.conf").write_text("kv_dtype = f32\n")
    work = [(n, lambda n=n, i=i: blind(root, n, i)) for i, n in enumerate(CASES)]
    for f in sorted(ROOT.glob("tests/golden/pairs/*/*/golden")):
        for rule in ("coupled", "rejection"):
            work.append((f"{f.parent.parent.name}/{f.parent.name} {rule}", lambda f=f, rule=rule: drafted(root, f.parent, rule)))
    for name, run in work:
        if names and not any(n in name for n in names):
            continue
        try:
            worst, what = run()
            print(f"{name}: {worst:.1e} ({what}){'' if worst < BOUND else '  FAILED'}", flush=True)
            bad += not worst < BOUND
        except Exception as e:  # the others are still worth trying
            print(f"{name}: FAILED {type(e).__name__} {str(e)[:300]}", flush=True)
            bad += 1
    shutil.rmtree(root)
    print(f"{bad} failed")
    return bad != 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    sys.exit(main(sys.argv[1:]))
