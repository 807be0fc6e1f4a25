"""client/example.py against a router: the same tokens as over HTTP, errors by field, cancel, several clients at once."""

import pathlib
import shutil
import subprocess
import sys
import time

import fake_model
import pytest
from conftest import wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytest.importorskip("zmq")
pytest.importorskip("google.protobuf")
pytestmark = pytest.mark.skipif(not shutil.which("protoc"), reason="no protoc here")


def start(endpoint, *args):
    return subprocess.Popen([sys.executable, ROOT / "client/example.py", endpoint, *map(str, args)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def ask(endpoint, *args):
    p = start(endpoint, *args)
    out, err = p.communicate(timeout=60)
    return p.returncode, out, err


@pytest.fixture
def endpoint(served):
    return f"ipc://{served.stage.folder}/rpc"


def test_the_text_is_the_models(endpoint):
    want = fake_model.decode(fake_model.generate(fake_model.encode("Hello"), 30))
    assert ask(endpoint, "Hello", "--max-tokens", 30) == (0, f"{want}\n[length: 5 prompt tokens, 30 generated]\n", "")


def test_seeds(endpoint):
    want = fake_model.decode(fake_model.generate(fake_model.encode("s"), 20, 9))
    assert ask(endpoint, "s", "--max-tokens", 20, "--temperature", 1, "--seed", 9)[1].startswith(want + "\n")


def test_a_refusal_names_the_field(endpoint):
    code, out, err = ask(endpoint, "x", "--temperature", 3)
    assert code == 1 and "temperature" in err and "[0, 2]" in err and not out
    code, out, err = ask(endpoint, "")
    assert code == 1 and "prompt" in err


def test_no_router(tmp_path):
    start_s = time.monotonic()
    code, _, err = ask(f"ipc://{tmp_path}/nothing", "x")
    assert code == 2 and err and time.monotonic() - start_s < 30


def test_cancel_and_a_client_that_dies(stage):
    d = stage.router("--rpc", f"ipc://{stage.folder}/rpc")
    stage.fake("fake-0", "--step-us", 20000)
    d.wait_ready()
    code, out, _ = ask(f"ipc://{stage.folder}/rpc", "x", "--max-tokens", 3000, "--cancel-after", 5)
    assert code == 0 and "[cancelled: 1 prompt tokens" in out
    wait_for(lambda: d.metric("dspark_running") == 0, 10, "the end of the cancelled request")
    p = start(f"ipc://{stage.folder}/rpc", "x", "--max-tokens", 3000)
    wait_for(lambda: d.metric("dspark_running") == 1, 20, "the request")
    p.kill()
    p.communicate()
    wait_for(lambda: d.metric("dspark_running") == 0, 10, "the cancel")


def test_clients_at_once_keep_apart(endpoint):
    clients = [start(endpoint, f"client {i}", "--max-tokens", 50) for i in range(4)]
    for i, p in enumerate(clients):
        want = fake_model.decode(fake_model.generate(fake_model.encode(f"client {i}"), 50))
        assert p.communicate(timeout=60)[0].startswith(want + "\n")
