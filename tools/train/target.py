"""Train a small Qwen3 target on prepare.py's output.

  python tools/train/target.py --data WORK --out DIR [--minutes 7 | --tokens 2.6e8] [--device cuda]

The learning rate and the change to long rows follow progress: tokens over --tokens or time over --minutes, whichever is
further. Rows start at a document's (or a piece's) first token. DIR gets config.json, model.safetensors (bf16),
generation_config.json, the tokenizer, log.jsonl, and state.pt, from which a repeated call goes on.
"""
import argparse
import json
import lzma
import math
import pathlib
import queue
import shutil
import threading
import time

import numpy as np
import torch
import torch.nn.functional as F

import model as qwen3

# Share of the training tokens by set: real text 74 %, and chat forms everywhere.
MIX = {"code": .415, "code+chat": .015, "prose-books": .20, "prose-books+chat": .03, "math-gsm8k": .03,
       "math-gsm8k+chat": .05, "math-synthetic": .03, "math-synthetic+chat": .07, "prose-synthetic-stories": .025,
       "prose-synthetic-stories+chat": .045, "dialogue-synthetic+chat": .09}
SHAPE = dict(hidden_size=512, intermediate_size=1408, num_hidden_layers=10, num_attention_heads=8,
             num_key_value_heads=2, head_dim=64)
TINY = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            head_dim=16)


class Data:
    """prepare.py's tokens and the documents of each set and side of the split."""

    def __init__(self, folder):
        ix = np.load(folder / "index.npz")
        with lzma.open(folder / "tokens.bin.xz") as f:
            self.ids = np.frombuffer(f.read(), np.uint16)
        self.start, self.bytes = ix["start"], ix["bytes"]
        self.sets = [str(s) for s in ix["sets"]]
        self.docs = {(s, held): np.flatnonzero((ix["set"] == i) & (ix["held"] == held))
                     for i, s in enumerate(self.sets) for held in (False, True)}

    def doc(self, i):
        return self.ids[self.start[i]:self.start[i + 1]]


def pieces(data, docs, length, rng):
    """Endless pieces of at most `length` tokens: documents in a new order each time round, cut at new places."""
    while True:
        for i in rng.permutation(docs):
            ids = data.doc(i)
            first = int(rng.integers(1, length + 1)) if len(ids) > length else len(ids)
            yield ids[:first]
            for at in range(first, len(ids), length):
                yield ids[at:at + length]


def rows(data, length, rng):
    """Endless rows of length + 1 ids: whole pieces of sets drawn by MIX, the last one cut."""
    names = [s for s in MIX if len(data.docs.get((s, False), ()))]
    mean = {s: min(length, np.mean(np.diff(data.start)[data.docs[s, False]])) for s in names}
    p = np.array([MIX[s] / mean[s] for s in names])
    source = {s: pieces(data, data.docs[s, False], length, rng) for s in names}
    while True:
        row, n = [], 0
        while n <= length:
            piece = next(source[names[rng.choice(len(names), p=p / p.sum())]])
            row.append(piece)
            n += len(piece)
        yield np.concatenate(row)[:length + 1]


def batches(data, tokens, length, seed):
    """Batches [rows, length + 1] prepared by a thread."""
    q = queue.Queue(8)

    def fill():
        source = rows(data, length, np.random.default_rng(seed))
        while True:
            q.put(torch.from_numpy(np.stack([next(source) for _ in range(tokens // length)]).astype(np.int64)))

    threading.Thread(target=fill, daemon=True).start()
    return q


def loss_sum(m, x, target):
    """Summed cross-entropy of final hidden rows x [N, C] in nats."""
    return F.cross_entropy(m.lm_head(x).float(), target, ignore_index=-1, reduction="sum")


@torch.no_grad()
def held_out(m, data, device, length, most):
    """set -> nats per token and bits per byte over the first `length` tokens of each held-out document."""
    m.eval()
    out = {}
    for (name, held), docs in data.docs.items():
        if not held or not len(docs):
            continue
        nats = tokens = size = 0
        for at in range(0, min(len(docs), most), 16):
            ids = torch.full((16, length + 1), -1)
            for r, i in enumerate(docs[at:min(at + 16, most)]):
                d = data.doc(i)[:length + 1].astype(np.int64)
                ids[r, :len(d)] = torch.from_numpy(d)
                size += data.bytes[i] * (len(d) - 1) / max(1, len(data.doc(i)) - 1)
            ids = ids.to(device)
            with autocast(device):
                h, _ = m.hidden(ids[:, :-1].clamp(min=0))
                nats += loss_sum(m, h.flatten(0, 1), ids[:, 1:].flatten()).item()
            tokens += (ids[:, 1:] >= 0).sum().item()
        out[name] = (nats / tokens, nats / math.log(2) / size)
    m.train()
    return out


def autocast(device):
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def optimiser(m, device):
    decay = [p for p in m.parameters() if p.dim() == 2]
    rest = [p for p in m.parameters() if p.dim() != 2]
    return torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
                             betas=(0.9, 0.95), fused=device.type == "cuda")


def rate(progress, peak):
    """Warm-up over the first 3 %, then cosine to 2 % of the peak."""
    warm = min(1.0, progress / 0.03 + 0.01)
    return peak * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, progress))))


def train(m, data, a, device):
    state_file, log = a.out / "state.pt", open(a.out / "log.jsonl", "a", buffering=1)
    opt = optimiser(m, device)
    step, tokens, spent = 0, 0, 0.0
    if state_file.exists():
        s = torch.load(state_file, map_location=device)
        m.load_state_dict(s["model"])
        opt.load_state_dict(s["opt"])
        step, tokens, spent = s["step"], s["tokens"], s["spent"]
    head = loss_sum
    if a.compile:
        for layer in m.model.layers:
            layer.compile(dynamic=False)
        head = torch.compile(loss_sum, dynamic=False)
    source = {n: batches(data, a.batch, n, 7 + step + n) for n in {a.length, a.long}}
    begin, next_eval, next_save = time.monotonic() - spent, 0.0, 0.25
    while True:
        spent = time.monotonic() - begin
        progress = max(tokens / a.tokens if a.tokens else 0, spent / 60 / a.minutes if a.minutes else 0)
        if progress >= next_eval or progress >= 1:
            held = held_out(m, data, device, a.length, a.held)
            log.write(json.dumps({"step": step, "tokens": tokens, "seconds": spent, "held": held}) + "\n")
            print("\nheld out:", "  ".join(f"{k} {v[0]:.3f}" for k, v in held.items()), flush=True)
            next_eval += 0.1
        if progress >= next_save or progress >= 1:
            torch.save({"model": m.state_dict(), "opt": opt.state_dict(), "step": step, "tokens": tokens,
                        "spent": spent}, state_file)
            next_save += 0.25
        if progress >= 1:
            break
        ids = source[a.long if progress >= 0.85 else a.length].get().to(device, non_blocking=True)
        for g in opt.param_groups:
            g["lr"] = rate(progress, a.lr)
        with autocast(device):
            h, _ = m.hidden(ids[:, :-1])
            loss = head(m, h.flatten(0, 1), ids[:, 1:].flatten()) / ids[:, 1:].numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + ids[:, 1:].numel()
        if step % 20 == 0:
            nats = loss.item()
            log.write(json.dumps({"step": step, "tokens": tokens, "seconds": spent, "loss": nats}) + "\n")
            print(f"\r{progress:6.1%}  step {step}  {tokens / 1e6:.1f} M tokens  {tokens / max(spent, 1e-9) / 1e3:.0f} k/s  "
                  f"loss {nats:.3f}", end="", flush=True)
    print()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=pathlib.Path, required=True)
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--minutes", type=float, default=0)
    p.add_argument("--tokens", type=float, default=0)
    p.add_argument("--length", type=int, default=1024)
    p.add_argument("--long", type=int, default=4096, help="row length of the last 15 %%")
    p.add_argument("--batch", type=int, default=65536, help="tokens a step")
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--dropout", type=float, default=0.1)
    p.add_argument("--held", type=int, default=48, help="held-out documents of each set that are scored")
    p.add_argument("--tiny", action="store_true", help="a shape for trying out")
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None)
    p.add_argument("--device", default="auto")
    a = p.parse_args()
    if not a.minutes and not a.tokens:
        p.error("give --minutes or --tokens")
    device = qwen3.pick_device(a.device)
    a.compile = device.type == "cuda" if a.compile is None else a.compile
    torch._dynamo.config.cache_size_limit = 64
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = True
    a.out.mkdir(parents=True, exist_ok=True)
    data = Data(a.data)
    vocab = json.loads((a.data / "tokenizer" / "tokenizer.json").read_text())
    special = {t["content"]: t["id"] for t in vocab["added_tokens"]}
    eos = [special["<|im_end|>"], special["<|endoftext|>"]]
    conf = qwen3.Config(architectures=["Qwen3ForCausalLM"], model_type="qwen3", vocab_size=max(special.values()) + 2,
                        hidden_act="silu", max_position_embeddings=a.long, rms_norm_eps=1e-6, rope_theta=100000.0,
                        tie_word_embeddings=True, attention_bias=False, use_sliding_window=False, eos_token_id=eos,
                        bos_token_id=None, **(TINY if a.tiny else SHAPE))
    m = qwen3.Qwen3(conf, a.dropout).to(device)
    m.init_weights()
    print(f"{sum(q.numel() for q in m.parameters()) / 1e6:.2f} M parameters, {device}", flush=True)
    train(m.train(), data, a, device)
    m.save(a.out)
    (a.out / "generation_config.json").write_text(json.dumps(
        {"eos_token_id": eos, "pad_token_id": special["<|endoftext|>"], "temperature": 0.7, "top_p": 0.95}, indent=2) + "\n")
    for f in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(a.data / "tokenizer" / f, a.out / f)


if __name__ == "__main__":
    main()
