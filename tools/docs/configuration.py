#!/usr/bin/env python3
"""Writes docs/configuration.md from what the programs say about themselves (--help-markdown).

Usage: tools/docs/configuration.py [--check] [--bin FOLDER]   --check: only compare; 1 when the page is out of date
"""
import argparse
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/configuration.md"
PROGRAMS = ["dsparkd", "dspark-worker", "dsparkctl", "dspark-bench"]
HEAD = """# Configuration

<!-- Written by tools/docs/configuration.py from each program's --help-markdown. Do not edit. -->

Every program has one table of keys. A key `kv_pages` is the flag `--kv-pages 100` (or `--kv-pages=100`), the line
`kv_pages = 100` of a file given with `--config FILE`, and the environment variable `DSPARK_KV_PAGES=100`. A flag wins
over the environment, that over the file, that over the default. A boolean `progress` is `--progress` or `--no-progress`
as a flag, and `true` or `false` elsewhere. Sizes take K, M, G and T, powers of 1024.

The file has one `key = value` a line; `#` starts a comment; a value with blanks at its ends or a `#` goes in double
quotes (with the escapes `\\"`, `\\\\`, `\\n`, `\\t`) or single ones (as it is). An unknown key, a key set twice and a value
out of range are errors that name the line. Unknown `DSPARK_` variables are ignored, since programs share the prefix.

`--check-config` prints the effective values in the file's own form and exits; `--help`, `--version` and
`--help-markdown` work with every program.

"""


def page(folder):
    parts = [subprocess.run([folder / p, "--help-markdown"], capture_output=True, text=True, check=True, env={}).stdout
             for p in PROGRAMS]
    return HEAD + "\n".join(parts)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--check", action="store_true")
    args.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    args = args.parse_args()
    text = page(args.bin.resolve())
    if not args.check:
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        sys.exit(f"{PAGE.relative_to(ROOT)} is out of date: run tools/docs/configuration.py")


if __name__ == "__main__":
    main()
