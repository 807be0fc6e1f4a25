"""scripts/quickstart with the programs of this build: a stream, marked drafts, what they saved, and a clean end."""
import os
import pathlib
import re
import signal
import socket
import subprocess

import fake_model
import pytest
from conftest import BIN

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO, DRAFT = ROOT / "models/spark-demo", ROOT / "models/spark-demo-draft"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def quickstart(*flags, **how):
    return subprocess.Popen([ROOT / "scripts/quickstart", "--bin", BIN, *map(str, flags)], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/", **how)


@pytest.fixture
def tiny(tmp_path):
    """A random checkpoint with a tokenizer and a chat template."""
    subprocess.run([BIN / "dspark-bench", "make-model", "--shape", "tiny", "--dir", tmp_path / "tiny"], check=True,
                   capture_output=True)
    return fake_model.write_model(tmp_path / "tiny")


def test_once_with_another_model(tiny):
    p = quickstart("--once", "--listen", f"127.0.0.1:{free_port()}", "--model", tiny)
    text = p.communicate(timeout=60)[0]
    assert p.returncode == 0, text
    assert "[4/4]" in text and "no draft model" in text and "(model: tiny)" in text
    assert re.search(r"^\d+ tokens?; [\d.]+ tokens/s$", text, re.M), text
    assert "draining" in text  # the daemon was ended in order


def test_it_stays_until_interrupted(tiny):
    port = free_port()
    p = quickstart("--listen", f"127.0.0.1:{port}", "--model", tiny, start_new_session=True)
    for line in p.stdout:
        if line.startswith("Press Ctrl-C"):
            break
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    os.killpg(p.pid, signal.SIGINT)
    assert p.wait(20) in (0, 130)
    p.stdout.close()


def test_a_bad_model_is_told(tmp_path):
    p = quickstart("--once", "--listen", f"127.0.0.1:{free_port()}", "--model", tmp_path / "none")
    text = p.communicate(timeout=60)[0]
    assert p.returncode == 1 and "no such folder" in text


@pytest.mark.skipif(not ((DEMO / "model.safetensors").exists() and DRAFT.exists()), reason="the demo pair is not here")
def test_the_bundled_pair(tmp_path):
    p = quickstart("--once", "--listen", f"127.0.0.1:{free_port()}")
    text = p.communicate(timeout=120)[0]
    assert p.returncode == 0, text
    tokens, steps, saved = map(int, re.search(r"(\d+) tokens in (\d+) steps of the target: (\d+) steps saved", text).groups())
    assert tokens == steps + saved and saved > 0
    answer = text.split("\n> ", 1)[1]
    assert "\u2039" in answer and "\u203a" in answer
