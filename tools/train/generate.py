"""Let a target answer prompts: the text that its draft is trained on.

  python tools/train/generate.py --target DIR --prompts FILE.jsonl --out gens.npz [--count N] [--length 512]

Prompts are {"prompt": text} or {"turns": [text]} (asked in the chat format without thinking). Each is answered at a
temperature drawn from --temperatures, to the end of the answer or --length tokens in all (--long for one raw prompt in
four). gens.npz: ids u16 or i32 of all texts, start [n+1], prompt [n] tokens of the prompt, temperature [n].
"""
import argparse
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import chat
import model as qwen3


class Cache:
    """Keys and values [layers, B, groups, S, D] of sequences that are all at the same position."""

    def __init__(self, m, rows, length):
        c, w = m.conf, m.lm_head.weight
        shape = (c.num_hidden_layers, rows, c.num_key_value_heads, length, c.head_dim)
        self.k, self.v = torch.empty(shape, device=w.device, dtype=w.dtype), torch.empty(shape, device=w.device, dtype=w.dtype)
        self.rope = qwen3.rope_table(c, torch.arange(length, device=w.device))

    def keep(self, rows):
        self.k, self.v = self.k[:, rows], self.v[:, rows]


def prefill(m, cache, ids, most=1024):
    """Fills the cache with all but the last token of ids [B, T]."""
    t = ids.shape[1] - 1
    for at in range(0, len(ids) if t else 0, most):
        x, r = m.model.embed_tokens(ids[at:at + most, :t]), slice(at, at + most)
        for i, layer in enumerate(m.model.layers):
            q, k, v = layer.qkv(x, (cache.rope[0][:t], cache.rope[1][:t]))
            cache.k[i, r, :, :t], cache.v[i, r, :, :t] = k, v
            x = layer.finish(x, F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))


def step(m, cache, ids, t):
    """Logits [B, V] after token ids [B] at position t. A group's query heads are read as its rows: no mask needed."""
    x, rope = m.model.embed_tokens(ids)[:, None], (cache.rope[0][t:t + 1], cache.rope[1][t:t + 1])
    for i, layer in enumerate(m.model.layers):
        q, k, v = layer.qkv(x, rope)
        cache.k[i, :, :, t], cache.v[i, :, :, t] = k[:, :, 0], v[:, :, 0]
        q = q.reshape(len(ids), k.shape[1], -1, q.shape[-1])
        a = F.scaled_dot_product_attention(q, cache.k[i, :, :, :t + 1], cache.v[i, :, :, :t + 1])
        x = layer.finish(x, a.reshape(len(ids), -1, 1, q.shape[-1]))
    return m.lm_head(m.model.norm(x[:, 0])).float()


def draw(logits, temperature):
    """Token ids from logits [B, V] at temperatures [B]; 0 is greedy."""
    noise = -torch.log(-torch.log(torch.rand_like(logits).clamp_(1e-20)))
    cold = (temperature <= 0)[:, None]
    return torch.where(cold, logits, logits / temperature.clamp(min=1e-6)[:, None] + noise).argmax(-1)


@torch.no_grad()
def answer(m, prompts, temperature, length, stop):
    """Continues prompts (id lists) of about the same length to `length` tokens or a stop id (kept); id arrays."""
    device, n = m.lm_head.weight.device, len(prompts)
    given = torch.tensor([len(p) for p in prompts], device=device)
    out = torch.zeros(n, length, dtype=torch.long, device=device)
    for i, p in enumerate(prompts):
        out[i, :len(p)] = torch.tensor(p)
    size = torch.full((n,), length, device=device)
    alive = torch.arange(n, device=device)
    stop = torch.tensor(stop, device=device)
    cache, first = Cache(m, n, length), int(given.min())
    prefill(m, cache, out[:, :first])
    for t in range(first - 1, length - 1):
        token = draw(step(m, cache, out[alive, t], t), temperature[alive])
        forced = given[alive] > t + 1
        token = torch.where(forced, out[alive, t + 1], token)
        out[alive, t + 1] = token
        ended = torch.isin(token, stop) & ~forced
        size[alive[ended]] = torch.minimum(size[alive[ended]], torch.tensor(t + 2, device=device))
        if t % 32 == 31:
            live = size[alive] == length
            if not live.any():
                break
            if live.float().mean() < 0.8:
                cache.keep(live)
                alive = alive[live]
    return [row[:k] for row, k in zip(out.cpu().numpy(), size.tolist())]


def batches(prompts, length, rows):
    """Indices of prompts that are answered together: alike in length limit and prompt length."""
    order = sorted(range(len(prompts)), key=lambda i: (length[i], len(prompts[i])))
    at = 0
    while at < len(order):
        end = at
        while end < len(order) and end - at < rows and length[order[end]] == length[order[at]]:
            end += 1
        yield order[at:end]
        at = end


def load_prompts(folder, files, count):
    tok = Tokenizer.from_file(str(pathlib.Path(folder) / "tokenizer.json"))
    rows = [r for f in files for r in chat.read_jsonl(f)][:count or None]
    return rows, [e.ids for e in tok.encode_batch([chat.prompt_text(r) for r in rows])]


def stop_ids(conf):
    e = conf.get("eos_token_id")
    return e if isinstance(e, list) else [e]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--target", type=pathlib.Path, required=True)
    p.add_argument("--prompts", type=pathlib.Path, nargs="+", required=True)
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--count", type=int, default=0)
    p.add_argument("--length", type=int, default=512)
    p.add_argument("--long", type=int, default=1024)
    p.add_argument("--rows", type=int, default=4096, help="sequences at a time")
    p.add_argument("--minutes", type=float, default=0, help="stop after so long with what there is")
    p.add_argument("--temperatures", type=float, nargs="+", default=[1, 1, 1, 1, 1, 1, .7, .7, 0, 0])
    p.add_argument("--device", default="auto")
    a = p.parse_args()
    device = qwen3.pick_device(a.device)
    torch.backends.cuda.enable_cudnn_sdp(False) # it plans anew for every length of the cache
    m = qwen3.load_target(a.target, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    if device.type == "cuda":
        torch._dynamo.config.cache_size_limit = 64
        for layer in m.model.layers:
            layer.qkv, layer.finish = torch.compile(layer.qkv, dynamic=True), torch.compile(layer.finish, dynamic=True)
    rows, prompts = load_prompts(a.target, a.prompts, a.count)
    rng = np.random.default_rng(3)
    length = [a.long if "prompt" in r and not r["prompt"].startswith("<|im_start|>") and rng.random() < .25 else a.length
              for r in rows]
    keep = [i for i, ids in enumerate(prompts) if len(ids) < length[i] - 16]
    prompts, length = [prompts[i] for i in keep], [length[i] for i in keep]
    temperature = rng.choice(a.temperatures, len(prompts))
    texts, begin, done, made = [None] * len(prompts), time.monotonic(), 0, 0
    todo = list(batches(prompts, length, a.rows))
    for batch in [todo[i] for i in rng.permutation(len(todo))]:
        if a.minutes and time.monotonic() - begin > 60 * a.minutes:
            break
        heat = torch.tensor(temperature[batch], dtype=torch.float32, device=device)
        for i, text in zip(batch, answer(m, [prompts[i] for i in batch], heat, length[batch[0]], stop_ids(m.conf))):
            texts[i] = text
            made += len(text) - len(prompts[i])
        done += len(batch)
        spent = time.monotonic() - begin
        print(f"\r{done:,} of {len(prompts):,} prompts  {made / 1e6:.1f} M tokens  {made / spent / 1e3:.0f} k/s", end="", flush=True)
    print()
    order = rng.permutation([i for i, t in enumerate(texts) if t is not None])
    texts, temperature = [texts[i] for i in order], temperature[order]
    start = np.cumsum([0] + [len(t) for t in texts])
    np.savez(a.out, ids=np.concatenate(texts).astype(np.uint16 if m.conf.vocab_size <= 65536 else np.int32), start=start,
             prompt=np.array([len(prompts[i]) for i in order]), temperature=temperature)


if __name__ == "__main__":
    main()
