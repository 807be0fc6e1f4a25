"""Pages: the generated ones are those of this build, links lead somewhere, exit codes and metrics are those of the code."""
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = pathlib.Path(os.environ.get("DSPARK_BIN", ROOT / "build/release/bin"))
PAGES = sorted(p for p in ROOT.rglob("*.md") if not {"build", ".git", ".dev"} & set(p.relative_to(ROOT).parts))


def plain(text):
    """Without code, where brackets and # mean something else."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.S | re.M))


def anchors(page):
    """GitHub's anchors of a page's headings."""
    heads = re.findall(r"^#+ (.*?)\s*$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}


def test_configuration_page_is_current():
    r = subprocess.run([sys.executable, ROOT / "tools/docs/configuration.py", "--check", "--bin", FOLDER],
                       capture_output=True, text=True)
    assert r.returncode == 0, r.stderr


def test_links_lead_somewhere():
    broken, n = [], 0
    for page in PAGES:
        for target in re.findall(r"\[[^\]\n]*\]\(([^)\s]+)\)", plain(page.read_text())):
            n += 1
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            to = (page.parent / path).resolve() if path else page
            if not to.exists() and not to.is_relative_to(ROOT / "models"):  # large files may be left out of a checkout
                broken.append(f"{page.relative_to(ROOT)}: {target}")
            elif anchor and to.suffix == ".md" and to.exists() and anchor not in anchors(to):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert n > 20 and not broken, broken


def test_files_named_in_the_pages_exist():
    """A path in backticks that looks like one of ours must be one."""
    rooms = "base|proto|text|kernels|worker|daemon|client|cli|tools|tests|docs|scripts|systemd|deploy|cmake"
    missing = []
    for page in PAGES:
        for path in re.findall(rf"`((?:{rooms})/[\w./@-]+\.(?:c|h|md|py|proto|cu|yaml|service|conf))`", page.read_text()):
            if (ROOT / path).parent.exists() and not (ROOT / path).exists():
                missing.append(f"{page.relative_to(ROOT)}: {path}")
    assert not missing, missing


def test_exit_codes_are_documented():
    page = (ROOT / "docs/operations.md").read_text()
    codes = dict(re.findall(r"(DS_EXIT_\w+) = (\d+),", (ROOT / "worker/exit.h").read_text()))
    assert set(codes.values()) == set(re.findall(r"^\| (\d+) \|", page, re.M))
    for program in ("dsparkd", "dspark-worker"):
        said = subprocess.run([FOLDER / program, "--help"], capture_output=True, text=True, check=True).stdout
        listed = re.sub(r"\s+", " ", said[said.index("Exit codes"):])
        assert {"64", "65", "66", "69", "74", "75"} <= set(re.findall(r"\b(\d+) ", listed)), listed


@pytest.mark.parametrize("page", ["operations.md", "api.md"])
def test_metrics_named_in_the_pages_exist(page):
    source = "".join(p.read_text() for p in [*ROOT.glob("daemon/*.c"), *ROOT.glob("base/*.c")])
    names = set(re.findall(r'"((?:dspark_|vllm:)\w+)"', source))
    names |= {"dspark_worker_" + n for n in re.findall(r'COL\("(\w+)"', source)}
    said = set(re.findall(r"(?:dspark_|vllm:)[a-z_]+[a-z]\b(?!\*|_)", (ROOT / "docs" / page).read_text()))
    said = {s for s in said if not any(n.startswith(s + "_") for n in names)}  # dspark_worker_*
    assert said and said <= names, said - names
