"""The soak in the suite: bounded by requests, not by time."""

import pytest

import soak
from conftest import BIN


@pytest.mark.parametrize("total,kind", [(10000, "fake"), (4000, "real")])
def test_nothing_grows(total, kind):
    if kind == "real" and not (BIN / "dspark-worker").exists():
        pytest.skip("no worker was built")
    soak.main(total, kind)
