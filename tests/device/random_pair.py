#!/usr/bin/env python3
"""Writes a target and a draft with random bf16 weights of a known shape, for measuring speed: text from them is noise.

Usage: random_pair.py SHAPE FOLDER     SHAPE: 8b, 4b (Qwen3 with a 5-layer draft of block 7) or small
Makes FOLDER/target and FOLDER/draft. Sources of the shapes: the released config.json of Qwen3-8B and -4B and of their
DSpark drafts.
"""
import concurrent.futures
import json
import os
import pathlib
import struct
import sys

SHAPES = {
    "8b": dict(layers=36, d=4096, heads=32, kv=8, hd=128, mlp=12288, vocab=151936, taps=[1, 9, 17, 25, 33]),
    "4b": dict(layers=36, d=2560, heads=32, kv=8, hd=128, mlp=9728, vocab=151936, taps=[1, 9, 17, 25, 33]),
    "small": dict(layers=4, d=256, heads=4, kv=2, hd=64, mlp=512, vocab=1024, taps=[0, 1, 2]),
}
RANK, BLOCK, DRAFT_LAYERS = 256, 7, 5
CHUNK = 1 << 25


def noise():
    """CHUNK bytes of bf16 numbers of either sign between 2^-7 and 2^-5."""
    data = bytearray(CHUNK)
    data[0::2] = os.urandom(CHUNK // 2)
    data[1::2] = os.urandom(CHUNK // 2).translate(bytes(0x3C if i < 128 else 0xBC for i in range(256)))
    return bytes(data)


def layers(prefix, n, s):
    for i in range(n):
        p = f"{prefix}layers.{i}."
        yield from ((p + "input_layernorm.weight", [s["d"]]), (p + "post_attention_layernorm.weight", [s["d"]]))
        yield from ((p + "self_attn.q_proj.weight", [s["heads"] * s["hd"], s["d"]]),
                    (p + "self_attn.k_proj.weight", [s["kv"] * s["hd"], s["d"]]),
                    (p + "self_attn.v_proj.weight", [s["kv"] * s["hd"], s["d"]]),
                    (p + "self_attn.o_proj.weight", [s["d"], s["heads"] * s["hd"]]))
        yield from ((p + "self_attn.q_norm.weight", [s["hd"]]), (p + "self_attn.k_norm.weight", [s["hd"]]))
        yield from ((p + "mlp.gate_proj.weight", [s["mlp"], s["d"]]), (p + "mlp.up_proj.weight", [s["mlp"], s["d"]]),
                    (p + "mlp.down_proj.weight", [s["d"], s["mlp"]]))


def write(folder, config, tensors, block):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    header, at = {}, 0
    for name, shape in tensors:
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)
    with open(folder / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        begin = f.tell()
        f.truncate(begin + at)
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda o: os.pwrite(f.fileno(), block[:min(CHUNK, at - o)], begin + o), range(0, at, CHUNK)))


def main():
    s, folder = SHAPES[sys.argv[1]], pathlib.Path(sys.argv[2])
    common = dict(model_type="qwen3", hidden_size=s["d"], intermediate_size=s["mlp"], num_attention_heads=s["heads"],
                  num_key_value_heads=s["kv"], head_dim=s["hd"], vocab_size=s["vocab"], rms_norm_eps=1e-6,
                  rope_theta=1e6, max_position_embeddings=40960, hidden_act="silu", tie_word_embeddings=False)
    block = noise()
    tables = [("lm_head.weight", [s["vocab"], s["d"]])]
    write(folder / "target", dict(common, architectures=["Qwen3ForCausalLM"], num_hidden_layers=s["layers"]),
          [("model.embed_tokens.weight", [s["vocab"], s["d"]]), *tables, ("model.norm.weight", [s["d"]]),
           *layers("model.", s["layers"], s)], block)
    write(folder / "draft",
          dict(common, architectures=["Qwen3DSparkModel"], num_hidden_layers=DRAFT_LAYERS,
               num_target_layers=s["layers"], block_size=BLOCK, mask_token_id=s["vocab"] - 1,
               target_layer_ids=s["taps"], markov_rank=RANK, markov_head_type="vanilla", enable_confidence_head=True,
               confidence_head_with_markov=True),
          [("fc.weight", [s["d"], len(s["taps"]) * s["d"]]), ("hidden_norm.weight", [s["d"]]), ("norm.weight", [s["d"]]),
           *layers("", DRAFT_LAYERS, s), ("markov_head.markov_w1.weight", [s["vocab"], RANK]),
           ("markov_head.markov_w2.weight", [s["vocab"], RANK]),
           ("confidence_head.proj.weight", [1, s["d"] + RANK]), ("confidence_head.proj.bias", [1])], block)


if __name__ == "__main__":
    main()
