"""Start to first token: from the start of dsparkd to the first event of a stream, with its own CPU worker.

Usage: DSPARK_BIN=build/release/bin python tests/bench/bench_start.py [--model DIR] [--draft DIR] [--times N]
Without --model: a random checkpoint of the bundled model's size, made below the temporary folder.
"""

import argparse
import http.client
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))
import fake_model  # noqa: E402
from conftest import BIN, Stage  # noqa: E402


def once(model, flags):
    folder = tempfile.TemporaryDirectory()
    stage = Stage(pathlib.Path(folder.name))
    try:
        start = time.monotonic()
        d = stage.daemon(model, *flags)
        while not d.ready():
            time.sleep(0.005)
        ready = time.monotonic() - start
        c = http.client.HTTPConnection("127.0.0.1", d.port, timeout=30)
        c.request("POST", "/v1/completions", json.dumps({"prompt": "Once upon a time", "max_tokens": 4, "stream": True}))
        assert c.getresponse().read(20).startswith(b"data: {")
        return ready, time.monotonic() - start
    finally:
        stage.end()
        folder.cleanup()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--model")
    p.add_argument("--draft")
    p.add_argument("--times", type=int, default=5)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model = a.model
        if not model:
            subprocess.run([BIN / "dspark-bench", "make-model", "--shape", "demo", "--dir", folder / "demo"], check=True)
            model = fake_model.write_model(folder / "demo")
        marks = [once(model, ["--draft", a.draft] if a.draft else []) for _ in range(a.times)]
    ready, first = ([m[i] for m in marks] for i in (0, 1))
    print(f"{a.times} starts: ready after {statistics.median(ready):.3f} s (longest {max(ready):.3f}), first token after "
          f"{statistics.median(first):.3f} s (longest {max(first):.3f})")


if __name__ == "__main__":
    main()
