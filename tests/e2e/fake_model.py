"""The fake worker's model in Python (tests/lib/hash_target.h has the same lines), and a tokenizer to go with it.

The tokenizer has one token per byte. Printable ASCII comes last, so that a fake worker told to start at FIRST writes
readable text, one character per token.
"""

import json
import pathlib

ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<pad>"]
PRINTABLE = list(range(32, 127))
BYTES = [b for b in range(256) if b not in PRINTABLE] + PRINTABLE
VOCAB = len(ADDED) + 256
FIRST = VOCAB - len(PRINTABLE)
GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden"
MASK = 2**64 - 1


def encode(text):
    return [len(ADDED) + BYTES.index(b) for b in text.encode()]


def decode(ids):
    return bytes(BYTES[i - len(ADDED)] for i in ids if i >= len(ADDED)).decode("utf-8", "replace")


def mix(h, v):
    h = ((h ^ v) * 0x9E3779B97F4A7C15) & MASK
    h = ((h ^ h >> 30) * 0xBF58476D1CE4E5B9) & MASK
    return h ^ h >> 27


def generate(prompt, n, seed=0, first=FIRST, span=VOCAB - FIRST):
    """The n tokens a fake worker answers; seed counts only when temperature > 0."""
    chain = 0
    for token in prompt:
        chain = mix(chain, token + 7)
    out = []
    for _ in range(n):
        out.append(first + (mix(chain, seed) >> 8) % span)
        chain = mix(chain, out[-1] + 7)
    return out


def _byte_names():
    """GPT-2's printable stand-ins for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names, extra = {}, 0
    for b in range(256):
        names[b] = chr(b) if b in plain else chr(256 + extra)
        extra += b not in plain
    return names


def write_model(folder):
    """A model folder with all that dsparkd itself reads."""
    names = _byte_names()
    added = [
        {"id": i, "content": t, "special": t.startswith("<|"), "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False} for i, t in enumerate(ADDED)]
    split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {names[b]: len(ADDED) + i for i, b in enumerate(BYTES)}, "merges": []}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    template = (GOLDEN / "chat" / "template.jinja").read_text()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder
