"""Make the golden DSpark pairs of tests/golden/pairs with DeepSpec's own classes and evaluation loop.

Run once, by hand (CI has no PyTorch):  python tools/golden/make_dspark.py PATH_OF_DEEPSPEC tests/golden/pairs
A pair folder holds target/ (what save_pretrained writes) and one folder a draft: config.json and model.safetensors as
DeepSpec saves them, and golden/ with the vectors, all made in f32 arithmetic on the stored weights:
  model.safetensors
    features [n, taps*C], ctx [n, C]   target residuals of positions 0..n-1 and hidden_norm(fc(features))
    cache_k, cache_v [layers, n, G, D] the draft's context cache after the last recorded round
    rJ.hidden [g, C], rJ.base, rJ.corrected [g, V], rJ.conf [g], rJ.verify [g+1, V]   round J of the greedy rollout
    sJ.p [g+1, V], sJ.q [g, V], sJ.accept_u [g], sJ.final_u [1]                        rejection sampling at T = 0.5
  golden.json
    prompt, rounds [{start, anchor, draft, accepted}]   the recorded rounds
    rollouts [{prompt, stop, tokens, rounds}]           greedy, whole; rounds are accepted lengths (the target's token counted)
    sampled [{draft, accepted, token}]                  decisions that belong to sJ
    bf16_err {name: [max, mean]}                        of DeepSpec's own bf16 run from these vectors (bf16 pairs)
    margin                                              smallest top-1 minus top-2 that a decision of a rollout hangs on
Drafts are trained for a few seconds on their target's greedy text, so that blocks are accepted at every length.
"""
import copy
import json
import os
import pathlib
import shutil
import sys

os.environ["TQDM_DISABLE"] = "1"
import torch  # noqa: E402
from transformers.utils import logging as hf_logging  # noqa: E402
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, sys.argv[1])
from deepspec.eval import base_evaluator  # noqa: E402
from deepspec.eval.base_evaluator import generate_decoding_sample, verify_draft_tokens  # noqa: E402
from deepspec.eval.dspark.draft_ops import build_dspark_proposal, forward_dspark_draft_block  # noqa: E402
from deepspec.modeling.dspark.common import extract_context_feature  # noqa: E402
from deepspec.modeling.dspark.qwen3.config import build_draft_config  # noqa: E402
from deepspec.modeling.dspark.qwen3.modeling import Qwen3DSparkModel  # noqa: E402

ROUNDS, SAMPLED, NEW_TOKENS, PROMPTS, MARGIN = 4, 12, 48, (24, 7, 41), 0.01
PLAIN = dict(rope_type="default", rope_theta=1e6)


class Args(dict):
    """What DeepSpec's build_draft_config wants: attributes and `in`."""
    __getattr__ = dict.__getitem__


def target_of(**more):
    return dict(dict(vocab_size=89, hidden_size=32, intermediate_size=44, num_hidden_layers=4, num_attention_heads=4,
                     num_key_value_heads=2, head_dim=10, max_position_embeddings=256, tie_word_embeddings=False,
                     rope_parameters=PLAIN, rms_norm_eps=1e-6, eos_token_id=None, bos_token_id=None, pad_token_id=None,
                     hidden_act="silu"), **more)


def draft_of(taps, block, head="vanilla", rank=12, layers=1, confidence=1.0, markov=True, tables="copied"):
    return dict(target_layer_ids=taps, block_size=block, num_draft_layers=layers, markov_rank=rank if head else 0,
                markov_head_type=head, confidence_head_alpha=confidence, confidence_head_with_markov=markov and bool(head),
                num_anchors=8, tables=tables)


# pair: (target, dtype, {draft: arguments}); tables: copied from the target, own (changed), or absent from the file
CASES = {
    "f32-heads": (target_of(), torch.float32, {
        "dflash": draft_of([0, 1, 2], 7, head=None, confidence=0.0),
        "none": draft_of([0, 2], 4, head=None),
        "vanilla": draft_of([0, 1, 2], 7, layers=2),
        "vanilla-plain-confidence": draft_of([1], 3, markov=False, tables="absent"),
        "gated": draft_of([0, 1, 2], 5, head="gated"),
        "rnn": draft_of([0, 1, 2], 6, head="rnn", rank=7, tables="own")}),
    # biases, one KV head for three query heads, the embedding as a tap, an untied draft of a tied target
    "f32-bias": (target_of(hidden_size=30, intermediate_size=37, num_attention_heads=3, num_key_value_heads=1, head_dim=14,
                           vocab_size=71, attention_bias=True, tie_word_embeddings=True, rms_norm_eps=1e-3), torch.float32, {
        "embedding-tap": draft_of([-1, 0, 2], 4, layers=2),
        "rnn": draft_of([-1], 7, head="rnn", rank=5)}),
    "bf16": (target_of(hidden_size=64, intermediate_size=96, num_hidden_layers=5, head_dim=32, vocab_size=101),
             torch.bfloat16, {
        "vanilla": draft_of([0, 1, 3], 7, layers=2, rank=16),
        "gated-own": draft_of([1, 2, 3], 5, head="gated", rank=16, tables="own")}),
    "bf16-yarn-tied": (target_of(num_attention_heads=6, num_key_value_heads=3, head_dim=16, tie_word_embeddings=True,
                                 rope_parameters=dict(rope_type="yarn", rope_theta=1e4, factor=8.0,
                                                      original_max_position_embeddings=32)), torch.bfloat16, {
        "vanilla": draft_of([0, 2], 7, layers=2),
        "rnn": draft_of([2], 3, head="rnn", tables="absent")}),
    # names, keys, layers, taps and block of dspark_qwen3_4b_block7, everything else small
    "released": (target_of(hidden_size=20, intermediate_size=24, num_hidden_layers=36, num_key_value_heads=1, head_dim=8,
                           vocab_size=97, tie_word_embeddings=True), torch.bfloat16, {
        "dspark": dict(draft_of([1, 9, 17, 25, 33], 7, rank=16, layers=5), num_anchors=512)}),
}


def randomise(model, seed, gain):
    """Gain over 1/sqrt(fan-in) for matrices, norm weights in 0.5..1.5: no part is negligible."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.copy_(0.2 * torch.randn(p.shape, generator=g) if name.endswith("bias")
                        else 0.5 + torch.rand(p.shape, generator=g))
            else:
                p.copy_(torch.randn(p.shape, generator=g) * (2.5 if "embed" in name or "lm_head" in name else gain)
                        / p.shape[1] ** 0.5)


def follow(model, seed):
    """Untied heads lean towards a fixed permutation of the tokens, so that a small draft can learn the text."""
    order = torch.randperm(model.config.vocab_size, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        if not model.config.tie_word_embeddings:
            model.lm_head.weight.copy_(0.4 * model.lm_head.weight + model.model.embed_tokens.weight[order])


def greedy(target, ids, n):
    cache, new = DynamicCache(), ids
    for _ in range(n):
        new = target(new, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, new], 1)
    return ids


def train(draft, target, seed, steps=400, batch=24):
    """Cross entropy on the target's greedy text, and the confidence head on what the draft then gets right."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        ids = greedy(target, torch.randint(0, draft.config.vocab_size, (384, 12), generator=g), 48)
        features = extract_context_feature(target(ids, output_hidden_states=True).hidden_states, draft.target_layer_ids)
    free = [p for n, p in draft.named_parameters() if not n.startswith(("embed_tokens", "lm_head"))]
    opt, k = torch.optim.Adam(free, lr=4e-3), draft.block_size
    for step in range(steps):
        for group in opt.param_groups:
            group["lr"] = 4e-3 * (1 - step / steps)
        start = int(torch.randint(12, ids.shape[1] - k - 1, (1,), generator=g))
        rows = torch.randint(0, ids.shape[0], (batch,), generator=g)
        block = torch.full((batch, k), draft.mask_token_id)
        block[:, 0] = ids[rows, start]
        hidden = draft._forward_backbone(position_ids=torch.arange(start + k)[None], noise_embedding=draft.embed_tokens(block),
                                         target_hidden_states=features[rows, :start], attention_mask=None, is_causal=False)
        want, prev = ids[rows, start + 1:start + 1 + k], ids[rows, start:start + k]
        logits = draft.compute_logits(hidden)
        if draft.markov_head is not None:
            logits = draft.markov_head.apply_block_logits(logits[:, None], token_ids=prev[:, None],
                                                          hidden_states=hidden[:, None])[:, 0]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), want.flatten())
        if draft.confidence_head is not None:
            sure = draft.predict_confidence_step(hidden, prev_token_ids=prev)
            loss = loss + torch.nn.functional.binary_cross_entropy_with_logits(sure, (logits.argmax(-1) == want).float())
        opt.zero_grad()
        loss.backward()
        opt.step()
    return float(loss.detach())


def lead(logits):
    top = logits.topk(2).values
    return float((top[..., 0] - top[..., 1]).min())


class Loop:
    """DeepSpec's evaluator callbacks over one pair, recording what passes by."""

    def __init__(self, target, draft, temperature=0.0):
        self.target, self.draft, self.temperature = target, draft, temperature
        self.rounds, self.margin = [], 9.0

    def init_context(self, *, initial_output, **_):
        self.cache = DynamicCache()
        self.features = [extract_context_feature(initial_output.hidden_states, self.draft.target_layer_ids)]
        if self.temperature == 0:
            self.margin = min(self.margin, lead(initial_output.logits[0, -1]))
        return Args()

    def propose(self, *, context, output_ids, position_ids, start, **_):
        d = self.draft
        block = torch.full((1, d.block_size), d.mask_token_id)
        block[:, 0] = output_ids[:, start]
        hidden = forward_dspark_draft_block(d, draft_input_ids=block, position_ids=position_ids,
                                            past_key_values_draft=self.cache, target_hidden_states=self.features[-1],
                                            start=start, block_size=d.block_size)
        p = build_dspark_proposal(d, draft_input_ids=block, block_hidden=hidden, block_size=d.block_size,
                                  temperature=self.temperature, confidence_threshold=0.0)
        base = d.compute_logits(hidden)
        self.rounds.append(Args(start=start, anchor=int(block[0, 0]), hidden=hidden[0], base=base[0], conf=p.confidence_logits,
                                draft=p.verify_input_ids[0, 1:].tolist(), q=p.draft_probs, corrected=self.correct(
                                    base, p.verify_input_ids[:, :-1], hidden)[0]))
        return p

    def correct(self, base, prev, hidden):
        head = self.draft.markov_head
        return base if head is None else head.apply_block_logits(base[:, None], token_ids=prev[:, None],
                                                                 hidden_states=hidden[:, None])[:, 0]

    def post_verify(self, proposal, v):
        r, n = self.rounds[-1], v.accepted_draft_tokens
        r.update(verify=v.target_output.logits[0], p=v.target_probs[0], accepted=n, token=int(v.next_token))
        self.margin = min(self.margin, lead(r.verify[:n + 1]), lead(r.corrected[:n + 1]))

    def update(self, context, v):
        f = extract_context_feature(v.target_output.hidden_states, self.draft.target_layer_ids)
        self.features.append(f[:, :v.accepted_draft_tokens + 1])

    def run(self, ids, n, stop=None):
        return generate_decoding_sample(
            target_model=self.target, input_ids=torch.tensor([ids]), max_new_tokens=n,
            max_proposal_tokens=self.draft.block_size, temperature=self.temperature, stop_token_ids=stop,
            init_context=self.init_context, propose=self.propose, update=self.update, post_verify=self.post_verify)


def rollout(target, draft, ids, stop=None):
    loop = Loop(target, draft)
    out = loop.run(ids, NEW_TOKENS, stop)
    return loop, {"prompt": ids, "stop": stop or [], "tokens": out.output_ids[0, len(ids):].tolist(),
                  "rounds": out.acceptance_lengths}


def inside_a_block(loop):
    """A token whose first appearance is an accepted draft that is not the last accepted one of its round."""
    seen = {loop.rounds[0].anchor}
    for r in loop.rounds:
        for k, x in enumerate(r.draft[:r.accepted]):
            if x not in seen and 0 < k < r.accepted - 1:
                return x
            seen.add(x)
        seen.add(r.token)
    return None


def record(target, draft, ids, rounds):
    """Tensors of the first rounds of a greedy rollout, with the draft tokens given by `rounds` when not None."""
    loop = Loop(target, draft)
    loop.run(ids, NEW_TOKENS)
    kept = loop.rounds[:ROUNDS]
    end = loop.rounds[ROUNDS].start
    replay = Loop(target, draft)  # the same, up to the pass whose context is complete
    replay.run(ids, end - len(ids))
    t = {"features": torch.cat(replay.features, 1)[0, :kept[-1].start], "cache_k": [], "cache_v": []}
    n = kept[-1].start
    t["ctx"] = draft.hidden_norm(draft.fc(t["features"]))
    for layer in replay.cache.layers:
        t["cache_k"].append(layer.keys[0, :, :n].transpose(0, 1))
        t["cache_v"].append(layer.values[0, :, :n].transpose(0, 1))
    t["cache_k"], t["cache_v"] = torch.stack(t["cache_k"]), torch.stack(t["cache_v"])
    for j, r in enumerate(kept):
        for key in ("hidden", "base", "corrected", "verify"):
            t[f"r{j}.{key}"] = r[key]
        if r.conf is not None:
            t[f"r{j}.conf"] = r.conf[0]
    return t, [{k: r[k] for k in ("start", "anchor", "draft", "accepted")} for r in kept]


def replayed(target, draft, ids, rounds):
    """The tensors of `record` under other arithmetic, teacher-forced with the recorded drafts."""
    position, cache, tcache, t = torch.arange(512)[None], DynamicCache(), DynamicCache(), {}
    out = target(torch.tensor([ids]), past_key_values=tcache, use_cache=True, output_hidden_states=True)
    features, loop = [extract_context_feature(out.hidden_states, draft.target_layer_ids)], Loop(target, draft)
    for j, r in enumerate(rounds):
        block = torch.full((1, draft.block_size), draft.mask_token_id)
        block[:, 0] = r["anchor"]
        hidden = forward_dspark_draft_block(draft, draft_input_ids=block, position_ids=position, past_key_values_draft=cache,
                                            target_hidden_states=features[-1], start=r["start"], block_size=draft.block_size)
        prev = torch.tensor([[r["anchor"]] + r["draft"][:-1]])
        base = draft.compute_logits(hidden)
        sure = draft.predict_confidence_step(hidden, prev_token_ids=prev)
        t.update({f"r{j}.hidden": hidden[0], f"r{j}.base": base[0], f"r{j}.corrected": loop.correct(base, prev, hidden)[0]})
        if sure is not None:
            t[f"r{j}.conf"] = sure[0]
        out = target(torch.tensor([[r["anchor"]] + r["draft"]]), past_key_values=tcache, use_cache=True,
                     position_ids=position[:, r["start"]:r["start"] + draft.block_size + 1], output_hidden_states=True)
        t[f"r{j}.verify"] = out.logits[0]
        tcache.crop(r["start"] + r["accepted"] + 1)
        features.append(extract_context_feature(out.hidden_states, draft.target_layer_ids)[:, :r["accepted"] + 1])
    n = rounds[-1]["start"]
    t["features"] = torch.cat(features, 1)[0, :n]
    t["ctx"] = draft.hidden_norm(draft.fc(t["features"]))
    t["cache_k"] = torch.stack([c.keys[0, :, :n].transpose(0, 1) for c in cache.layers])
    t["cache_v"] = torch.stack([c.values[0, :, :n].transpose(0, 1) for c in cache.layers])
    return t


def sampled(target, draft, ids, seed):
    """Rounds at T = 0.5 through verify_draft_tokens with dumped uniforms, final draws by inverse transform of them."""
    torch.manual_seed(seed)
    uniforms, rand_like, draw = [], torch.rand_like, base_evaluator.sample_from_probs

    def accept_u(x):
        uniforms.append([rand_like(x)[0], None])
        return uniforms[-1][0][None]

    def final(p):
        u = torch.rand(1)
        if uniforms and uniforms[-1][1] is None:
            uniforms[-1][1] = u
        c = p[0, 0].double().cumsum(0)
        return torch.searchsorted(c, u.double() * c[-1], right=True)[None]

    residual = base_evaluator.sample_residual.__globals__
    torch.rand_like, base_evaluator.sample_from_probs, residual["sample_from_probs"] = accept_u, final, final
    loop = Loop(target, draft, temperature=0.5)
    try:
        loop.run(ids, 3 * NEW_TOKENS)
    finally:
        torch.rand_like, base_evaluator.sample_from_probs, residual["sample_from_probs"] = rand_like, draw, draw
    pairs = sorted(zip(loop.rounds, uniforms), key=lambda x: -x[0].accepted)
    pick = [pairs[i * (len(pairs) - 1) // (SAMPLED - 1)] for i in range(SAMPLED)]
    t = {}
    for j, (r, (a, f)) in enumerate(pick):
        t.update({f"s{j}.p": r.p, f"s{j}.q": r.q[0], f"s{j}.accept_u": a, f"s{j}.final_u": f})
    return t, [{k: r[k] for k in ("draft", "accepted", "token")} for r, _ in pick]


def save_draft(draft, folder, tables):
    draft.save_pretrained(folder)
    if tables == "absent":
        f = folder / "model.safetensors"
        t = {k: v for k, v in load_file(f).items() if k not in ("embed_tokens.weight", "lm_head.weight")}
        save_file(t, f, {"format": "pt"})


def load_draft(folder, target, dtype):
    draft = Qwen3DSparkModel.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    if "lm_head.weight" not in load_file(folder / "model.safetensors"):
        draft.initialize_embeddings_and_head(embed_tokens=target.model.embed_tokens, lm_head=target.lm_head)
    return draft


def make_draft(root, name, target_dir, args, seed):
    folder, dtype = root / name, torch.float32
    stored = load_file(target_dir / "model.safetensors")["model.norm.weight"].dtype
    target = Qwen3ForCausalLM.from_pretrained(target_dir, dtype=dtype, attn_implementation="eager").eval()
    conf = build_draft_config(target.config, Args(args, mask_token_id=target.config.vocab_size - 1))
    conf._attn_implementation = "eager"
    draft = Qwen3DSparkModel(conf)
    randomise(draft, seed, 1.0)
    draft.initialize_embeddings_and_head(embed_tokens=target.model.embed_tokens, lm_head=target.lm_head)
    if args["tables"] == "own":
        with torch.no_grad():
            draft.embed_tokens.weight.mul_(1.0 + 0.1 * torch.randn(draft.embed_tokens.weight.shape))
            draft.lm_head.weight.mul_(1.0 + 0.1 * torch.randn(draft.lm_head.weight.shape))
    loss = train(draft, target, seed)
    save_draft(draft.to(stored), folder, args["tables"])
    draft = load_draft(folder, target, dtype)
    g, rolls, kept, margin = torch.Generator().manual_seed(seed + 1), [], None, 9.0
    with torch.no_grad():
        while len(rolls) < len(PROMPTS):
            ids = torch.randint(0, conf.vocab_size, (PROMPTS[len(rolls)],), generator=g).tolist()
            loop, roll = rollout(target, draft, ids)
            if loop.margin < MARGIN or len(set(roll["rounds"])) < 3:
                continue  # a decision within rounding, or a text that only repeats itself, tests little
            kept, margin = kept or loop, min(margin, loop.margin)
            rolls.append(roll)
            stop = inside_a_block(loop)
            if stop is not None:
                rolls.append(rollout(target, draft, ids, [stop])[1])
        t, rounds = record(target, draft, rolls[0]["prompt"], None)
        again = replayed(target, draft, rolls[0]["prompt"], rounds)
        assert all((again[k] - v).abs().max() < 1e-4 for k, v in t.items()), "the replay differs from DeepSpec's loop"
        st, decisions = sampled(target, draft, rolls[0]["prompt"], seed)
        out = {"prompt": rolls[0]["prompt"], "rounds": rounds, "rollouts": rolls, "sampled": decisions, "margin": margin}
        if stored == torch.bfloat16:
            low = replayed(target=copy.deepcopy(target).to(stored), draft=copy.deepcopy(draft).to(stored),
                           ids=rolls[0]["prompt"], rounds=rounds)
            err = {}
            for k, v in t.items():
                key, d = k.split(".")[-1], (low[k].float() - v).abs()
                most, total, count = err.get(key, (0.0, 0.0, 0))
                err[key] = (max(most, float(d.max())), total + float(d.sum()), count + d.numel())
            out["bf16_err"] = {k: [m, s / c] for k, (m, s, c) in err.items()}
    (folder / "golden").mkdir()
    save_file({k: v.detach().float().contiguous().clone() for k, v in {**t, **st}.items()},
              folder / "golden" / "model.safetensors")
    (folder / "golden" / "golden.json").write_text(json.dumps(out, separators=(",", ":")) + "\n")
    lengths = [n for r in rolls for n in r["rounds"]]
    print(f"{root.name}/{name}: loss {loss:.2f}, accepted length {sum(lengths) / len(lengths):.2f}, margin {margin:.3f}, "
          f"sampling accepts {[d['accepted'] for d in decisions]}, stops {[r['stop'] for r in rolls]}", flush=True)


def make(root, name, index):
    conf, dtype, drafts = CASES[name]
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    config = Qwen3Config(**conf)
    config._attn_implementation = "eager"
    torch.manual_seed(index)
    model = Qwen3ForCausalLM(config).eval()
    randomise(model, 500 + index, 0.8 if conf["num_hidden_layers"] < 10 else 0.5)
    follow(model, 500 + index)
    model.to(dtype).save_pretrained(folder / "target")
    for i, (draft, args) in enumerate(drafts.items()):
        torch.manual_seed(9000 + 100 * index + i)
        make_draft(folder, draft, folder / "target", args, 7000 + 100 * index + i)
    for f in folder.rglob("*"):
        f.chmod(0o755 if f.is_dir() else 0o644)
    print(f"{name}: {sum(f.stat().st_size for f in folder.rglob('*') if f.is_file())} bytes", flush=True)


if __name__ == "__main__":
    hf_logging.set_verbosity_error()
    torch.set_num_threads(1)
    for i, case in enumerate(CASES):
        if len(sys.argv) < 4 or case in sys.argv[3:]:
            make(pathlib.Path(sys.argv[2]), case, i)
