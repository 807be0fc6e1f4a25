"""Batched speculative decoding in PyTorch: rejection sampling with the draft's true distribution, whole blocks.

One round of a request: the drafter proposes gamma tokens, the target reads anchor and proposals, n are accepted, one
token comes from the target. Rows of requests at different positions go through one pass; stale cache rows behind a
request's end are never read, because a row sees positions up to its own only.
"""
import torch
import torch.nn.functional as F

import model as qwen3


def softmax(logits, temperature):
    """Probabilities; one-hot of the argmax at temperature 0."""
    if temperature <= 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    return torch.softmax(logits.float() / temperature, -1)


def pick(p):
    return torch.multinomial(p.flatten(0, -2), 1).view(p.shape[:-1])


class Rows:
    """The target over rows [B, R] at positions start + 0..R-1, with its cache [layers, B, G, S, D]."""

    def __init__(self, m, requests, length):
        c, w = m.conf, m.lm_head.weight
        shape = (c.num_hidden_layers, requests, c.num_key_value_heads, length, c.head_dim)
        self.m, self.k, self.v = m, torch.zeros(shape, device=w.device), torch.zeros(shape, device=w.device)

    def __call__(self, ids, start, taps):
        m, (B, R) = self.m, ids.shape
        pos = start[:, None] + torch.arange(R, device=ids.device)
        rope = [t[:, None] for t in qwen3.rope_table(m.conf, pos)]
        see = (torch.arange(self.k.shape[3], device=ids.device) <= pos[..., None])[:, None]
        x, kept = m.model.embed_tokens(ids), {}
        for i, layer in enumerate(m.model.layers):
            q, k, v = layer.qkv(x, rope)
            store(self.k[i], k, pos)
            store(self.v[i], v, pos)
            x = layer.finish(x, attend(q, self.k[i], self.v[i], see))
            if i in taps:
                kept[i] = x
        return m.model.norm(x), torch.cat([kept[i] for i in taps], -1) if taps else None


def store(cache, rows, pos):
    """cache [B, G, S, D] gets rows [B, G, R, D] at positions pos [B, R]."""
    cache.scatter_(2, pos[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3]), rows)


def attend(q, k, v, see):
    heads = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(q, k.repeat_interleave(heads, 1), v.repeat_interleave(heads, 1), attn_mask=see)


class DraftModel:
    """Drafter of a DSpark or DFlash draft; keeps the draft's context keys and values."""

    def __init__(self, draft, m):
        self.d, self.m, self.gamma, self.taps = draft, m, draft.gamma, draft.taps

    def begin(self, requests, length):
        c, device = self.d.conf, self.m.lm_head.weight.device
        shape = (len(self.d.layers), requests, c.num_key_value_heads, length, c.head_dim)
        self.k, self.v = torch.zeros(shape, device=device), torch.zeros(shape, device=device)

    def extend(self, taps, start):
        """Context rows from taps [B, R, n C] at positions start + 0..R-1; rows that are not accepted are overwritten."""
        pos = start[:, None] + torch.arange(taps.shape[1], device=taps.device)
        rope = [t[:, None] for t in qwen3.rope_table(self.m.conf, pos)]
        ctx = self.d.context(taps)
        for i, layer in enumerate(self.d.layers):
            k, v = layer.kv(ctx, rope)
            store(self.k[i], k, pos)
            store(self.v[i], v, pos)

    def propose(self, tokens, start, temperature):
        """tokens [B, S] with the anchor at `start`: proposals [B, gamma], q [B, gamma, V], confidence logits or None."""
        d, B, S = self.d, len(start), self.k.shape[3]
        anchor = tokens.gather(1, start[:, None])
        slot = torch.arange(self.gamma, device=start.device)
        rope = [t[:, None] for t in qwen3.rope_table(self.m.conf, start[:, None] + slot)]
        see = (torch.arange(S, device=start.device) < start[:, None])[:, None, None].expand(-1, 1, self.gamma, -1)
        mask = torch.cat([see, see.new_ones(B, 1, self.gamma, self.gamma)], -1)
        h = d.backbone(d.block_rows(self.m.model.embed_tokens.weight, anchor), rope,
                       lambda i, layer: (self.k[i], self.v[i]), mask)
        base, prev = self.m.lm_head(h), anchor[:, 0]
        ids, qs, zs = [], [], []
        for k in range(self.gamma):
            bias, e = d.bias(prev)
            q = softmax(base[:, k] + bias, temperature)
            z = d.confidence(h[:, k], e)
            prev = pick(q)
            ids.append(prev)
            qs.append(q)
            zs.append(z)
        return torch.stack(ids, 1), torch.stack(qs, 1), torch.stack(zs, 1) if zs[0] is not None else None


class NgramModel:
    taps = ()

    def __init__(self, ngram, gamma):
        self.n, self.gamma = ngram, gamma

    def begin(self, requests, length):
        pass

    def extend(self, taps, start):
        pass

    def propose(self, tokens, start, temperature):
        width = self.n.order - 1
        at = start[:, None] + torch.arange(1 - width, 1, device=start.device)
        last = torch.where(at >= 0, tokens.gather(1, at.clamp(min=0)), -1)
        ids, qs = [], []
        for _ in range(self.gamma):
            q = softmax(self.n.probabilities(last).log(), temperature)
            ids.append(pick(q))
            qs.append(q)
            last = torch.cat([last[:, 1:], ids[-1][:, None]], 1)
        return torch.stack(ids, 1), torch.stack(qs, 1), None


def verify(p, q, x):
    """Rejection rule. p [B, gamma + 1, V], q [B, gamma, V], x [B, gamma]: accepted n [B] and the target's token [B]."""
    px, qx = (t.gather(-1, x[..., None])[..., 0] for t in (p[:, :-1], q))
    ok = torch.rand_like(px) * qx < px
    n = ok.long().cumprod(1).sum(1)
    row = torch.arange(len(x), device=x.device)
    left = (p[:, :-1] - q).clamp(min=0)
    mass = left.sum(-1, keepdim=True)
    left = torch.where(mass > 1e-8, left, p[:, :-1])
    last = torch.cat([left, p[:, -1:]], 1)[row, n]
    return n, pick(last)


@torch.no_grad()
def rollout(m, drafter, prompts, temperature, most, stop):
    """Answers of at most `most` tokens. Records, one a round: request [N], n [N], effective length [N] (gamma, or the
    slot of a stop token), emitted [N], z [N, gamma] (NaN without a confidence head). Texts: list of id lists."""
    device, B, gamma = m.lm_head.weight.device, len(prompts), drafter.gamma
    given = torch.tensor([len(p) for p in prompts], device=device)
    S = int(given.max()) + most + gamma + 2
    tokens = torch.zeros(B, S, dtype=torch.long, device=device)
    for i, p in enumerate(prompts):
        tokens[i, :len(p)] = torch.tensor(p)
    rows, stops = Rows(m, B, S), torch.tensor(stop, device=device)
    drafter.begin(B, S)
    zero = torch.zeros_like(given)
    h, taps = rows(tokens[:, :int(given.max())], zero, drafter.taps)
    if drafter.taps:
        drafter.extend(taps, zero)
    row = torch.arange(B, device=device)
    start = given.clone()
    tokens[row, start] = pick(softmax(m.lm_head(h[row, start - 1]), temperature))
    alive = ~torch.isin(tokens[row, start], stops)
    records = []
    while alive.any():
        x, q, z = drafter.propose(tokens, start, temperature)
        ids = torch.cat([tokens.gather(1, start[:, None]), x], 1)
        h, taps = rows(ids, start, drafter.taps)
        n, y = verify(softmax(m.lm_head(h), temperature), q, x)
        if drafter.taps:
            drafter.extend(taps, start)
        out = torch.cat([x, x[:, :1]], 1).scatter(1, n[:, None], y[:, None]) # x_1..x_n, y; rest is not used
        slot = torch.arange(gamma + 1, device=device)
        ends = torch.isin(out, stops) & (slot <= n[:, None])
        end = torch.where(ends.any(1), ends.long().argmax(1), gamma + 1)
        inside = end < n # a stop among the accepted drafts: the target's token is not emitted
        emitted = torch.where(inside, end + 1, n + 1)
        whole = torch.where(inside, end + 1, gamma)
        record = [row, torch.minimum(n, whole), whole, emitted]
        records.append([t[alive] for t in record] + [z[alive] if z is not None else
                                                     torch.full((int(alive.sum()), gamma), float("nan"), device=device)])
        keep = alive[:, None] & (slot < emitted[:, None])
        at = torch.where(keep, start[:, None] + 1 + slot, S - 1)
        tokens.scatter_(1, at, torch.where(keep, out, 0))
        start = torch.where(alive, start + emitted, start)
        alive &= (end > n) & (start - given + gamma + 1 < most)
    text = [tokens[i, :start[i] + 1].tolist() for i in range(B)]
    return [torch.cat(c).cpu().numpy() for c in zip(*records)], text
