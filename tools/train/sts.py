"""Sequential temperature scaling: fit on rounds of whole blocks, and calibration errors before and after.

  python tools/train/sts.py --rounds DIR/calibration.npz --draft DIR [--check DIR/holdout.npz]

Rounds come from evaluate.py (temperature 1, every draft verified). Writes DRAFT/sts.json, which the server reads:
{"temperatures": [T_1..T_gamma], ...}; T_k is the grid's best for the calibration error of the product up to slot k.
"""
import argparse
import json
import pathlib

import numpy as np

BINS = 20
GRID = 2.0 ** (np.arange(-48, 49) / 16)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def ece(p, y):
    """Expected calibration error: mean over 20 equal bins of |sum of predictions - sum of outcomes|."""
    p = np.clip(p, 1e-8, 1 - 1e-8)
    at = np.minimum((BINS * p).astype(int), BINS - 1)
    gap = np.bincount(at, p, BINS) - np.bincount(at, y, BINS)
    return np.abs(gap).sum() / max(1, len(p))


def survivals(z, temperatures):
    """Predicted probability [N, gamma] that slots 1..k are all accepted."""
    return np.cumprod(sigmoid(z.astype(np.float64) / temperatures), 1)


def outcomes(n, gamma):
    return (n[:, None] >= np.arange(1, gamma + 1)).astype(np.float64)


def fit(z, n, whole):
    """Temperatures [gamma]; 1 where a position has fewer than 200 records."""
    gamma = z.shape[1]
    prefix, y, out = np.ones(len(z)), outcomes(n, gamma), []
    for k in range(gamma):
        use, best = whole > k, 1.0
        if use.sum() >= 200:
            errors = [ece(prefix[use] * sigmoid(z[use, k] / t), y[use, k]) for t in GRID]
            order = sorted(range(len(GRID)), key=lambda i: (errors[i], abs(np.log(GRID[i])), GRID[i]))
            best = float(GRID[order[0]])
        prefix = prefix * sigmoid(z[:, k] / best)
        out.append(best)
    return out


def errors(z, n, whole, temperatures):
    p, y = survivals(z, temperatures), outcomes(n, z.shape[1])
    return [float(ece(p[whole > k, k], y[whole > k, k])) for k in range(z.shape[1])]


def load(path):
    r = np.load(path)
    return r["z"].astype(np.float64), r["n"], r["whole"]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=pathlib.Path, required=True)
    p.add_argument("--draft", type=pathlib.Path, required=True)
    p.add_argument("--check", type=pathlib.Path, help="rounds of other prompts, for the errors that are reported")
    a = p.parse_args()
    z, n, whole = load(a.rounds)
    temperatures = fit(z, n, whole)
    zc, nc, wc = load(a.check or a.rounds)
    before, after = errors(zc, nc, wc, np.ones(z.shape[1])), errors(zc, nc, wc, np.array(temperatures))
    (a.draft / "sts.json").write_text(json.dumps(
        {"temperatures": temperatures, "rounds": len(z), "sampling": "temperature 1, whole blocks",
         "checked_on": len(zc), "ece_before": before, "ece_after": after}, indent=2) + "\n")
    print("slot  T      ECE before  after")
    for k, t in enumerate(temperatures):
        print(f"{k + 1:4}  {t:.3f}  {before[k]:9.2%}  {after[k]:.2%}")


if __name__ == "__main__":
    main()
