#!/usr/bin/env python3
"""Holds the rules of the house: dependency directions, where CUDA may appear, formatting, loose notes.

Usage: lint.py [ROOT]      exit 0: clean; 1: findings, one per line as file:line: text
"""
import pathlib
import re
import shutil
import subprocess
import sys

# room -> rooms whose headers it may include (besides its own).
MAY_INCLUDE = {
    "base": set(),
    "proto": {"base"},
    "text": {"base"},
    "kernels": {"base"},
    "worker": {"base", "proto", "kernels"},
    "daemon": {"base", "proto", "text"},
    "client": {"base", "proto"},
    "cli": {"base", "proto", "text", "client", "worker", "kernels"},
}
# Pure modules: simulated with a seed, so no device, socket or clock of their own.
PURE = re.compile(r"^worker/(sched|kv|seq|spec|calib)\.[ch]$")
PURE_FORBIDDEN = re.compile(r"#include\s*[<\"](zmq|uv|sys/socket|time\.h|pthread|cuda)|\bds_now_ns\s*\(")
CUDA = re.compile(r"<<<|#include\s*[<\"](cuda|cublas|nccl)")
LOOSE = re.compile(r"\b(TODO|FIXME|XXX)\b")
PATHS = re.compile(r"(?<![\w.])/(work|farm)/|/tmp/bash")
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.M)
MAX_LINES = 900


def tracked(root):
    out = subprocess.run(["git", "-C", root, "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True)
    names = out.stdout.split("\n") if out.returncode == 0 else [str(p.relative_to(root)) for p in root.rglob("*")]
    return [n for n in names if n and (root / n).is_file()]


def lint_c(name, text, say):
    room = name.split("/")[0]
    for match in INCLUDE.finditer(text):
        target = match.group(1).split("/")[0]
        line = text.count("\n", 0, match.start()) + 1
        if room in MAY_INCLUDE and target in MAY_INCLUDE and target != room and target not in MAY_INCLUDE[room]:
            say(name, line, f"{room} may not include {match.group(1)}")
        if "/" not in match.group(1):
            say(name, line, f'include "{match.group(1)}" from the root of the tree')
    for number, line in enumerate(text.split("\n"), 1):
        if CUDA.search(line) and not name.startswith(("kernels/cuda/", "tests/device/")) and name != "worker/comm_nccl.c":
            say(name, number, "CUDA belongs below kernels/cuda")
        if PURE.match(name) and PURE_FORBIDDEN.search(line):
            say(name, number, "a pure module takes no device, socket, thread or clock")
        if "getenv(" in line and room in MAY_INCLUDE and not name.startswith("base/conf"):
            say(name, number, "the environment is read in base/conf.c only")


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    findings = []

    def say(name, line, text):
        findings.append(f"{name}:{line}: {text}")

    names = tracked(root)
    sources = [n for n in names if n.endswith((".c", ".h", ".cu", ".cuh"))]
    for name in names:
        path = root / name
        if path.suffix not in {".c", ".h", ".cu", ".cuh", ".py", ".md", ".cmake", ".txt", ".proto", ""} or name.startswith("models/"):
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        if name in sources:
            lint_c(name, text, say)
            if text.count("\n") > MAX_LINES:
                say(name, 1, f"{text.count(chr(10))} lines; at most {MAX_LINES}")
        if name != "tools/lint/lint.py":
            for number, line in enumerate(text.split("\n"), 1):
                if LOOSE.search(line):
                    say(name, number, "loose note: file an issue instead")
                if PATHS.search(line):
                    say(name, number, "path of one machine")
    formatter = shutil.which("clang-format")
    if formatter:
        plain = [str(root / n) for n in sources if n.endswith((".c", ".h"))]
        out = subprocess.run([formatter, "--dry-run", "-Werror", *plain], capture_output=True, text=True)
        for line in out.stderr.split("\n"):
            if "error:" in line:
                findings.append(line.replace(str(root) + "/", ""))
    else:
        print("clang-format is missing: formatting not checked")
    print("\n".join(findings) if findings else f"lint: {len(names)} files clean")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
