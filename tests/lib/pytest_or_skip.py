"""Runs pytest on the given files; exits with 77 (skipped, counted by ctest) where there is no pytest, or where a whole
file skips itself because a package is missing. A file without tests still fails."""
import importlib.util
import sys

if importlib.util.find_spec("pytest") is None:
    print("skipped: no pytest in", sys.executable)
    sys.exit(77)

import pytest


class Skips:
    files = 0

    def pytest_collectreport(self, report):
        self.files += report.skipped


skips = Skips()
code = pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]], plugins=[skips])
sys.exit(77 if code == pytest.ExitCode.NO_TESTS_COLLECTED and skips.files else code)
