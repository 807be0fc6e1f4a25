"""The DSpark draft in PyTorch: backbone with KV injection, vanilla Markov head, confidence head; rank 0 is DFlash.

Notation as in the papers: a block has `gamma` slots; slot 1 reads the anchor, the others the mask token; all slots see
the context before the anchor and each other. Embedding and head are the target's and are not stored.
"""
import json
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import model as qwen3


class MarkovHead(nn.Module):
    def __init__(self, vocab, rank):
        super().__init__()
        self.markov_w1, self.markov_w2 = nn.Embedding(vocab, rank), nn.Linear(rank, vocab, bias=False)
        nn.init.normal_(self.markov_w1.weight, std=0.5)
        nn.init.zeros_(self.markov_w2.weight) # no bias at first


class ConfidenceHead(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = nn.Linear(width, 1)
        nn.init.zeros_(self.proj.weight)


class Draft(nn.Module):
    def __init__(self, conf):
        super().__init__()
        c = self.conf = conf
        self.gamma, self.taps, self.rank = c.block_size, tuple(c.target_layer_ids), c.markov_rank
        self.fc = nn.Linear(len(self.taps) * c.hidden_size, c.hidden_size, bias=False)
        self.hidden_norm = qwen3.Norm(c.hidden_size, c.rms_norm_eps)
        self.layers = nn.ModuleList(qwen3.Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = qwen3.Norm(c.hidden_size, c.rms_norm_eps)
        if self.rank:
            self.markov_head = MarkovHead(c.vocab_size, self.rank)
        if c.enable_confidence_head:
            self.confidence_head = ConfidenceHead(c.hidden_size + (self.rank if c.confidence_head_with_markov else 0))

    def init_weights(self):
        for name, p in self.named_parameters():
            if p.dim() == 2 and "_head." not in name:
                nn.init.normal_(p, std=0.02)

    def context(self, taps):
        return self.hidden_norm(self.fc(taps))

    def block_rows(self, embed, anchors):
        """Inputs [B, A * gamma, C] of the blocks at anchor ids [B, A]."""
        ids = anchors.new_full((*anchors.shape, self.gamma), self.conf.mask_token_id)
        ids[..., 0] = anchors
        return F.embedding(ids.flatten(1), embed)

    def backbone(self, x, rope, keys, mask):
        """Hidden rows after the norm. keys(i, layer) gives layer i's context keys and values [B, G, T, D]; mask
        [B, 1, rows, T + rows] says which of context and block each row sees."""
        for i, layer in enumerate(self.layers):
            q, k, v = layer.qkv(x, rope)
            ck, cv = keys(i, layer)
            heads = layer.self_attn.heads // layer.self_attn.groups
            k, v = (torch.cat(p, 2).repeat_interleave(heads, 1) for p in ((ck, k), (cv, v)))
            x = layer.finish(x, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        return self.norm(x)

    def bias(self, prev):
        """Markov bias [..., V] after tokens prev, and their embedding [..., r]; 0 and None for DFlash."""
        if not self.rank:
            return 0.0, None
        e = self.markov_head.markov_w1(prev)
        return self.markov_head.markov_w2(e), e

    def confidence(self, h, e):
        """Logits [...] that a slot is accepted when those before it are."""
        if not self.conf.enable_confidence_head:
            return None
        x = torch.cat([h, e], -1) if self.conf.confidence_head_with_markov else h
        return self.confidence_head.proj(x)[..., 0]

    def save(self, folder, dtype="bfloat16"):
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().to(qwen3.DTYPES[dtype]).cpu().contiguous() for k, v in self.state_dict().items()},
                  str(folder / "model.safetensors"), {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(dict(self.conf) | {"torch_dtype": dtype}, indent=2) + "\n")


def draft_config(target, layers, taps, gamma, rank, confidence):
    """config.json of the released drafts: the target's with some fields changed and added."""
    c = {k: v for k, v in target.items() if k not in ("eos_token_id", "bos_token_id")}
    return qwen3.Config(c | dict(
        architectures=["Qwen3DSparkModel"], num_target_layers=target.num_hidden_layers, num_hidden_layers=layers,
        layer_types=["full_attention"] * layers, block_size=gamma, mask_token_id=target.vocab_size - 1,
        target_layer_ids=list(taps), tie_word_embeddings=False, markov_rank=rank, markov_head_type="vanilla",
        enable_confidence_head=confidence, confidence_head_with_markov=confidence and rank > 0))


def load_draft(folder, device):
    d = Draft(qwen3.Config.load(folder))
    tensors = {k: v for k, v in qwen3.load_tensors(folder).items() if k not in ("embed_tokens.weight", "lm_head.weight")}
    d.load_state_dict(tensors)
    return d.to(device).eval().requires_grad_(False)
