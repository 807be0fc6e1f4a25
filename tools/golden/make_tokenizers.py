#!/usr/bin/env python3
"""Golden tokenizer vectors: small trained tokenizers with what huggingface/tokenizers makes of hard texts.

usage: make_tokenizers.py [--data ../shared/data] [--out tests/golden/tokenizer]
Writes <kind>/tokenizer.json and <kind>.jsonl ({"text","ids"} a line) for kind qwen and deepseek (their published
pre-tokenisers over a vocabulary of 700) and bytefallback (Gemma's form), and options.json: one base tokenizer and many
overrides of its keys, each with the ids of the same texts. Needs the package `tokenizers`; the tests need only its output.
"""
import argparse
import json
import random
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TRAIN = ["The quick brown fox jumps over the lazy dog; it's what they'd said, I'm sure we've seen it's fine.",
         "def main(argc, argv):\n    for i in range(10):\n        print(i, argv[i])\n    return 0\n",
         "In 1984 there were 12345 people, 3.14159 of them round. x = (a + b) * c / 2;\n\n\n",
         "Größe, naïve café, déjà vu; Привет, мир! как дела; 你好世界，今天天气很好。こんにちは世界 カタカナ 안녕하세요",
         "مرحبا بالعالم שלום עולם नमस्ते दुनिया สวัสดีชาวโลก \U0001f600\U0001f44d\U0001f3fd\U0001f468‍\U0001f469‍\U0001f467",
         "    indented\n\tTabbed\r\nlines\n\n  and   spaces    of     many      lengths"] * 20

WORDS = ["Hello", " world", "'s", "'S", "I'm", "WE'LL", "don't", "\u017f", "'\u017f", "K\u212a", " ", "  ", "    ", "\t", "\n", "\r\n",
         "\n\n", "\u00a0", "\u3000", "\u2028", "\u180e", "\u200b", "\ufeff", "0", "42", "12345678", "3.14", "\u0663\u0664", "\u00bd", "\u2167", "foo_bar",
         "(x)", "!?", "...", "e\u0301", "\u00e9", "\u0041\u030a", "\u212b", "\u1100\u1161\u11a8", "\uac01", "o\u0323\u0302", "o\u0302\u0323", "\u0915\u093c",
         "\u0958", "\u4f60\u597d", "\u30ab\u309a", "\u3042", "\uff21", "\ufb01", "\U0001f600", "\U0001f468\u200d\U0001f469", "\U00020000", "\U000e0041",
         "\U0010ffff", "\U00031350\U0001d2c5", "\U0001cc00", "\U00010d70", " \U0001e4d0", "\x00", "\x1b", "\x7f", "\u0301", "$", "<|im_start|>", "<|im_end|>", "<think>", "<|", "|>", "\u2581", "a", "b", "ab"]


def texts(seed, n):
    rng = random.Random(seed)
    yield from ["", " ", "\n", "a", " a", "a ", "  a  b   ", "a\n\n b", "\n \n \n", "    \n", "\r\n\r\n  x", "1234567", "it's IT'S it\u2019s",
                "a" * 60, " " * 40, " " * 40 + "a", "\n" * 30, "ab" * 30, "1" * 30, "\u4f60" * 20, "!" * 30, "\u0301" * 12, "a\u0301\u0323" * 6]
    for text in TRAIN[:6]:
        yield text
    for _ in range(n):
        yield "".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 12)))
    for plane in range(17):  # characters of every plane, assigned or not
        yield "".join(chr(plane * 0x10000 + rng.choice([rng.randrange(0x20, 0xD800), rng.randrange(0xE000, 0xFFFE)])) for _ in range(8))


def vectors(tok, seed, n, add_special=False):
    return [{"text": t, "ids": tok.encode(t, add_special_tokens=add_special).ids} for t in texts(seed, n)]


SPECIALS = [AddedToken("<|endoftext|>", special=True, normalized=False), AddedToken("<|im_start|>", special=True, normalized=False),
            AddedToken("<|im_end|>", special=True, normalized=False), AddedToken("<think>", special=False, normalized=False),
            AddedToken("</think>", special=False, normalized=False), AddedToken("<tool_call>", special=False, normalized=False)]


def trained(like, size=700):
    """A tokenizer trained here with the normaliser, pre-tokeniser and decoder of the JSON `like`."""
    base = json.loads(json.dumps(like))
    base["model"] = {**base["model"], "vocab": {}, "merges": []}
    base["added_tokens"], base["post_processor"] = [], None
    tok = Tokenizer.from_str(json.dumps(base))
    tok.train_from_iterator(TRAIN, trainers.BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False,
                                                       initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tok.add_tokens([t for t in SPECIALS if not t.special])
    tok.add_special_tokens([t for t in SPECIALS if t.special])
    return tok


def byte_fallback():
    tok = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tok.normalizer = normalizers.Replace(" ", "\u2581")
    tok.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tok.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tok.train_from_iterator([t.replace("\U0001f600", "") for t in TRAIN[:3] + TRAIN[5:6]] * 10, trainers.BpeTrainer(
        vocab_size=700, min_frequency=2, show_progress=False, special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"] + [f"<0x{b:02X}>" for b in range(256)]))
    data = json.loads(tok.to_str())  # the byte tokens are plain vocabulary, not added tokens
    data["added_tokens"] = [a for a in data["added_tokens"] if not a["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(data))


def split(regex, behavior, invert=False):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def added(i, content, **flags):
    return {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True, **flags}


def options(base):
    """(name, overrides of top-level keys, overrides of model keys, add_special)"""
    top = max(base["model"]["vocab"].values()) + 1
    for behavior in ("Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext"):
        for invert in (False, True):
            pre = {"type": "Sequence", "pretokenizers": [split(r"\s|[ab]", behavior, invert), BYTES]}
            yield f"{behavior}-{invert}", {"pre_tokenizer": pre}, {}, False
    literal = {"type": "Split", "pattern": {"String": "."}, "behavior": "Isolated", "invert": False}
    for name, pre in {"literal": [literal, BYTES], "digits": [{"type": "Digits", "individual_digits": False}, BYTES],
                      "digit": [{"type": "Digits", "individual_digits": True}, BYTES], "bytes-only": [BYTES],
                      "gpt2": [{**BYTES, "use_regex": True}], "prefix": [{**BYTES, "use_regex": True, "add_prefix_space": True}],
                      "prefix-late": [split(r"\p{L}+", "Isolated"), {**BYTES, "add_prefix_space": True}],
                      "classes": [split(r"[\S\n]{2,3}|\P{L}|\p{^N}", "Isolated"), BYTES],
                      "script": [split(r"\p{Han}+|\p{Latin}+|(?=\d)\d|.", "Isolated"), BYTES],
                      "possessive": [split(r"\p{L}++|\p{N}*+\p{P}", "Isolated"), BYTES],
                      "escapes": [split(r"[\t\n\r\x20]+|\u4f60|\x{597d}|[^\x00-\x{7f}]", "Isolated"), BYTES],
                      "lookbehind": [split(r"(?<=\p{L})\p{N}|(?<!\p{L})\p{P}", "Isolated"), BYTES]}.items():
        yield name, {"pre_tokenizer": {"type": "Sequence", "pretokenizers": pre}}, {}, False
    yield "no-pretok-seq", {"pre_tokenizer": BYTES}, {}, False
    yield "ignore-merges", {}, {"ignore_merges": True}, False
    yield "no-normalizer", {"normalizer": None}, {}, False
    yield "replace", {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}, {"type": "NFC"}]}}, {}, False
    yield "prepend", {"normalizer": {"type": "Prepend", "prepend": "\u2581"}}, {}, False
    yield "legacy-merges", {}, {"merges": [" ".join(m) for m in base["model"]["merges"]]}, False
    for name, flags in {"lstrip": {"lstrip": True}, "rstrip": {"rstrip": True}, "both": {"lstrip": True, "rstrip": True},
                        "single": {"single_word": True}, "normalized": {"normalized": True, "special": False}}.items():
        tokens = [added(top, "<|im_start|>", **flags), added(top + 1, "<think>", **flags), added(top + 2, "ab", **flags),
                  added(top + 3, "<|im", **flags), added(top + 4, "\u00e9\u00e9", **flags), added(top + 5, "e\u0301x", **flags)]
        yield f"added-{name}", {"added_tokens": tokens}, {}, False
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [top], "tokens": ["<s>"]}, "</s>": {"id": "</s>", "ids": [top + 1], "tokens": ["</s>"]}}}
    for add_special in (True, False):
        yield f"template-{add_special}", {"added_tokens": [added(top, "<s>"), added(top + 1, "</s>")], "post_processor": {
            "type": "Sequence", "processors": [BYTES, template]}}, {}, add_special


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", default="../shared/data")
    ap.add_argument("--out", default="tests/golden/tokenizer")
    args = ap.parse_args()
    out = Path(args.out)
    kinds = {"bytefallback": byte_fallback()}
    for kind, folder in {"qwen": "qwen3", "deepseek": "deepseek-v4"}.items():
        kinds[kind] = trained(json.loads((Path(args.data) / "tokenizers" / folder / "tokenizer.json").read_text(encoding="utf-8")))
    for kind, tok in kinds.items():
        (out / kind).mkdir(parents=True, exist_ok=True)
        (out / kind / "tokenizer.json").write_text(json.dumps(json.loads(tok.to_str()), separators=(",", ":")) + "\n", encoding="utf-8")
        lines = vectors(tok, 1, 110)
        (out / f"{kind}.jsonl").write_text("".join(json.dumps(v, separators=(",", ":")) + "\n" for v in lines), encoding="utf-8")
        print(kind, len(lines), "vectors")
    base = json.loads(trained(json.loads(kinds["qwen"].to_str()), 300).to_str())
    base["added_tokens"], cases = [], []
    shared = ["a\n\n b", "  a  b   ", "it's IT'S", " " * 9 + "a", "ab" * 5] + list(texts(7, 24))[29:53]
    for name, over, model, add_special in options(base):
        data = {**base, **over, "model": {**base["model"], **model}}
        tok = Tokenizer.from_str(json.dumps(data))
        cases.append({"name": name, "override": over, "model": model, "add_special": add_special,
                      "ids": [tok.encode(t, add_special_tokens=add_special).ids for t in shared]})
    body = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
    (out / "options.json").write_text('{"base":' + json.dumps(base, separators=(",", ":")) + ',\n"texts":' + json.dumps(shared) + ',\n"cases":[\n' + body + "\n]}\n", encoding="utf-8")
    print("options", len(cases), "cases")


if __name__ == "__main__":
    main()
