"""Runs pytest on the given files; exits with 77 (skipped, counted by ctest) where there is no pytest."""
import importlib.util
import sys

if importlib.util.find_spec("pytest") is None:
    print("skipped: no pytest in", sys.executable)
    sys.exit(77)

import pytest

sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
