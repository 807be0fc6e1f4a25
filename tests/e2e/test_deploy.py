"""Unit files and manifests: systemd accepts the units, dsparkd accepts the configurations they give it."""
import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("DSPARK_BIN", ROOT / "build/release/bin")).resolve()


def check_config(path):
    return subprocess.run([BIN / "dsparkd", "--config", path, "--check-config"], capture_output=True, text=True)


@pytest.fixture
def units(tmp_path):
    """The units, with stand-ins for the programs that are not installed here, under names systemd-analyze takes."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here")
    for program in ("dsparkd", "dspark-worker"):
        (tmp_path / program).symlink_to("/bin/true")
    for name, out in (("dsparkd.service", "dsparkd.service"), ("dspark-worker@.service", "dspark-worker@0.service")):
        text = (ROOT / "systemd" / name).read_text()
        assert "/usr/bin/dspark" in text
        (tmp_path / out).write_text(text.replace("/usr/bin/", f"{tmp_path}/"))
    return [tmp_path / "dsparkd.service", tmp_path / "dspark-worker@0.service"]


def test_units_verify(units):
    r = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    said = [line for line in r.stderr.splitlines() if "dspark" in line]
    assert not said, said


def test_units_are_hardened(units):
    for unit in units:
        r = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=25", unit],
                           capture_output=True, text=True)
        assert r.returncode == 0, r.stdout.splitlines()[-1:]


def test_sysusers_parse():
    if not shutil.which("systemd-sysusers"):
        pytest.skip("no systemd-sysusers here")
    r = subprocess.run(["systemd-sysusers", "--dry-run", ROOT / "systemd/dspark.sysusers"], capture_output=True, text=True)
    assert r.returncode == 0 and "rror" not in r.stderr, r.stderr


def test_unit_configuration_is_accepted():
    r = check_config(ROOT / "systemd/dsparkd.conf")
    assert r.returncode == 0, r.stderr


def test_manifest(tmp_path):
    yaml = pytest.importorskip("yaml")
    docs = {d["kind"]: d for d in yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text())}
    assert set(docs) == {"ConfigMap", "Deployment", "Service", "PodDisruptionBudget"}
    conf = docs["ConfigMap"]["data"]["dsparkd.conf"]
    (tmp_path / "dsparkd.conf").write_text(conf)
    r = check_config(tmp_path / "dsparkd.conf")
    assert r.returncode == 0, r.stderr
    pod = docs["Deployment"]["spec"]["template"]
    box = pod["spec"]["containers"][0]
    paths = {box[p]["httpGet"]["path"] for p in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"/health", "/ready"}
    drain_s = int(re.search(r"drain_ms = (\d+)", conf).group(1)) / 1000
    assert pod["spec"]["terminationGracePeriodSeconds"] > drain_s + 5  # and preStop
    assert docs["Service"]["spec"]["selector"] == pod["metadata"]["labels"]
    assert docs["PodDisruptionBudget"]["spec"]["selector"] == docs["Deployment"]["spec"]["selector"]


def test_image_has_every_library(tmp_path):
    """The run-time packages of the image cover what the programs link."""
    image = (ROOT / "deploy/Containerfile").read_text()
    for program in ("dsparkd", "dsparkctl", "dspark-bench"):
        libs = subprocess.run(["ldd", BIN / program], capture_output=True, text=True).stdout
        for need in ("uv", "zmq", "protobuf-c", "jansson", "pcre2-8", "utf8proc", "http_parser", "curl"):
            if re.search(rf"lib{need}\.so", libs):
                assert f"lib{need.replace('_', '-')}" in image, f"{program} needs lib{need}"
