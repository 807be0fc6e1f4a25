"""Corpus to training data: hold-outs, tokenizer, token arrays and prompt sets.

  python tools/train/prepare.py --corpus DIR --out WORK [--vocab 4096] [--limit N]

DIR holds *.jsonl or *.jsonl.xz with {"id", "text"}; the file's name says the set (code, math-gsm8k, math-synthetic,
prose-books, prose-synthetic-stories, dialogue-synthetic). WORK gets
  tokenizer/            tokenizer.json (byte-level BPE, Qwen3's pre-tokeniser, NFC), tokenizer_config.json
  tokens.bin.xz         all documents' ids, u16, each ended by <|endoftext|>
  index.npz             start [n+1], set [n] (into `sets`), held [n], bytes [n]
  prompts.jsonl         training prompts for the draft: {"set", "prompt" | "turns", "max"}
  holdout/*.jsonl       prompts from documents that were never trained on, for measuring
  calibration/*.jsonl   the same from the other half of these documents, for fitting STS
A document is held out when the SHA-256 of its id says so: 4 % of the real sets, 2 % of the synthetic ones. Functions and
passages that are wrapped as chat come from the same side of the split as their document.
"""
import argparse
import ast
import hashlib
import json
import lzma
import pathlib
import random
import re

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import chat

QWEN3_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
               r"|\s+(?!\S)|\s+")
REAL = {"code", "math-gsm8k", "prose-books"}
DOMAIN = {"code": "code", "math-gsm8k": "gsm8k", "prose-books": "books"}


def part(key, of):
    """A stable number in 0..of-1 for a document's id."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % of


def held_out(set_name, key):
    return part(key, 25) == 0 if set_name in REAL else part(key, 50) == 0


def read_set(path):
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8", newline="\n") as f:
        return [json.loads(line) for line in f.read().split("\n") if line]


# --- documents as chat ------------------------------------------------------------------------------------

def split_question(text):
    m = re.fullmatch(r"Question: (.*?)\nAnswer: (.*)", text, re.S)
    return [m[1], m[2]] if m else None


def split_dialogue(text):
    parts = re.split(r"(?:^|\n)(User|Assistant): ", text)[1:]
    roles, texts = parts[::2], parts[1::2]
    n = 0
    while n < len(roles) and roles[n] == ("Assistant" if n % 2 else "User"):
        n += 1
    return texts[:n - n % 2]


def story_request(text, rng):
    """A user's message that asks for this story: its first hero's kind, sometimes the name."""
    m = re.search(r"\b[Aa]n? ((?:[a-z]+ ){0,2})([a-z]+) (?:called|named) ([A-Z][a-z]+)", text)
    if not m:
        return rng.choice(["Tell me a story.", "Tell me a short story.", "Please tell me a story."])
    kind = m[1] + m[2] if rng.random() < 0.4 else m[2]
    name = f" named {m[3]}" if rng.random() < 0.4 else ""
    article = "an" if kind[0] in "aeiou" else "a"
    form = rng.choice(["Tell me a story about {}.", "Write a short story about {}.", "Please tell me a story about {}.",
                       "Tell me a short story about {}.", "Can you tell me a story about {}?"])
    return form.format(f"{article} {kind}{name}")


def functions(text):
    """(request, answer) for each short documented function of a Python file."""
    lines = text.split("\n")
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef) or node.decorator_list or node.col_offset:
            continue
        doc = ast.get_docstring(node)
        if not doc or node.end_lineno - node.lineno > 40:
            continue
        first = doc.split("\n")[0].strip()
        yield (f"Write a Python function `{node.name}`: {first}",
               "```python\n" + "\n".join(lines[node.lineno - 1:node.end_lineno]) + "\n```")


def passages(text, rng):
    """(request, answer): a paragraph, and what follows it."""
    p = [s for s in text.split("\n\n") if len(s) > 80]
    for i in range(0, len(p) - 3, 12):
        yield rng.choice(["Continue this passage:", "Go on with this story:"]) + "\n\n" + p[i], "\n\n".join(p[i + 1:i + 4])


def as_chat(set_name, text, rng):
    """Conversations made from a document: lists of alternating messages that end with the assistant's."""
    if set_name.startswith("math"):
        qa = split_question(text)
        return [qa] if qa else []
    if set_name.startswith("dialogue"):
        turns = split_dialogue(text)
        return [turns] if turns else []
    if set_name == "prose-synthetic-stories":
        return [[story_request(text, rng), text]]
    if set_name == "code":
        return [list(f) for f in functions(text)]
    return [list(p) for p in passages(text, rng)]


def documents(set_name, rows):
    """(set, held, text): the text itself, or its chat form, or both. Synthetic documents take one of the two."""
    for row in rows:
        key, text = row["id"], row["text"]
        rng = random.Random(key)
        held = held_out(set_name, key)
        raw = set_name in REAL or (set_name != "dialogue-synthetic" and part(key + "/raw", 3) == 0)
        if raw:
            yield set_name, held, text, None
        if raw and set_name not in REAL:
            continue
        for turns in as_chat(set_name, text, rng):
            yield set_name + "+chat", held, chat.render(turns), turns


# --- tokenizer --------------------------------------------------------------------------------------------

def train_tokenizer(texts, size):
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN3_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tok.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=size - len(chat.SPECIAL) - len(chat.ADDED), show_progress=True,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(texts, trainer)
    tok.add_special_tokens(chat.SPECIAL)
    from tokenizers import AddedToken
    tok.add_tokens([AddedToken(t, normalized=False, special=False) for t in chat.ADDED])
    return tok


def save_tokenizer(tok, folder):
    folder.mkdir(parents=True, exist_ok=True)
    tok.save(str(folder / "tokenizer.json"))
    template = (pathlib.Path(__file__).parent / "qwen3.jinja").read_text()
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": chat.END_OF_TURN, "pad_token": chat.END_OF_TEXT,
              "bos_token": None, "unk_token": None, "add_bos_token": False, "add_prefix_space": False,
              "clean_up_tokenization_spaces": False, "model_max_length": 4096, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


# --- prompts ----------------------------------------------------------------------------------------------

def raw_prefix(text, rng, low, high):
    """A stretch of text from the start of a line or paragraph, long enough to go on from."""
    starts = [m.end() for m in re.finditer("\n+", text[:max(1, len(text) - 2 * high)])] or [0]
    at = 0 if rng.random() < 0.2 else rng.choice(starts)
    return text[at:at + rng.randint(low, high)]


def draft_prompts(docs, rng, count):
    """Training prompts in every form the model knows; real text and its chat form outweigh the templates."""
    share = {"code": .27, "code+chat": .08, "prose-books": .22, "prose-books+chat": .04, "math-gsm8k": .06,
             "math-gsm8k+chat": .13, "math-synthetic": .02, "math-synthetic+chat": .06, "prose-synthetic-stories": .03,
             "prose-synthetic-stories+chat": .04, "dialogue-synthetic+chat": .05}
    by_set = {}
    for d in docs:
        if not d[1]:
            by_set.setdefault(d[0], []).append(d)
    out = []
    for name, frac in share.items():
        pool = by_set.get(name, [])
        for _ in range(int(count * frac) if pool else 0):
            _, _, text, turns = rng.choice(pool)
            if turns:
                k = 2 * rng.randrange(len(turns) // 2) + 1
                row = {"prompt": chat.render_prompt(turns[:k])}
            elif name.startswith("math"):
                row = {"prompt": text[:text.index("\nAnswer:") + 8]}
            else:
                row = {"prompt": raw_prefix(text, rng, 60, 500)}
            out.append({"set": name} | row)
    rng.shuffle(out)
    return out


def holdout_prompts(docs, side, rng, count):
    """name -> rows in dspark-bench's form, real sets only, from one half of the held-out documents."""
    out = {}
    for name, domain in DOMAIN.items():
        pool = [d for d in docs if d[1] and d[0] == name and part(d[2], 2) == side]
        rows = []
        for i in range(count if pool else 0):
            text = pool[i % len(pool)][2]
            if domain == "gsm8k":
                rows.append({"turns": [split_question(text)[0]]})
            else:
                rows.append({"prompt": raw_prefix(text, rng, 300, 500)})
        out[domain] = rows
    return out


def pack(docs, tok, out, sets):
    ids, start, size = [], [0], []
    end = tok.token_to_id(chat.END_OF_TEXT)
    for i in range(0, len(docs), 2000):
        texts = [d[2] for d in docs[i:i + 2000]]
        for text, e in zip(texts, tok.encode_batch(texts)):
            ids.append(np.array(e.ids + [end], np.uint16))
            start.append(start[-1] + len(ids[-1]))
            size.append(len(text.encode()))
        print(f"\rtokens: {start[-1] / 1e6:.1f} M of {min(i + 2000, len(docs)):,} documents", end="", flush=True)
    print()
    with lzma.open(out / "tokens.bin.xz", "wb", preset=2) as f:
        f.write(np.concatenate(ids).tobytes())
    np.savez(out / "index.npz", start=np.array(start), held=np.array([d[1] for d in docs]), sets=np.array(sets),
             set=np.array([sets.index(d[0]) for d in docs], np.uint8), bytes=np.array(size))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--corpus", type=pathlib.Path, required=True)
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--vocab", type=int, default=4096, help="rows of the embedding; the last is the draft's mask")
    p.add_argument("--prompts", type=int, default=120000, help="training prompts for the draft")
    p.add_argument("--holdout-prompts", type=int, default=60)
    p.add_argument("--limit", type=int, default=0, help="documents per set, for trying out")
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    docs = []
    for path in sorted(a.corpus.glob("*.jsonl*")):
        rows = read_set(path)[:a.limit or None]
        docs += documents(path.name.split(".")[0], rows)
        print(f"{path.name}: {len(rows):,} documents", flush=True)
    sample = [d[2] for d in docs if not d[1] and (d[0].removesuffix("+chat") in REAL or part(d[2], 5) == 0)]
    tok = train_tokenizer(sample, a.vocab - 1)
    save_tokenizer(tok, a.out / "tokenizer")
    pack(docs, tok, a.out, sorted({d[0] for d in docs}))
    chat.write_jsonl(a.out / "prompts.jsonl", draft_prompts(docs, random.Random(1), a.prompts))
    for side, folder in enumerate(("holdout", "calibration")):
        (a.out / folder).mkdir(exist_ok=True)
        for name, rows in holdout_prompts(docs, side, random.Random(2), a.holdout_prompts * (1 + 2 * side)).items():
            chat.write_jsonl(a.out / folder / f"{name}.jsonl", rows)


if __name__ == "__main__":
    main()
