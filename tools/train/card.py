"""Pictures of the model cards.

  python tools/train/card.py target --log DIR/log.jsonl --out loss.png
  python tools/train/card.py draft  --rounds a.npz b.npz --results result.json ... --out FOLDER
"""
import argparse
import json
import pathlib

import matplotlib
import numpy as np

import sts

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  the backend is chosen first


def loss_curve(log, out):
    rows = [json.loads(line) for line in log.read_text().split("\n") if line]
    fig, ax = plt.subplots(figsize=(7, 4))
    ax.plot([r["tokens"] / 1e6 for r in rows if "loss" in r], [r["loss"] for r in rows if "loss" in r], color="0.7",
            label="training batch")
    held = [r for r in rows if "held" in r]
    for name in ("code", "math-gsm8k", "prose-books"):
        ax.plot([r["tokens"] / 1e6 for r in held], [r["held"][name][0] for r in held], marker=".", label=f"held out: {name}")
    ax.set(xlabel="million tokens", ylabel="nats per token", ylim=(0, 6))
    ax.legend()
    fig.savefig(out, dpi=80, bbox_inches="tight")


def reliability(p, n, whole, ax, slots, title):
    for k in slots:
        use = whole > k
        y, q = n[use] > k, p[use, k]
        at = np.minimum((sts.BINS * q).astype(int), sts.BINS - 1)
        count = np.bincount(at, minlength=sts.BINS)
        some = count >= 20
        ax.plot(np.bincount(at, q, sts.BINS)[some] / count[some], np.bincount(at, y, sts.BINS)[some] / count[some],
                marker=".", label=f"slots 1..{k + 1}")
    ax.plot([0, 1], [0, 1], color="0.7", zorder=0)
    ax.set(title=title, xlabel="predicted", ylabel="accepted")
    ax.legend()


def draft_pictures(rounds, results, out):
    folds = [sts.load(f) for f in rounds]
    z, n, whole = (np.concatenate(c) for c in zip(*folds))
    fig, axes = plt.subplots(1, 2, figsize=(9, 4))
    slots = (0, 1, 2, 4)
    reliability(sts.survivals(z, np.ones(z.shape[1])), n, whole, axes[0], slots, "before STS")
    reliability(sts.out_of_fold(folds), n, whole, axes[1], slots, "after STS (out of fold)")
    fig.savefig(out / "reliability.png", dpi=80, bbox_inches="tight")
    data = {}
    for f in results:
        data |= json.loads(f.read_text())
    domains = list(next(iter(data.values())))
    fig, axes = plt.subplots(1, len(domains), figsize=(4 * len(domains), 3.5), sharey=True)
    for ax, domain in zip(axes, domains):
        for name, by in data.items():
            c = by[domain]["T=1"]["conditional"]
            ax.plot(range(1, len(c) + 1), c, marker=".", label=f"{name}, tau {by[domain]['T=1']['tau']:.2f}")
        ax.set(title=f"{domain}, temperature 1", xlabel="slot", ylim=(0, 1))
        ax.legend()
    axes[0].set_ylabel("accepted, of those reached")
    fig.savefig(out / "acceptance.png", dpi=80, bbox_inches="tight")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["target", "draft"])
    p.add_argument("--log", type=pathlib.Path)
    p.add_argument("--rounds", type=pathlib.Path, nargs="+")
    p.add_argument("--results", type=pathlib.Path, nargs="+")
    p.add_argument("--out", type=pathlib.Path, required=True)
    a = p.parse_args()
    if a.what == "target":
        loss_curve(a.log, a.out)
    else:
        draft_pictures(a.rounds, a.results, a.out)


if __name__ == "__main__":
    main()
