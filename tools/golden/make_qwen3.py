"""Make the golden Qwen3 checkpoints and vectors of tests/golden/data with Hugging Face transformers.

Run once, by hand (CI has no PyTorch):  python tools/golden/make_qwen3.py tests/golden/data
Each folder is what save_pretrained writes, plus golden.json:
  prompt            token ids
  logprobs          [len-1] natural log-probability of prompt[i+1] after prompt[..i], transformers in f32 on the stored weights
  f64_err           largest difference of the same in f64: what the reference itself is uncertain by
  bf16_err          bf16 folders: largest and mean difference of transformers' own bf16 run from `logprobs`
  greedy_prompt, greedy, margin   argmax continuation and its top-1 minus top-2 logit at each token
  logits            full f32 rows at logit_pos
  taps              residual rows after layers tap_layer at tap_pos, [len(tap_pos), len(tap_layer) * hidden]
Weights are random with gains that keep the logits far from flat, so an error anywhere shows in the log-probabilities.
"""
import json
import pathlib
import shutil
import sys

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

COMMON = dict(rms_norm_eps=1e-6, pad_token_id=None, bos_token_id=None)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=512)
# name: (config, dtype, prompt tokens, extra edits of config.json, shard size)
CASES = {
    "qwen3-f32": (dict(vocab_size=131, hidden_size=56, intermediate_size=90, num_hidden_layers=3, num_attention_heads=3,
                       num_key_value_heads=1, head_dim=24, max_position_embeddings=2048, tie_word_embeddings=False,
                       rope_parameters=dict(rope_type="default", rope_theta=1e6), eos_token_id=[3, 5]),
                  torch.float32, 2000, {}, None),
    "qwen3-bf16-tied": (dict(vocab_size=257, hidden_size=72, intermediate_size=100, num_hidden_layers=4,
                             num_attention_heads=4, num_key_value_heads=2, head_dim=40, max_position_embeddings=2048,
                             tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=5e6),
                             eos_token_id=7), torch.bfloat16, 2000, {}, None),
    # the spelling of transformers 4: rope_theta beside rope_scaling, "type"
    "qwen3-f32-yarn": (dict(vocab_size=131, hidden_size=40, intermediate_size=77, num_hidden_layers=2,
                            num_attention_heads=6, num_key_value_heads=3, head_dim=32, max_position_embeddings=2048,
                            tie_word_embeddings=True, rope_parameters=dict(YARN, rope_theta=1e4), eos_token_id=1),
                       torch.float32, 2000,
                       {"rope_parameters": None, "rope_theta": 10000.0,
                        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}}, None),
    # the spelling of transformers 5, every optional key, several shards
    "qwen3-bf16-yarn-sharded": (dict(vocab_size=199, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
                                     num_attention_heads=4, num_key_value_heads=4, head_dim=16,
                                     max_position_embeddings=1024, tie_word_embeddings=False, eos_token_id=None,
                                     rope_parameters=dict(YARN, factor=8.0, original_max_position_embeddings=128,
                                                          rope_theta=1e6, beta_fast=16.0, beta_slow=2.0,
                                                          attention_factor=1.15, truncate=False)),
                                torch.bfloat16, 600, {}, "60KB"),
    "qwen3-f16-linear-bias": (dict(vocab_size=97, hidden_size=48, intermediate_size=65, num_hidden_layers=2,
                                   num_attention_heads=5, num_key_value_heads=5, head_dim=18,
                                   max_position_embeddings=512, tie_word_embeddings=False, attention_bias=True,
                                   rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=1e5),
                                   eos_token_id=0), torch.float16, 300, {}, None),
    # every width a multiple of 32: the int8 path quantises all matrices
    "qwen3-bf16-wide": (dict(vocab_size=320, hidden_size=96, intermediate_size=160, num_hidden_layers=2,
                             num_attention_heads=6, num_key_value_heads=2, head_dim=32, max_position_embeddings=1024,
                             tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e6),
                             eos_token_id=2), torch.bfloat16, 400, {}, None),
}
GREEDY = 64


def randomise(model, seed):
    """Gain over 1/sqrt(fan-in) for matrices, norm weights in 0.5..1.5, biases of 0.3: no part is negligible."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                bias = name.endswith("bias")
                p.copy_(0.3 * torch.randn(p.shape, generator=g) if bias else 0.5 + torch.rand(p.shape, generator=g))
            elif "embed" in name or "lm_head" in name:
                p.copy_(torch.randn(p.shape, generator=g) * 2.5 / p.shape[1] ** 0.5)
            else:
                p.copy_(torch.randn(p.shape, generator=g) * 1.5 / p.shape[1] ** 0.5)


def logprobs(model, ids):
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    lp = torch.log_softmax(logits.double(), -1)
    return lp[torch.arange(len(ids) - 1), torch.tensor(ids[1:])], logits


def greedy(model, ids):
    ids, out, margin = list(ids), [], []
    with torch.no_grad():
        for _ in range(GREEDY):
            top = model(torch.tensor([ids]), use_cache=False).logits[0, -1].topk(2)
            out.append(int(top.indices[0]))
            margin.append(round(float(top.values[0] - top.values[1]), 5))
            ids.append(out[-1])
    return out, margin


def residuals(model, ids, layers, rows):
    kept = {}
    hooks = [model.model.layers[i].register_forward_hook(
        lambda m, a, out, i=i: kept.__setitem__(i, out[0] if isinstance(out, tuple) else out)) for i in layers]
    with torch.no_grad():
        model(torch.tensor([ids]), use_cache=False)
    for h in hooks:
        h.remove()
    return [[round(float(v), 5) for i in layers for v in kept[i].reshape(-1, kept[i].shape[-1])[r]] for r in rows]


def make(root, name, index):
    conf, dtype, n, edits, shard = CASES[name]
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    config = Qwen3Config(**conf, **COMMON)
    config._attn_implementation = "eager"
    torch.set_default_dtype(torch.float32)
    model = Qwen3ForCausalLM(config).eval()
    randomise(model, 1000 + index)
    model.to(dtype)
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    if edits:
        path = folder / "config.json"
        c = json.loads(path.read_text())
        for key, value in edits.items():
            c.pop(key, None) if value is None else c.__setitem__(key, value)
        path.write_text(json.dumps(c, indent=2) + "\n")

    load = lambda t: Qwen3ForCausalLM.from_pretrained(folder, dtype=t, attn_implementation="eager").eval()
    g = torch.Generator().manual_seed(77 + index)
    ids = torch.randint(0, conf["vocab_size"], (n,), generator=g).tolist()
    exact = load(torch.float32)
    lp, logits = logprobs(exact, ids)
    out = {"prompt": ids, "logprobs": [round(float(v), 6) for v in lp]}
    out["f64_err"] = float((logprobs(load(torch.float64), ids)[0] - lp).abs().max())
    if dtype == torch.bfloat16:
        d = (logprobs(load(torch.bfloat16), ids)[0] - lp).abs()
        out["bf16_err"] = {"max": float(d.max()), "mean": float(d.mean())}
    out["greedy_prompt"] = ids[:17]
    out["greedy"], out["margin"] = greedy(exact, ids[:17])
    out["logit_pos"] = [0, n - 1]
    out["logits"] = [[round(float(v), 5) for v in logits[p]] for p in out["logit_pos"]]
    out["tap_layer"] = [0, conf["num_hidden_layers"] - 1]
    out["tap_pos"] = [0, 33, n - 1]
    out["taps"] = residuals(exact, ids, out["tap_layer"], out["tap_pos"])
    (folder / "golden.json").write_text(json.dumps(out, separators=(",", ":")) + "\n")
    for f in folder.iterdir():
        f.chmod(0o644)
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: {size} bytes, mean logprob {lp.mean():.3f}, std of logits {logits.float().std():.2f}, "
          f"f64 err {out['f64_err']:.2e}, bf16 err {out.get('bf16_err')}, smallest margin {min(out['margin'])}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for i, case in enumerate(CASES):
        make(pathlib.Path(sys.argv[1]), case, i)
