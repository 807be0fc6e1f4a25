"""tools/train end to end at a tiny scale on the CPU; skipped (and counted) where PyTorch is missing."""

import json
import os
import pathlib
import random
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")

TOOLS = pathlib.Path(__file__).resolve().parent.parent.parent / "tools" / "train"


def run(script, *args):
    env = dict(os.environ, OMP_NUM_THREADS="2")
    p = subprocess.run([sys.executable, str(TOOLS / script), *map(str, args)], capture_output=True, text=True, env=env)
    assert p.returncode == 0, p.stderr[-2000:]


def test_corpus_to_calibrated_draft(tmp_path):
    corpus, work = tmp_path / "corpus", tmp_path / "work"
    corpus.mkdir()
    rng = random.Random(1)
    rows = [{"id": f"m/{i}", "text": f"Question: What is {a} plus {b}?\nAnswer: {a} + {b} = {a + b}.\n#### {a + b}"}
            for i in range(200) for a, b in [(i, rng.randrange(50))]] # no two questions alike
    (corpus / "math-gsm8k.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    run("prepare.py", "--corpus", corpus, "--out", work, "--vocab", 320, "--prompts", 200, "--holdout-prompts", 4)
    held = (work / "holdout" / "gsm8k.jsonl").read_text()
    trained = (work / "prompts.jsonl").read_text()
    assert held and all(json.loads(line)["turns"][0] not in trained for line in held.splitlines())
    target = work / "target"
    run("target.py", "--data", work, "--out", target, "--tiny", "--length", 64, "--long", 128, "--batch", 256,
        "--tokens", 2000, "--held", 1, "--device", "cpu")
    run("generate.py", "--target", target, "--prompts", work / "prompts.jsonl", "--count", 24, "--out", work / "g.npz",
        "--length", 120, "--long", 120, "--device", "cpu")
    run("draft.py", "--target", target, "--gens", work / "g.npz", "--out", work / "d", "--steps", 2, "--tokens", 256,
        "--spacing", 32, "--variant", "a:layers=1,rank=64", "--device", "cpu")
    run("evaluate.py", "--target", target, "--prompts", work / "holdout" / "gsm8k.jsonl", "--draft", f"a={work}/d/a",
        "--out", work / "r.json", "--rounds", work / "r.npz", "--tokens", 24, "--device", "cpu")
    tau = json.loads((work / "r.json").read_text())["a"]["gsm8k"]["T=1"]["tau"]
    assert 1 <= tau <= 8
    run("sts.py", "--rounds", work / "r.npz", "--draft", work / "d" / "a")
    assert len(json.loads((work / "d" / "a" / "sts.json").read_text())["temperatures"]) == 7
    conf = json.loads((work / "d" / "a" / "config.json").read_text())
    assert conf["architectures"] == ["Qwen3DSparkModel"] and conf["mask_token_id"] == conf["vocab_size"] - 1
