"""Qwen3 in plain PyTorch, with the module names of a Hugging Face checkpoint, and reading and writing its folders.

A layer is used in three ways: whole causal sequences (`forward`), rows against a cache (`qkv`, `finish`), and as the
draft's layer, whose context keys come from elsewhere (`kv`).
"""
import json
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Config(dict):
    """config.json with its keys as attributes and Qwen3's defaults."""
    DEFAULTS = dict(rms_norm_eps=1e-6, head_dim=128, tie_word_embeddings=False, max_position_embeddings=32768)

    def __getattr__(self, key):
        if key == "rope_theta":
            return float(self.get("rope_theta") or (self.get("rope_parameters") or {}).get("rope_theta", 1e4))
        if key in self or key in self.DEFAULTS:
            return self.get(key, self.DEFAULTS.get(key))
        raise AttributeError(key)

    @staticmethod
    def load(folder):
        c = Config(json.loads((pathlib.Path(folder) / "config.json").read_text()))
        rope = c.get("rope_scaling") or c.get("rope_parameters") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default" or c.get("attention_bias"):
            raise SystemExit(f"{folder}: rope type {kind!r} or attention_bias is not supported here")
        return c


class Norm(nn.Module):
    def __init__(self, n, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(n)), eps

    def forward(self, x):
        f = x.float()
        f = f * torch.rsqrt(f.square().mean(-1, keepdim=True) + self.eps)
        return f.to(x.dtype) * self.weight.to(x.dtype)


def rope_table(c, positions):
    """cos and sin [..., head_dim] in f32 for integer positions of any shape."""
    half = torch.arange(0, c.head_dim, 2, device=positions.device, dtype=torch.float32) / c.head_dim
    angle = positions[..., None].float() * (c.rope_theta ** -half)
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def rotate(x, rope):
    """x [B, heads, T, D] by tables [T, D] or [B, 1, T, D]."""
    a, b = x.float().chunk(2, -1)
    return (x.float() * rope[0] + torch.cat([-b, a], -1) * rope[1]).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.groups, self.d = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, self.heads * self.d, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, self.groups * self.d, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, self.groups * self.d, bias=False)
        self.o_proj = nn.Linear(self.heads * self.d, c.hidden_size, bias=False)
        self.q_norm, self.k_norm = Norm(self.d, c.rms_norm_eps), Norm(self.d, c.rms_norm_eps)

    def split(self, x, heads):
        return x.view(*x.shape[:-1], heads, self.d).transpose(-2, -3)


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c, dropout=0.0):
        super().__init__()
        self.input_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.mlp = MLP(c)
        self.dropout = dropout

    def kv(self, y, rope):
        """Keys (normed, rotated) and values [B, groups, T, D] of rows y [B, T, C] that are already normed."""
        a = self.self_attn
        return rotate(a.k_norm(a.split(a.k_proj(y), a.groups)), rope), a.split(a.v_proj(y), a.groups)

    def qkv(self, x, rope):
        a, y = self.self_attn, self.input_layernorm(x)
        return rotate(a.q_norm(a.split(a.q_proj(y), a.heads)), rope), *self.kv(y, rope)

    def drop(self, x):
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def finish(self, x, attended):
        """Residual adds after attention [B, heads, T, D]."""
        x = x + self.drop(self.self_attn.o_proj(attended.transpose(-2, -3).flatten(-2)))
        return x + self.drop(self.mlp(self.post_attention_layernorm(x)))

    def forward(self, x, rope):
        q, k, v = self.qkv(x, rope)
        return self.finish(x, F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))


class Decoder(nn.Module):
    def __init__(self, c, dropout):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c, dropout) for _ in range(c.num_hidden_layers))
        self.norm = Norm(c.hidden_size, c.rms_norm_eps)


class Qwen3(nn.Module):
    def __init__(self, c, dropout=0.0):
        super().__init__()
        self.conf, self.model = c, Decoder(c, dropout)
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
        if c.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def init_weights(self):
        out = 0.02 / (2 * self.conf.num_hidden_layers) ** 0.5
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=out if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02)

    def hidden(self, ids, taps=()):
        """Final hidden rows [B, T, C] after the last norm, and the taps' residual rows [B, T, len(taps) * C]."""
        x = self.model.embed_tokens(ids)
        rope = rope_table(self.conf, torch.arange(ids.shape[-1], device=ids.device))
        kept = {-1: x}
        for i, layer in enumerate(self.model.layers):
            x = layer(x, rope)
            if i in taps:
                kept[i] = x
        return self.model.norm(x), torch.cat([kept[i] for i in taps], -1) if taps else None

    def save(self, folder, dtype="bfloat16"):
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.detach().to(DTYPES[dtype]).cpu().contiguous() for k, v in self.state_dict().items()
                   if not (k == "lm_head.weight" and self.conf.tie_word_embeddings)}
        save_file(tensors, str(folder / "model.safetensors"), {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(dict(self.conf) | {"torch_dtype": dtype}, indent=2) + "\n")


def load_tensors(folder):
    """All tensors of a folder's safetensors files, by name."""
    out = {}
    for f in sorted(pathlib.Path(folder).glob("*.safetensors")):
        out |= load_file(str(f))
    if not out:
        raise SystemExit(f"{folder}: no .safetensors file")
    return out


def load_target(folder, device, dtype=torch.float32):
    c = Config.load(folder)
    m = Qwen3(c).to(dtype)
    tensors = load_tensors(folder)
    tied = c.tie_word_embeddings and "lm_head.weight" not in tensors
    missing, extra = m.load_state_dict(tensors, strict=False)
    if set(missing) - ({"lm_head.weight"} if tied else set()) or extra:
        raise SystemExit(f"{folder}: tensors missing {missing}, unknown {extra}")
    return m.to(device).eval().requires_grad_(False)


def pick_device(name="auto"):
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
