"""Programs under test: dsparkd and fake or real workers, started on free ports and ended for certain."""

import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

import fake_model

BIN = pathlib.Path(os.environ.get("DSPARK_BIN", "build/release/bin")).resolve()


def wait_for(condition, seconds=10, what="condition"):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come within {seconds} s")


class Program:
    """A child process whose output lies in a file."""

    def __init__(self, log, *args):
        self.log = log
        with open(log, "ab") as out:
            self.process = subprocess.Popen([str(a) for a in args], stdout=out, stderr=subprocess.STDOUT,
                                            stdin=subprocess.DEVNULL)

    def text(self):
        return self.log.read_text(errors="replace")

    def signal(self, sig):
        self.process.send_signal(sig)

    def wait(self, seconds=10):
        return self.process.wait(seconds)

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()


class Daemon(Program):
    def __init__(self, log, model, *flags):
        super().__init__(log, BIN / "dsparkd", "--model", model, "--listen", "127.0.0.1:0", *flags)
        ended = wait_for(lambda: self.served_on() or self.process.poll() is not None, what="the port")
        match = self.served_on()  # once more: it may have said so and ended between the two looks
        assert match, (ended, self.text())
        self.port = int(match.group(1))
        self.url = f"http://127.0.0.1:{self.port}"

    def served_on(self):
        return re.search(r"served on port (\d+)", self.text())

    def request(self, method, path, body=None, headers=None, timeout=30):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            if body is not None and not isinstance(body, (str, bytes)):
                body = json.dumps(body)
            c.request(method, path, body, headers or {})
            r = c.getresponse()
            data = r.read()
            kind = r.headers.get("Content-Type", "")
            return r.status, json.loads(data) if kind.startswith("application/json") and data else data.decode(), r.headers
        finally:
            c.close()

    def get(self, path):
        return self.request("GET", path)[:2]

    def post(self, path, body):
        return self.request("POST", path, body)[:2]

    def ready(self):
        return self.get("/ready")[0] == 200

    def wait_ready(self, seconds=10):
        wait_for(self.ready, seconds, "/ready")
        return self

    def metric(self, name):
        return sum(float(line.rsplit(" ", 1)[1]) for line in self.get("/metrics")[1].splitlines()
                   if line.split("{")[0].split(" ")[0] == name)


class Stage:
    """What one test has started; ended in reverse order."""

    def __init__(self, folder):
        self.folder = folder
        self.programs = []
        self.endpoint = f"ipc://{folder}/w"

    def add(self, program):
        self.programs.append(program)
        return program

    def log(self, name):
        return self.folder / f"{name}-{len(self.programs)}.log"

    def daemon(self, model, *flags):
        return self.add(Daemon(self.log("dsparkd"), model, *flags))

    def fake(self, name="fake-0", *flags):
        return self.add(Program(self.log(name), BIN / "dspark-fake-worker", "--connect", self.endpoint, "--name", name,
                                "--vocab", fake_model.VOCAB, "--first-token", fake_model.FIRST, *flags))

    def router(self, *flags):
        """A router whose workers the test starts itself; it notices a silent one soon."""
        model = fake_model.write_model(self.folder / "tiny")
        return self.daemon(model, "--workers", 0, "--bind-workers", self.endpoint, "--heartbeat-ms", 100,
                           "--worker-timeout-ms", 1000, *flags)

    def end(self):
        for program in reversed(self.programs):
            program.end()


@pytest.fixture
def stage(tmp_path):
    s = Stage(tmp_path)
    yield s
    s.end()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """One router with one fake worker for the tests of a module that change nothing."""
    s = Stage(tmp_path_factory.mktemp("served"))
    d = s.router("--rpc", f"ipc://{s.folder}/rpc")
    s.fake()
    d.wait_ready()
    d.stage = s
    yield d
    s.end()
