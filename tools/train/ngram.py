"""An n-gram model as a drafter: absolute discounting, interpolated over all orders, counted on generated texts."""
import numpy as np
import torch

DISCOUNT = 0.75


class Ngram:
    def __init__(self, gens_file, vocab, device, order=5):
        bits = max(1, (vocab - 1).bit_length())
        self.bits, self.vocab, self.device = bits, vocab, device
        self.order = min(order, 62 // bits) # contexts are packed into one integer
        g = np.load(gens_file)
        ids, start = torch.from_numpy(g["ids"].astype(np.int64)).to(device), torch.from_numpy(g["start"]).to(device)
        text = torch.repeat_interleave(torch.arange(len(start) - 1, device=device), start.diff())
        within = torch.arange(len(ids), device=device) - start[text]
        self.keys, self.counts, self.sums = [], [], []
        key = ids.clone()
        for n in range(self.order): # context of n tokens, oldest in the highest bits
            if n:
                key[n:] += ids[:-n] << (bits * n)
            keys, counts = torch.unique(key[within >= n], return_counts=True)
            self.keys.append(keys)
            self.counts.append(counts.float())
            self.sums.append(torch.cat([counts.new_zeros(1), counts.cumsum(0)]))

    def probabilities(self, tokens):
        """[B, V] after contexts tokens [B, order - 1] (-1: before the text's start)."""
        B = len(tokens)
        p = torch.full((B, self.vocab), 1 / self.vocab, device=self.device)
        context = torch.zeros(B, dtype=torch.long, device=self.device)
        known = torch.ones(B, dtype=torch.bool, device=self.device)
        for n in range(self.order):
            if n:
                t = tokens[:, -n]
                known &= t >= 0
                context = context + (t.clamp(min=0) << (self.bits * (n - 1)))
            low = torch.searchsorted(self.keys[n], context << self.bits)
            high = torch.searchsorted(self.keys[n], (context + 1) << self.bits)
            size = torch.where(known, high - low, 0)
            total = (self.sums[n][high] - self.sums[n][low]).float()
            row = torch.repeat_interleave(torch.arange(B, device=self.device), size)
            at = torch.arange(len(row), device=self.device) - (size.cumsum(0) - size)[row] + low[row]
            seen = torch.zeros_like(p)
            seen[row, self.keys[n][at] & ((1 << self.bits) - 1)] = self.counts[n][at] - DISCOUNT
            some = size > 0
            mixed = (seen + DISCOUNT * size[:, None] * p) / total.clamp(min=1)[:, None]
            p = torch.where(some[:, None], mixed, p)
        return p
