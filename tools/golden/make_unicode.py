#!/usr/bin/env python3
"""Writes text/unicode.c: code points that the pattern engine of huggingface/tokenizers (Oniguruma) knows and Unicode 14,
which Debian's PCRE2 10.42 carries, does not. usage: make_unicode.py [--out text/unicode.c] (needs `tokenizers`, and a
Python of Unicode 14, such as 3.11, to say what is new)."""
import argparse
import unicodedata
from pathlib import Path

from tokenizers import Regex, pre_tokenizers

CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cf".split()
HEAD = '''/* unicode.c - made by tools/golden/make_unicode.py: letters, marks, digits and signs added after Unicode 14. */
#include "text/unicode.h"

const ds_unicode_range DS_UNICODE_NEW[] = {
    /* clang-format off */
%s
    /* clang-format on */
};
const int DS_UNICODE_N_NEW = sizeof DS_UNICODE_NEW / sizeof *DS_UNICODE_NEW;
'''


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default="text/unicode.c")
    args = ap.parse_args()
    if unicodedata.unidata_version != "14.0.0":
        raise SystemExit(f"this Python knows Unicode {unicodedata.unidata_version}, not 14.0.0")
    new = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000 and unicodedata.category(chr(c)) == "Cn"]
    category = {}
    for name in CATEGORIES:
        removed = pre_tokenizers.Split(Regex(r"\p{%s}" % name), "removed")
        for i in range(0, len(new), 20000):
            left = set("".join(piece for piece, _ in removed.pre_tokenize_str("".join(new[i:i + 20000]))))
            category.update((ord(c), name) for c in new[i:i + 20000] if c not in left)
    ranges = []
    for c, name in sorted(category.items()):
        if ranges and ranges[-1][1] == c - 1 and ranges[-1][2] == name:
            ranges[-1][1] = c
        else:
            ranges.append([c, c, name])
    rows = ['{0x%x, 0x%x, "%s"},' % tuple(r) for r in ranges]
    lines = [" ".join(rows[i:i + 4]) for i in range(0, len(rows), 4)]
    Path(args.out).write_text(HEAD % "\n".join("    " + line for line in lines), encoding="utf-8")
    print(len(category), "code points in", len(ranges), "ranges")


if __name__ == "__main__":
    main()
