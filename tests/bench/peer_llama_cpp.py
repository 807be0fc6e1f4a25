#!/usr/bin/env python3
"""Times forward passes of llama.cpp (PyPI: llama-cpp-python, gguf) on the weights of a Qwen3 folder, side by side with
ours: each round runs `dspark-bench forward` over all row counts, then llama.cpp over the same; medians and spread.

Usage: peer_llama_cpp.py --model DIR --bench build/release/bin/dspark-bench [--weights bf16|int8] [--rows 1,2,4,8]
Rows are one sequence's consecutive tokens, logits wanted for all of them: what a verification step is. Above 64 rows
logits are wanted for the last one only: prefill.
"""
import argparse
import ctypes
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import gguf
import llama_cpp
import numpy as np

CONTEXT = 64  # tokens already cached
PREFILL = 64  # more rows than this are a prefill: logits of the last one

NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def tensors(folder):
    """(name, shape, raw uint16 BF16 bits) of every tensor of the folder."""
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as f:
            size = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(size))
        data = np.memmap(path, np.uint8, "r", offset=8 + size)
        for name, info in header.items():
            if name != "__metadata__":
                if info["dtype"] != "BF16":
                    raise SystemExit(f"{name} is {info['dtype']}; this comparison reads BF16 checkpoints")
                begin, end = info["data_offsets"]
                yield name, info["shape"], data[begin:end].view(np.uint16)


def convert(folder, out, weights):
    c = json.loads((folder / "config.json").read_text())
    w = gguf.GGUFWriter(str(out), "qwen3")
    w.add_block_count(c["num_hidden_layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_key_length(c["head_dim"])
    w.add_value_length(c["head_dim"])
    w.add_rope_freq_base(float(c.get("rope_theta") or c["rope_parameters"]["rope_theta"]))
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_vocab_size(c["vocab_size"])
    w.add_tokenizer_model("no_vocab")
    for name, shape, bits in tensors(folder):
        parts = name.split(".")
        if name == "model.embed_tokens.weight":
            target = "token_embd.weight"
        elif name == "model.norm.weight":
            target = "output_norm.weight"
        elif name == "lm_head.weight":
            target = "output.weight"
        else:
            target = f"blk.{parts[2]}.{NAMES['.'.join(parts[3:-1])]}.weight"
        f32 = (bits.astype(np.uint32) << 16).view(np.float32).reshape(shape)
        if len(shape) == 1:
            w.add_tensor(target, f32)
        elif weights == "int8":
            w.add_tensor(target, gguf.quants.quantize(f32, gguf.GGMLQuantizationType.Q8_0),
                         raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            w.add_tensor(target, np.ascontiguousarray(bits.reshape(shape)).view(np.uint8),
                         raw_dtype=gguf.GGMLQuantizationType.BF16)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


class Peer:
    def __init__(self, path, threads, vocab):
        @llama_cpp.llama_log_callback
        def quiet(level, text, user):
            pass

        self.quiet, self.vocab = quiet, vocab
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        p = llama_cpp.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch = 2048, 512, 512
        p.n_threads = p.n_threads_batch = threads
        self.ctx = llama_cpp.llama_init_from_model(self.model, p)
        if not self.ctx:
            raise SystemExit("llama.cpp refused the model")
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)

    def forward(self, rows, start):
        """Seconds of one forward pass of `rows` rows at positions start.. (older cells are kept)."""
        b = self.batch
        b.n_tokens = rows
        for i in range(rows):
            b.token[i] = (17 * i + 3) % self.vocab
            b.pos[i], b.n_seq_id[i], b.seq_id[i][0] = start + i, 1, 0
            b.logits[i] = rows <= PREFILL or i + 1 == rows
        mem = llama_cpp.llama_get_memory(self.ctx)
        llama_cpp.llama_memory_seq_rm(mem, 0, start, -1)
        t = time.perf_counter()
        if llama_cpp.llama_decode(self.ctx, b) != 0:
            raise SystemExit("llama_decode failed")
        llama_cpp.llama_synchronize(self.ctx)
        return time.perf_counter() - t


def ours(args, rows, logits):
    """Seconds (median) of a pass for each row count."""
    cmd = [args.bench, "forward", "--model", str(args.model), "--rows", ",".join(map(str, rows)), "--threads",
           str(args.threads), "--weights", "int8" if args.weights == "int8" else "auto", "--context", str(CONTEXT),
           "--logits", logits, "--reps", str(args.reps), "--no-progress", "--json", "-"]
    out = json.loads(subprocess.run(cmd, check=True, capture_output=True, text=True).stdout)
    return {p["rows"]: p["median_ms"] / 1e3 for p in out["passes"]}


def one_round(args, peer, rows):
    a, b = {}, {}
    for logits, some in (("all", [r for r in rows if r <= PREFILL]), ("last", [r for r in rows if r > PREFILL])):
        if some:
            a.update(ours(args, some, logits))
            peer.forward(some[0], CONTEXT)
            b.update({r: statistics.median(peer.forward(r, CONTEXT) for _ in range(args.reps)) for r in some})
    return a, b


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", type=pathlib.Path, required=True)
    p.add_argument("--bench", default="build/release/bin/dspark-bench")
    p.add_argument("--weights", choices=["bf16", "int8"], default="bf16")
    p.add_argument("--rows", default="1,2,4,8,16,32,64,512")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--reps", type=int, default=3, help="passes of each row count in a round, at least 3")
    args = p.parse_args()
    vocab = json.loads((args.model / "config.json").read_text())["vocab_size"]
    with tempfile.TemporaryDirectory() as tmp:
        path = pathlib.Path(tmp) / "model.gguf"
        convert(args.model, path, args.weights)
        peer = Peer(path, args.threads, vocab)
        print(f"{args.weights}, {args.threads} threads, {args.rounds} interleaved rounds; ms per pass: median (min..max)")
        print(f"{'rows':>5} {'dsparkd':>24} {'x 1 row':>8} {'llama.cpp':>24} {'x 1 row':>8} {'ratio':>6}")
        rows = [int(r) for r in args.rows.split(",")]
        rounds = [one_round(args, peer, rows) for _ in range(args.rounds)]
        for r in rows:
            a, b = [x[r] for x, _ in rounds], [y[r] for _, y in rounds]
            one = statistics.median(x[r] / x[rows[0]] for x, _ in rounds), statistics.median(
                y[r] / y[rows[0]] for _, y in rounds)
            text = [f"{1e3 * statistics.median(v):.2f} ({1e3 * min(v):.2f}..{1e3 * max(v):.2f})" for v in (a, b)]
            ratio = statistics.median(y / x for x, y in zip(a, b))
            print(f"{r:>5} {text[0]:>24} {one[0]:>8.2f} {text[1]:>24} {one[1]:>8.2f} {ratio:>6.2f}", flush=True)


if __name__ == "__main__":
    main()
