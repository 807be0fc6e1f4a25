/* sample.c - choosing tokens (docs/sampling.md). Rows in parallel; a row's outcome depends on that row alone.
 *
 * No full sort. Every filter keeps a prefix of one total order (logit descending, id ascending), so the
 * survivors are "not after `last`", a single key; a weighted quickselect over few candidates finds it. Gumbel
 * noise is drawn only where it could win: with E = exp(-best score so far), token i needs 1 - u <= -log u <=
 * w_i * E. */
#include "kernels/cpu/cpu.h"

#include "base/limits.h"
#include "base/rng.h"

#include <math.h>
#include <string.h>

enum { BLOCK = 256 }; /* logits that share one maximum, to skip most of the row */

typedef struct cand {
    uint64_t key; /* order_key: smaller is better */
    float w;      /* weight: probability, not normalised, or 1 */
} cand;

typedef struct undo { /* a logit changed by a penalty, bias or ban */
    int32_t id;
    float raw;
} undo;

typedef struct sampler {
    const ds_isa *isa;
    float *x; /* [V] */
    int V, blocks;
    float *block_max; /* [blocks] */
    cand *cand;       /* [V] */
    undo *undo;       /* [as many as the row changes] */
    int n_undo;
    float max, scale; /* of the changed logits; 1 / temperature */
    uint64_t last;    /* key of the last survivor */
} sampler;

/* Order of floats as unsigned: descending value first, then ascending id. -0 counts as 0. */
static uint64_t order_key(float z, int id)
{
    uint32_t u;
    z += 0.0f;
    memcpy(&u, &z, 4);
    u = u >> 31 ? u : ~u & 0x7fffffff;
    return (uint64_t)u << 32 | (uint32_t)id;
}

static int block_len(const sampler *s, int b)
{
    return s->V - b * BLOCK < BLOCK ? s->V - b * BLOCK : BLOCK;
}

/* Fill block_max and max; 1 when the row holds a NaN, +inf, or nothing but -inf. */
static int scan_max(sampler *s)
{
    int any_bad = 0;
    s->max = -INFINITY;
    for (int b = 0; b < s->blocks; b++) {
        int bad;
        float m = s->isa->max(s->x + (size_t)b * BLOCK, block_len(s, b), &bad);
        any_bad |= bad;
        s->block_max[b] = m;
        s->max = m > s->max ? m : s->max;
    }
    return any_bad || !(s->max > -INFINITY) || s->max == INFINITY;
}

/* The n best of the row, best first. */
static void top_n(const sampler *s, int n, uint64_t *best)
{
    for (int i = 0; i < n; i++)
        best[i] = UINT64_MAX;
    for (int b = 0; n > 0 && b < s->blocks; b++) {
        if (order_key(s->block_max[b], b * BLOCK) >= best[n - 1])
            continue;
        for (int id = b * BLOCK; id < b * BLOCK + block_len(s, b); id++) {
            uint64_t key = order_key(s->x[id], id);
            if (key >= best[n - 1])
                continue;
            int i = n - 1;
            for (; i > 0 && best[i - 1] > key; i--)
                best[i] = best[i - 1];
            best[i] = key;
        }
    }
}

static int32_t rank_of(const sampler *s, int32_t token)
{
    uint64_t key = order_key(s->x[token], token);
    int32_t rank = 1;
    for (int b = 0; b < s->blocks; b++) {
        if (s->block_max[b] < s->x[token])
            continue;
        for (int id = b * BLOCK; id < b * BLOCK + block_len(s, b); id++)
            rank += order_key(s->x[id], id) < key;
    }
    return rank;
}

/* Log-probabilities of the raw row: f32 exponentials, f64 sums; within 1e-5 of exact (tests/kernel). */
static void report_top(const sampler *s, const ds_sample_row *r, double lse, ds_sample_out *o)
{
    uint64_t best[DS_MAX_TOP_LOGPROBS];
    o->n_top = r->n_logprobs < s->V ? r->n_logprobs : s->V;
    top_n(s, o->n_top, best);
    for (int i = 0; i < o->n_top; i++) {
        o->top_id[i] = (int32_t)(uint32_t)best[i];
        o->top_logprob[i] = (float)((double)s->x[o->top_id[i]] - lse);
    }
}

static void report_token(const sampler *s, int32_t token, double lse, ds_sample_out *o)
{
    o->logprob = (float)((double)s->x[token] - lse);
    o->rank = rank_of(s, token);
}

static void change(sampler *s, int32_t id, float to)
{
    s->undo[s->n_undo++] = (undo){id, s->x[id]};
    s->x[id] = to;
}

static void penalize(sampler *s, const ds_sample_row *r, int32_t id, int count)
{
    float z = s->x[id];
    z = z > 0 ? z / r->repetition : z * r->repetition;
    if (count > 0)
        z = z - r->presence - r->frequency * (float)count;
    change(s, id, z);
}

static int times(const int32_t *ids, int n, int32_t id)
{
    int count = 0;
    for (int i = 0; i < n; i++)
        count += ids[i] == id;
    return count;
}

static void apply_changes(sampler *s, const ds_sample_row *r)
{
    for (int i = 0; i < r->n_seen; i++)
        penalize(s, r, r->seen[i], r->seen_count[i] + times(r->extra, r->n_extra, r->seen[i]));
    for (int i = 0; i < r->n_extra; i++) /* those not seen before, each once */
        if (!times(r->seen, r->n_seen, r->extra[i]) && !times(r->extra, i, r->extra[i]))
            penalize(s, r, r->extra[i], times(r->extra, r->n_extra, r->extra[i]));
    for (int i = 0; i < r->n_bias; i++)
        change(s, r->bias_id[i], s->x[r->bias_id[i]] + r->bias[i]);
    for (int i = 0; r->pos < r->banned_until && i < r->n_banned; i++)
        change(s, r->banned[i], -INFINITY);
}

static void undo_changes(sampler *s)
{
    while (s->n_undo > 0) {
        undo u = s->undo[--s->n_undo];
        s->x[u.id] = u.raw;
    }
}

/* The smallest prefix of c (in key order) that weighs at least `target`: key of its last element, or the last
 * key when all weigh less. Weighted quickselect; c is reordered. */
static uint64_t prefix_last(cand *c, int n, double target)
{
    uint64_t last = 0;
    uint32_t mix = 1;
    while (n > 0) {
        mix = mix * 1664525u + 1013904223u;
        uint64_t pivot = c[(uint64_t)mix * (uint32_t)n >> 32].key;
        double mass = 0;
        int m = 0; /* c[0..m) <= pivot */
        for (int i = 0; i < n; i++) {
            if (c[i].key > pivot)
                continue;
            mass += (double)c[i].w;
            cand t = c[i];
            c[i] = c[m];
            c[m++] = t;
        }
        if (mass < target) { /* all of the left part belongs to the prefix */
            last = pivot;
            target -= mass;
            c += m;
            n -= m;
            continue;
        }
        int at = 0; /* the prefix ends in the left part: at the pivot, or before it */
        while (c[at].key != pivot)
            at++;
        if (mass - (double)c[at].w < target)
            return pivot;
        c[at] = c[m - 1];
        n = m - 1;
    }
    return last;
}

/* Candidates: survivors so far with logit >= low. Weights 1, or probabilities relative to the maximum. */
static int collect(sampler *s, float low, int probs)
{
    int n = 0;
    float w[BLOCK];
    for (int b = 0; b < s->blocks; b++) {
        if (s->block_max[b] < low)
            continue;
        const float *x = s->x + (size_t)b * BLOCK;
        int len = block_len(s, b);
        if (probs)
            s->isa->exp_all(x, len, s->max, s->scale, w);
        for (int i = 0; i < len; i++) {
            if (!(x[i] >= low))
                continue;
            uint64_t key = order_key(x[i], b * BLOCK + i);
            if (key <= s->last)
                s->cand[n++] = (cand){key, probs ? w[i] : 1.0f};
        }
    }
    return n;
}

/* k best: at least k logits reach the k-th largest group maximum, so only those above it are candidates. */
static void filter_top_k(sampler *s, int k)
{
    if (k <= 0 || k >= s->V)
        return;
    float low = -INFINITY;
    if (k <= s->blocks) {
        for (int b = 0; b < s->blocks; b++)
            s->cand[b] = (cand){order_key(s->block_max[b], b), 1.0f};
        low = s->block_max[(uint32_t)prefix_last(s->cand, s->blocks, k)];
    }
    s->last = prefix_last(s->cand, collect(s, low, 0), k);
}

static double mass_of(const cand *c, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)c[i].w;
    return sum;
}

/* Smallest prefix with probability >= top_p, of what top-k left. */
static void filter_top_p(sampler *s, float top_p)
{
    if (!(top_p < 1))
        return;
    float floor = -INFINITY; /* logit of the last survivor */
    double total;
    if (s->last != UINT64_MAX) {
        floor = s->x[(uint32_t)s->last];
        total = mass_of(s->cand, collect(s, floor, 1));
    } else {
        total = s->isa->sum_exp(s->x, s->V, s->max, s->scale);
    }
    double target = total * (double)top_p;
    /* Widen until the candidates hold the mass: beyond 40 nats nothing can matter to an f32 top_p below 1. */
    for (float nats = 10;; nats *= 2) {
        float low = s->max - nats / s->scale;
        int n = collect(s, low > floor ? low : floor, 1);
        if (nats < 40 && low > floor && mass_of(s->cand, n) < target)
            continue;
        s->last = prefix_last(s->cand, n, target);
        return;
    }
}

/* Probability >= min_p times the largest. */
static void filter_min_p(sampler *s, float min_p)
{
    if (!(min_p > 0))
        return;
    double least = (double)s->max + log((double)min_p) / (double)s->scale;
    float low = (float)least;
    if ((double)low < least)
        low = nextafterf(low, INFINITY);
    if (low > s->max)
        low = s->max;
    uint64_t key = order_key(low, -1); /* any id at this logit */
    s->last = key < s->last ? key : s->last;
}

/* argmax over survivors of (x - max) * scale + Gumbel; lowest id on ties. */
static int32_t draw(const sampler *s, const ds_sample_row *r)
{
    const float slack = 1.0001f, tiny = 0x1p-24f; /* rounding of w and E; the least 1 - u there is */
    float best = -INFINITY, E = INFINITY, w[BLOCK];
    int32_t token = -1;
    int first = 0; /* begin where the largest logit is: E is small from then on */
    while (s->block_max[first] != s->max)
        first++;
    for (int k = 0; k < s->blocks; k++) {
        int b = k == 0 ? first : k <= first ? k - 1 : k;
        const float *x = s->x + (size_t)b * BLOCK;
        if (order_key(s->block_max[b], 0) > s->last)
            continue;
        int len = block_len(s, b), quad = -1;
        ds_rng4 u4 = {{0}};
        s->isa->exp_all(x, len, s->max, s->scale, w);
        for (int i = 0; i < len; i++) {
            int id = b * BLOCK + i;
            float reach = w[i] * E * slack;
            if (!(reach >= tiny) || order_key(x[i], id) > s->last)
                continue;
            if (quad != id >> 2) {
                quad = id >> 2;
                u4 = ds_philox(r->seed, (uint32_t)quad, (uint32_t)r->pos, (uint32_t)((uint64_t)r->pos >> 32),
                               r->stream);
            }
            uint32_t u = u4.v[id & 3];
            if (1.0f - ds_rng_unit(u) > reach)
                continue;
            float score = (x[i] - s->max) * s->scale + ds_rng_gumbel(u);
            if (score > best || (score == best && id < token)) {
                best = score;
                token = id;
                E = expf(-best);
            }
        }
    }
    return token;
}

/* ---- maximal coupling with a draft ---- */

/* Sum of exp((x - max) * scale) over the survivors: block by block, so it depends on nothing but the row. */
static double mass_left(const sampler *s)
{
    if (s->last == UINT64_MAX)
        return s->isa->sum_exp(s->x, s->V, s->max, s->scale);
    double sum = 0;
    float w[BLOCK];
    for (int b = 0; b < s->blocks; b++) {
        if (order_key(s->block_max[b], 0) > s->last)
            continue;
        const float *x = s->x + (size_t)b * BLOCK;
        int len = block_len(s, b);
        s->isa->exp_all(x, len, s->max, s->scale, w);
        for (int i = 0; i < len; i++)
            sum += order_key(x[i], b * BLOCK + i) <= s->last ? (double)w[i] : 0.0;
    }
    return sum;
}

/* Probabilities of one block of the survivors; 0 for the others. */
static void block_probs(const sampler *s, int b, double mass, float *p)
{
    const float *x = s->x + (size_t)b * BLOCK;
    int len = block_len(s, b);
    s->isa->exp_all(x, len, s->max, s->scale, p);
    for (int i = 0; i < len; i++)
        p[i] = order_key(x[i], b * BLOCK + i) <= s->last ? (float)((double)p[i] / mass) : 0.0f;
}

static float prob_of(const sampler *s, int32_t id, double mass)
{
    float p[BLOCK];
    block_probs(s, id / BLOCK, mass, p);
    return p[id % BLOCK];
}

/* argmax over max(p - q, 0) of its log + Gumbel; -1 when nothing is left (p = q up to rounding). */
static int32_t draw_residual(const sampler *s, double p_mass, const sampler *d, double q_mass,
                             const ds_sample_row *r)
{
    const float slack = 1.0001f, tiny = 0x1p-24f; /* as in draw */
    float best = -INFINITY, E = INFINITY, p[BLOCK], q[BLOCK];
    int32_t token = -1;
    for (int b = 0; b < s->blocks; b++) {
        if (order_key(s->block_max[b], 0) > s->last)
            continue;
        int len = block_len(s, b), quad = -1;
        ds_rng4 u4 = {{0}};
        block_probs(s, b, p_mass, p);
        block_probs(d, b, q_mass, q);
        for (int i = 0; i < len; i++) {
            float w = p[i] - q[i], reach = w * E * slack;
            int id = b * BLOCK + i;
            if (!(w > 0) || !(reach >= tiny))
                continue;
            if (quad != id >> 2) {
                quad = id >> 2;
                u4 = ds_philox(r->seed, (uint32_t)quad, (uint32_t)r->pos, (uint32_t)((uint64_t)r->pos >> 32),
                               DS_RNG_FINAL);
            }
            uint32_t u = u4.v[id & 3];
            float score = logf(w) + ds_rng_gumbel(u);
            if (score > best || (score == best && id < token)) {
                best = score;
                token = id;
                E = expf(-best);
            }
        }
    }
    return token;
}

static void filter(sampler *s, const ds_sample_row *r)
{
    s->scale = 1.0f / r->temperature;
    s->last = UINT64_MAX;
    filter_top_k(s, r->top_k);
    filter_top_p(s, r->top_p);
    filter_min_p(s, r->min_p);
}

/* s holds p: the draft, or a draw from what p has beyond q. */
static int32_t couple(sampler *s, const ds_sample_row *r)
{
    sampler d = *s; /* q: its own row, maxima and undo list; candidates are scratch of the filters */
    d.x = r->draft_logits;
    d.block_max = s->block_max + s->blocks;
    d.undo = s->undo + s->n_undo;
    d.n_undo = 0;
    int bad = scan_max(&d);
    if (!bad) {
        apply_changes(&d, r);
        bad = d.n_undo && scan_max(&d);
    }
    int32_t token = -1;
    if (!bad) {
        filter(&d, r);
        double p_mass = mass_left(s), q_mass = mass_left(&d);
        float p = prob_of(s, r->draft, p_mass), q = prob_of(&d, r->draft, q_mass),
              u = ds_rng_unit(ds_rng_u32(r->seed, DS_RNG_ACCEPT, (uint64_t)r->pos, 0));
        if (q > 0 && u * q < p)
            token = r->draft;
        else if (q > 0)
            token = draw_residual(s, p_mass, &d, q_mass, r);
    }
    undo_changes(&d);
    return token >= 0 ? token : draw(s, r);
}

static int32_t greedy(const sampler *s)
{
    uint64_t best;
    top_n(s, 1, &best);
    return (int32_t)(uint32_t)best;
}

static void sample_row(sampler *s, const ds_sample_row *r, ds_sample_out *o)
{
    *o = (ds_sample_out){.token = -1};
    if (scan_max(s)) {
        o->bad = 1;
        return;
    }
    double lse = 0;
    int asked = r->n_logprobs >= 0 || r->given >= 0;
    if (asked) {
        lse = (double)s->max + log(s->isa->sum_exp(s->x, s->V, s->max, 1.0f));
        report_top(s, r, lse, o);
    }
    o->token = r->given;
    if (r->given < 0) {
        apply_changes(s, r);
        if (s->n_undo && scan_max(s)) {
            o->bad = 1; /* every token is forbidden */
        } else if (r->temperature == 0) {
            o->token = greedy(s);
        } else {
            filter(s, r);
            o->token = r->draft_logits ? couple(s, r) : draw(s, r);
        }
        int changed = s->n_undo > 0;
        undo_changes(s);
        if (changed && asked)
            scan_max(s);
    }
    if (asked && !o->bad)
        report_token(s, o->token, lse, o);
}

typedef struct sample_job {
    ds_cpu *c;
    const ds_sample_args *a;
    char *scratch;
    size_t per_thread;
} sample_job;

static size_t blocks_of(int V)
{
    return ((size_t)V + BLOCK - 1) / BLOCK;
}

static void sample_part(void *ctx, int thread, int begin, int end)
{
    sample_job *j = ctx;
    const ds_sample_args *a = j->a;
    char *p = j->scratch + (size_t)thread * j->per_thread;
    sampler s = {.isa = j->c->isa, .V = a->V, .blocks = (int)blocks_of(a->V)};
    s.cand = (cand *)(void *)p;
    p += (size_t)a->V * sizeof(cand);
    s.block_max = (float *)(void *)p;
    s.undo = (undo *)(void *)(p + 2 * blocks_of(a->V) * sizeof(float)); /* of p, then of q */
    for (int r = begin; r < end; r++) {
        s.x = a->logits + (size_t)r * (size_t)a->V;
        sample_row(&s, &a->row[r], &a->out[r]);
    }
}

static int ids_ok(const int32_t *id, int n, int V)
{
    for (int i = 0; i < n; i++)
        if (id[i] < 0 || id[i] >= V)
            return 0;
    return n >= 0;
}

ds_code ds_cpu_sample(ds_backend *b, const ds_sample_args *a)
{
    ds_cpu *c = (ds_cpu *)b;
    if (a->R < 0 || a->V <= 0)
        return DS_EINVAL;
    size_t changes = 0;
    for (int i = 0; i < a->R; i++) {
        const ds_sample_row *r = &a->row[i];
        if (!ids_ok(r->seen, r->n_seen, a->V) || !ids_ok(r->bias_id, r->n_bias, a->V) ||
            !ids_ok(r->banned, r->n_banned, a->V) || !ids_ok(r->extra, r->n_extra, a->V) ||
            r->given >= a->V || r->n_logprobs > DS_MAX_TOP_LOGPROBS ||
            (r->draft_logits && !ids_ok(&r->draft, 1, a->V)))
            return DS_EINVAL;
        size_t n = (size_t)r->n_seen + (size_t)r->n_extra + (size_t)r->n_bias + (size_t)r->n_banned;
        changes = n > changes ? n : changes;
    }
    sample_job j = {.c = c, .a = a};
    j.per_thread =
        (size_t)a->V * sizeof(cand) + 2 * blocks_of(a->V) * sizeof(float) + 2 * changes * sizeof(undo);
    j.per_thread = (j.per_thread + 63) & ~(size_t)63;
    j.scratch = ds_scratch_need(&c->thread, j.per_thread * (size_t)ds_pool_threads(c->pool));
    if (!j.scratch)
        return DS_ENOMEM;
    ds_pool_for(c->pool, a->R, a->V < 4096 ? 8 : 1, sample_part, &j);
    return DS_OK;
}
