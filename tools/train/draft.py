"""Train DSpark drafts for a target on its own generations.

  python tools/train/draft.py --target DIR --gens gens.npz --out DIR [--minutes 5 | --steps N]
                              [--variant name:layers=1,rank=64 ...]

Objective of the DSpark paper: anchors drawn in the generated text, all slots of a block at once, teacher forcing for the
Markov head, 0.1 cross-entropy + 0.9 L1 to the target's distribution + confidence, slots weighted exp(-(k-1)/4). Several
variants train on the same batches (one target pass serves all); rank=0 is DFlash: cross-entropy only, no heads. The last
2 % of the texts are held out: tau there is 1 + sum of products of the expected acceptance. Each variant is written to
DIR/name with log.jsonl; DIR/state.pt lets a repeated call go on.
"""
import argparse
import json
import math
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F

import drafts
import model as qwen3

DECAY = 4.0
BUCKETS = (256, 512, 1024)


class Gens:
    """Generated texts, in buckets of padded length."""

    def __init__(self, path, gamma):
        g = np.load(path)
        self.ids, self.start, self.prompt = g["ids"], g["start"], g["prompt"]
        size = np.diff(self.start)
        fit = np.flatnonzero((size <= BUCKETS[-1]) & (size - self.prompt >= gamma + 2))
        held = fit[-max(1, len(fit) // 50):]
        self.train = self.by_bucket(fit[:-len(held)], size)
        self.held = self.by_bucket(held, size)

    @staticmethod
    def by_bucket(which, size):
        edge = [0, *BUCKETS]
        parts = [which[(size[which] > edge[i]) & (size[which] <= b)] for i, b in enumerate(BUCKETS)]
        return {b: p for b, p in zip(BUCKETS, parts) if len(p)}

    def batch(self, docs, length):
        """ids [B, length + 1] (0 after the end), and first and end of the generated part [B]."""
        ids = np.zeros((len(docs), length + 1), np.int64)
        for r, i in enumerate(docs):
            t = self.ids[self.start[i]:self.start[i + 1]][:length + 1]
            ids[r, :len(t)] = t
        end = np.minimum(np.diff(self.start)[docs], length + 1)
        return torch.from_numpy(ids), torch.from_numpy(self.prompt[docs]), torch.from_numpy(end)


def plan(groups, tokens, rng):
    """Endless (bucket, documents): every text once in a round, batches of `tokens` tokens, buckets mixed."""
    while True:
        todo = []
        for b, docs in groups.items():
            order, n = rng.permutation(docs), max(1, tokens // b)
            if len(order) < n:
                order = np.resize(order, n)
            todo += [(b, order[i:i + n]) for i in range(0, len(order) - n + 1, n)]
        for i in rng.permutation(len(todo)):
            yield todo[i]


class Blocks:
    """Anchors of a batch with what the losses need: one target pass, shared by all variants."""

    @torch.no_grad()
    def __init__(self, m, taps, gamma, ids, first, end, per_row):
        B, T = ids.shape[0], ids.shape[1] - 1
        device = ids.device
        # anchors are generated tokens with a generated successor
        span = (end - 1 - first).clamp(min=1)
        self.at = first[:, None] + (torch.rand(B, per_row, device=device) * span[:, None]).long()
        k = torch.arange(gamma, device=device)
        pos = self.at[..., None] + k
        self.pos = pos.flatten(1)
        self.weight = torch.exp(-k / DECAY) * (pos + 1 < end[:, None, None])
        row = torch.arange(B, device=device)[:, None]
        self.anchor = ids[row, self.at]
        inside = pos.clamp(max=T - 1).flatten(1)
        self.prev = ids[row, inside].view(*pos.shape)
        self.label = ids[row, inside + 1].view(*pos.shape)
        with autocast(device):
            hidden, self.taps = m.hidden(ids[:, :-1], taps)
        self.target = hidden[row, inside].view(*pos.shape, -1)
        context = torch.arange(T, device=device) < self.at.repeat_interleave(gamma, 1)[..., None]
        own = torch.arange(per_row, device=device).repeat_interleave(gamma)
        own = (own[:, None] == own).expand(B, -1, -1)
        self.mask = torch.cat([context, own], -1)[:, None]
        self.rope = [t[:, None] for t in qwen3.rope_table(m.conf, self.pos)]
        self.rope_context = qwen3.rope_table(m.conf, torch.arange(T, device=device))


def autocast(device):
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def losses(h, target, bias, head, label, z, weight):
    """Weighted means of cross-entropy, L1 and confidence losses, and the expected acceptance of each slot.
    h, target [N, C] hidden rows of draft and target; head [V, C]; label, weight, z [N]."""
    logits = (F.linear(h, head) + bias).float()
    q = torch.log_softmax(logits, -1)
    with torch.no_grad():
        p = torch.softmax(F.linear(target, head).float(), -1)
    l1 = (q.exp() - p).abs().sum(-1)
    accept = (1 - 0.5 * l1.detach()).clamp(0, 1)
    total = weight.sum() + 1e-6
    ce = -(weight * q.gather(-1, label[:, None])[:, 0]).sum() / total
    conf = (weight * F.binary_cross_entropy_with_logits(z.float(), accept, reduction="none")).sum() / total \
        if z is not None else torch.zeros((), device=h.device)
    return ce, (weight * l1).sum() / total, conf, accept


def forward(d, m, b, loss_fn):
    """Loss of a variant on a batch, and its expected acceptance [B, A, gamma]."""
    ctx = d.context(b.taps)
    h = d.backbone(d.block_rows(m.model.embed_tokens.weight, b.anchor), b.rope,
                   lambda i, layer: layer.kv(ctx, b.rope_context), b.mask)
    bias, e = d.bias(b.prev.flatten())
    h = h.flatten(0, 1)
    ce, l1, conf, accept = loss_fn(h, b.target.flatten(0, 2), bias, m.lm_head.weight, b.label.flatten(),
                                   d.confidence(h, e), b.weight.flatten())
    loss = 0.1 * ce + 0.9 * l1 + conf if d.rank else ce
    return loss, accept.view(b.label.shape)


@torch.no_grad()
def held_out(m, models, gens, a, device):
    """name -> (tau, acceptance by slot) on texts that are not trained on."""
    sums, n = {k: 0 for k in models}, {k: 0 for k in models}
    torch.manual_seed(5)
    for bucket, docs in gens.held.items():
        rows = max(1, a.tokens // bucket)
        for at in range(0, min(len(docs), 4 * rows), rows):
            part = np.resize(docs[at:at + rows], rows)
            b = Blocks(m, a.taps, a.block, *(t.to(device) for t in gens.batch(part, bucket)), bucket // a.spacing)
            whole = (b.weight > 0).all(-1)
            for name, d in models.items():
                with autocast(device):
                    _, accept = forward(d, m, b, losses)
                sums[name] += torch.stack([accept[whole].sum(0), accept[whole].cumprod(-1).sum(0)])
                n[name] += whole.sum()
    return {k: (1 + (sums[k][1] / n[k]).sum().item(), (sums[k][0] / n[k]).tolist()) for k in models}


def train(m, models, gens, a, device):
    log = open(a.out / "log.jsonl", "a", buffering=1)
    opt = {k: torch.optim.AdamW(d.parameters(), betas=(.9, .999), weight_decay=0, fused=device.type == "cuda")
           for k, d in models.items()}
    step, spent, state_file = 0, 0.0, a.out / "state.pt"
    if state_file.exists():
        s = torch.load(state_file, map_location=device)
        step, spent = s["step"], s["spent"]
        for k in models:
            models[k].load_state_dict(s["model"][k])
            opt[k].load_state_dict(s["opt"][k])
    loss_fn = torch.compile(losses, dynamic=False) if device.type == "cuda" else losses
    source = plan(gens.train, a.tokens, np.random.default_rng(11 + step))
    begin, next_eval = time.monotonic() - spent, 0.1
    while True:
        spent = time.monotonic() - begin
        progress = max(step / a.steps if a.steps else 0, spent / 60 / a.minutes if a.minutes else 0)
        if progress >= next_eval or progress >= 1:
            held = held_out(m, models, gens, a, device)
            log.write(json.dumps({"step": step, "seconds": spent, "held": held}) + "\n")
            print("\nheld out tau:", "  ".join(f"{k} {v[0]:.3f}" for k, v in held.items()), flush=True)
            torch.save({"model": {k: d.state_dict() for k, d in models.items()}, "step": step, "spent": spent,
                        "opt": {k: o.state_dict() for k, o in opt.items()}}, state_file)
            next_eval += 0.1
        if progress >= 1:
            break
        bucket, docs = next(source)
        b = Blocks(m, a.taps, a.block, *(t.to(device) for t in gens.batch(docs, bucket)), bucket // a.spacing)
        rate = a.lr * min(1, progress / 0.04 + 0.01) * 0.5 * (1 + math.cos(math.pi * min(1, progress)))
        now = {}
        for name, d in models.items():
            for g in opt[name].param_groups:
                g["lr"] = rate
            with autocast(device):
                loss, _ = forward(d, m, b, loss_fn)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(d.parameters(), 1.0)
            opt[name].step()
            opt[name].zero_grad(set_to_none=True)
            now[name] = loss.detach()
        step += 1
        if step % 20 == 0:
            now = {k: v.item() for k, v in now.items()}
            log.write(json.dumps({"step": step, "seconds": spent, "loss": now}) + "\n")
            print(f"\r{progress:6.1%}  step {step}  {step / spent:.1f}/s  " +
                  "  ".join(f"{k} {v:.3f}" for k, v in now.items()), end="", flush=True)
    print()


def parse_variant(text):
    name, _, rest = text.partition(":")
    given = dict(kv.split("=") for kv in rest.split(",") if kv)
    return name, int(given.get("layers", 1)), int(given.get("rank", 64))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--target", type=pathlib.Path, required=True)
    p.add_argument("--gens", type=pathlib.Path, required=True)
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--variant", action="append", default=[])
    p.add_argument("--taps", type=int, nargs="+", help="layers whose outputs the draft reads (evenly spread)")
    p.add_argument("--block", type=int, default=7)
    p.add_argument("--minutes", type=float, default=0)
    p.add_argument("--steps", type=int, default=0)
    p.add_argument("--tokens", type=int, default=32768, help="tokens a step")
    p.add_argument("--spacing", type=int, default=8, help="one anchor for so many tokens of a row")
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--device", default="auto")
    a = p.parse_args()
    if not a.minutes and not a.steps:
        p.error("give --minutes or --steps")
    a.out.mkdir(parents=True, exist_ok=True)
    device = qwen3.pick_device(a.device)
    torch.manual_seed(2)
    m = qwen3.load_target(a.target, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    if device.type == "cuda":
        torch._dynamo.config.cache_size_limit = 64
        for layer in m.model.layers:
            layer.compile(dynamic=False)
    n = m.conf.num_hidden_layers
    a.taps = a.taps or sorted({1, (n - 1) * 4 // 9, (n - 1) * 6 // 9, n - 2})
    models = {}
    for v in a.variant or ["dspark:layers=1,rank=64"]:
        name, layers, rank = parse_variant(v)
        d = drafts.Draft(drafts.draft_config(m.conf, layers, a.taps, a.block, rank, rank > 0)).to(device)
        d.init_weights()
        models[name] = d
        print(f"{name}: {sum(q.numel() for q in d.parameters()) / 1e6:.2f} M parameters", flush=True)
    gens = Gens(a.gens, a.block)
    print(f"taps {a.taps}; texts {({b: len(v) for b, v in gens.train.items()})}", flush=True)
    train(m, models, gens, a, device)
    for name, d in models.items():
        d.save(a.out / name)


if __name__ == "__main__":
    main()
