"""Accepted length and conditional acceptance of drafters on prompts, by real speculative decoding in PyTorch.

  python tools/train/evaluate.py --target DIR --prompts code.jsonl gsm8k.jsonl --draft name=DIR ... [--ngram gens.npz]
                                 --out result.json [--rounds rounds.npz] [--tokens 128] [--temperatures 1 0]

Each prompts file is a domain. tau is tokens a round (a stop inside the drafts counts without the target's token, as in
the paper). --rounds keeps the first draft's rounds at temperature 1 (z, n, whole, domain) for sts.py.
"""
import argparse
import json
import pathlib
import time

import numpy as np
import torch

import drafts
import generate
import model as qwen3
import rollout
from ngram import Ngram


def summary(request, n, whole, emitted, gamma):
    """tau, rounds, tokens, and acceptance at each slot of the rounds whose slots before it were accepted."""
    reached = [((n >= k - 1) & (whole >= k)).sum() for k in range(1, gamma + 1)]
    passed = [(n >= k).sum() for k in range(1, gamma + 1)]
    return {"tau": float(emitted.mean()), "rounds": len(n), "tokens": int(emitted.sum()),
            "conditional": [float(p / max(1, r)) for p, r in zip(passed, reached)]}


def parse(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--target", type=pathlib.Path, required=True)
    p.add_argument("--prompts", type=pathlib.Path, nargs="+", required=True)
    p.add_argument("--draft", action="append", default=[], help="name=DIR")
    p.add_argument("--ngram", type=pathlib.Path, help="texts of generate.py that an n-gram drafter is counted on")
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--rounds", type=pathlib.Path)
    p.add_argument("--tokens", type=int, default=128)
    p.add_argument("--count", type=int, default=0, help="prompts of each file")
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 0.0])
    p.add_argument("--device", default="auto")
    return p.parse_args(argv)


def drafters(a, m, device):
    out, gamma = {}, 7
    for item in a.draft:
        name, _, folder = item.partition("=")
        out[name] = rollout.DraftModel(drafts.load_draft(folder, device), m)
        gamma = out[name].gamma
    if a.ngram:
        out["ngram"] = rollout.NgramModel(Ngram(a.ngram, m.conf.vocab_size, device), gamma)
    return out


def run(m, d, prompts, temperature, a):
    parts = [rollout.rollout(m, d, prompts[i:i + a.batch], temperature, a.tokens, generate.stop_ids(m.conf))[0]
             for i in range(0, len(prompts), a.batch)]
    return [np.concatenate(c) for c in zip(*parts)]


def main():
    a = parse()
    device = qwen3.pick_device(a.device)
    torch.manual_seed(4)
    m = qwen3.load_target(a.target, device)
    result, kept = {}, []
    for name, d in drafters(a, m, device).items():
        for path in a.prompts:
            _, prompts = generate.load_prompts(a.target, [path], a.count)
            for t in a.temperatures:
                begin = time.monotonic()
                rec = run(m, d, prompts, t, a)
                s = summary(*rec[:4], d.gamma)
                result.setdefault(name, {}).setdefault(path.stem, {})[f"T={t:g}"] = s
                print(f"{name:10} {path.stem:8} T={t:g}  tau {s['tau']:.3f}  rounds {s['rounds']:6}  conditional " +
                      " ".join(f"{c:.3f}" for c in s["conditional"]) + f"  ({time.monotonic() - begin:.0f} s)", flush=True)
                if t == 1 and a.rounds and name == a.draft[0].partition("=")[0]:
                    kept.append(rec[1:3] + [rec[4], np.full(len(rec[1]), path.stem)])
    a.out.write_text(json.dumps(result, indent=1) + "\n")
    if kept:
        n, whole, z, domain = (np.concatenate(c) for c in zip(*kept))
        np.savez_compressed(a.rounds, n=n, whole=whole, z=z, domain=domain)


if __name__ == "__main__":
    main()
