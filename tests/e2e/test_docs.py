"""Pages that are generated are those of this build."""
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_configuration_page_is_current():
    folder = os.environ.get("DSPARK_BIN", ROOT / "build/release/bin")
    r = subprocess.run([sys.executable, ROOT / "tools/docs/configuration.py", "--check", "--bin", folder],
                       capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
