/* fake_target.h - a target whose next-token distribution is a keyed hash of the context, read back through
 * the page tables. A lost, doubled, stale or foreign KV entry changes the hash and is counted in `corrupt`,
 * and the expected output of any request follows by arithmetic (fake_expect), without an engine. Header only:
 * used by the simulations and the engine's unit tests. */
#ifndef DS_TESTS_SIM_FAKE_TARGET_H
#define DS_TESTS_SIM_FAKE_TARGET_H

#include "base/rng.h"
#include "worker/target.h"

#include <stdlib.h>
#include <string.h>

enum { FAKE_V = 48, FAKE_EOS = 3, FAKE_POISON = FAKE_V - 1 };

typedef struct fake_entry { /* the "KV" of one position */
    int32_t token, pos, bad;
    uint64_t chain;
} fake_entry;

typedef struct fake_target {
    ds_model_info info;
    ds_kv_layer layer;
    float *logits;
    int max_logit_rows, max_rows, page_tokens;
    uint64_t poison_mod; /* not 0: contexts whose hash is a multiple of it give NaN */
    int fail_in;         /* > 0: counts forwards down; at 1 the call fails with fail_code */
    ds_code fail_code;
    long corrupt, forwards, rows;
} fake_target;

static inline uint64_t fake_mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9E3779B97F4A7C15u;
    h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9u;
    return h ^ h >> 27;
}

static inline int fake_bad(const fake_target *f, int32_t token, uint64_t chain)
{
    return token == FAKE_POISON || (f->poison_mod && chain % f->poison_mod == 0);
}

static inline void fake_logits(uint64_t chain, int bad, float *y)
{
    for (int v = 0; v < FAKE_V; v++)
        y[v] = bad ? NAN : (float)(fake_mix(chain, (uint64_t)v + 1) >> 40) * 0x1p-24f * 8.0f - 4.0f;
    if (!bad)
        y[FAKE_POISON] = -80.0f;
}

static inline ds_code fake_kv_alloc(void *model, int pages, int page_tokens, ds_kv_pool *ret, ds_err *err)
{
    fake_target *f = model;
    (void)err;
    f->layer.k = calloc((size_t)pages * (size_t)page_tokens, sizeof(fake_entry));
    f->page_tokens = page_tokens;
    *ret = (ds_kv_pool){&f->layer, pages, page_tokens};
    return DS_OK;
}

static inline void fake_kv_free(void *model, ds_kv_pool *kv)
{
    (void)kv;
    free(((fake_target *)model)->layer.k);
}

static inline fake_entry *fake_at(const fake_target *f, const ds_rows *r, int slot, int pos)
{
    int32_t page = r->page_table[(size_t)slot * (size_t)r->page_stride + (size_t)(pos / r->page_tokens)];
    return (fake_entry *)f->layer.k + (size_t)page * (size_t)r->page_tokens + pos % r->page_tokens;
}

static inline ds_code fake_forward(void *model, const ds_kv_pool *kv, ds_step_args *a, ds_err *err)
{
    fake_target *f = model;
    const ds_rows *r = &a->rows;
    (void)kv;
    f->forwards++;
    f->rows += r->T;
    if (f->fail_in > 0 && --f->fail_in == 0)
        return ds_err_set(err, f->fail_code, "injected fault");
    if (r->T < 1 || r->T > f->max_rows || a->R > f->max_logit_rows)
        f->corrupt++;
    for (int t = 0; t < r->T; t++) { /* all rows write */
        uint64_t before = r->pos[t] ? fake_at(f, r, r->slot[t], r->pos[t] - 1)->chain : 0;
        fake_entry *e = fake_at(f, r, r->slot[t], r->pos[t]);
        *e = (fake_entry){r->token[t], r->pos[t], 0, fake_mix(before, (uint64_t)r->token[t] + 7)};
        e->bad = fake_bad(f, e->token, e->chain);
    }
    a->logits = f->logits;
    for (int k = 0; k < a->R; k++) { /* then rows attend to everything before them */
        int t = a->logit_row[k], bad = 0;
        uint64_t chain = 0;
        for (int pos = 0; pos <= r->pos[t]; pos++) {
            fake_entry *e = fake_at(f, r, r->slot[t], pos);
            chain = fake_mix(chain, (uint64_t)e->token + 7);
            bad |= e->bad;
            f->corrupt += e->pos != pos || e->chain != chain;
        }
        fake_logits(chain, bad, f->logits + (size_t)k * FAKE_V);
    }
    return DS_OK;
}

/* The row after penalties, bias, bans and temperature. */
static inline void fake_change(const float *raw, const ds_sample_row *w, float *y)
{
    memcpy(y, raw, FAKE_V * sizeof *y);
    int in[FAKE_V] = {0}, times[FAKE_V] = {0};
    for (int i = 0; i < w->n_seen; i++) {
        in[w->seen[i]] = 1;
        times[w->seen[i]] = w->seen_count[i];
    }
    for (int i = 0; i < w->n_extra; i++)
        in[w->extra[i]] = ++times[w->extra[i]];
    for (int v = 0; v < FAKE_V; v++)
        if (in[v]) {
            y[v] = y[v] > 0 ? y[v] / w->repetition : y[v] * w->repetition;
            y[v] -= times[v] ? w->presence + w->frequency * (float)times[v] : 0.0f;
        }
    for (int i = 0; i < w->n_bias; i++)
        y[w->bias_id[i]] += w->bias[i];
    for (int i = 0; w->pos < w->banned_until && i < w->n_banned; i++)
        y[w->banned[i]] = -INFINITY;
    for (int v = 0; v < FAKE_V && w->temperature > 0; v++)
        y[v] = y[v] / w->temperature;
}

/* argmax of y, with the noise of a stream or without. */
static inline int32_t fake_best(const float *y, const ds_sample_row *w, uint32_t stream, int noisy)
{
    int best = 0;
    double most = -INFINITY;
    for (int v = 0; v < FAKE_V; v++) {
        uint32_t u =
            ds_philox(w->seed, (uint32_t)v >> 2, (uint32_t)w->pos, (uint32_t)((uint64_t)w->pos >> 32), stream)
                .v[v & 3];
        float x = noisy ? y[v] + ds_rng_gumbel(u) : y[v];
        if ((double)x > most) {
            most = (double)x;
            best = v;
        }
    }
    return best;
}

static inline void fake_probs(const float *y, double *p)
{
    double sum = 0;
    for (int v = 0; v < FAKE_V; v++)
        sum += p[v] = exp((double)y[v]);
    for (int v = 0; v < FAKE_V; v++)
        p[v] /= sum;
}

/* Maximal coupling with the drafted token, from its definition. */
static inline int32_t fake_couple(const float *y, const ds_sample_row *w)
{
    double p[FAKE_V], q[FAKE_V];
    float d[FAKE_V], r[FAKE_V];
    fake_change(w->draft_logits, w, d);
    fake_probs(y, p);
    fake_probs(d, q);
    double u = (double)ds_rng_unit(ds_rng_u32(w->seed, DS_RNG_ACCEPT, (uint64_t)w->pos, 0));
    if (u * q[w->draft] < p[w->draft])
        return w->draft;
    for (int v = 0; v < FAKE_V; v++)
        r[v] = p[v] > q[v] ? (float)log(p[v] - q[v]) : -INFINITY;
    return fake_best(r, w, DS_RNG_FINAL, 1);
}

/* The simplest sampler that uses every field a schedule could get wrong. */
static inline void fake_sample_one(const float *raw, const ds_sample_row *w, ds_sample_out *out)
{
    float y[FAKE_V];
    double sum = 0;
    *out = (ds_sample_out){.bad = isnan(raw[0])};
    for (int v = 0; v < FAKE_V; v++)
        sum += exp((double)raw[v]);
    fake_change(raw, w, y);
    int couple = w->draft_logits && w->temperature > 0;
    out->token = w->given >= 0 ? w->given
                 : couple      ? fake_couple(y, w)
                               : fake_best(y, w, w->stream, w->temperature > 0);
    out->logprob = (float)((double)raw[out->token] - log(sum));
}

static inline ds_code fake_sample(void *device, const ds_sample_args *a)
{
    (void)device;
    for (int r = 0; r < a->R; r++)
        fake_sample_one(a->logits + (size_t)r * FAKE_V, &a->row[r], &a->out[r]);
    return DS_OK;
}

/* fake_init: for an engine of this conf (max_logit_rows set). */
static inline ds_target fake_init(fake_target *f, const ds_engine_conf *c, int max_positions)
{
    *f = (fake_target){.max_logit_rows = c->max_logit_rows, .max_rows = c->max_step_rows};
    f->info = (ds_model_info){.arch = "Fake", .vocab = FAKE_V, .max_positions = max_positions, .n_eos = 1};
    f->info.eos[0] = FAKE_EOS;
    f->logits = calloc((size_t)c->max_logit_rows * FAKE_V, sizeof(float));
    return (ds_target){f, f, &f->info, fake_kv_alloc, fake_kv_free, fake_forward, fake_sample};
}

static inline void fake_fini(fake_target *f)
{
    free(f->logits);
}

typedef struct fake_result {
    int32_t *token; /* [n] the whole output, resumed tokens included */
    float *logprob; /* [n] 0 for resumed tokens */
    int n, bad;     /* bad: ends with a NaN instead of `finish` */
    ds_finish finish;
    float *prompt_logprob; /* [n_prompt] entry 0 unused */
} fake_result;

typedef struct fake_luck { /* how probable the emitted tokens were: sum and variance of log p - E[log p] */
    double sum, var;
    long n;
} fake_luck;

static inline void fake_luck_add(fake_luck *l, const float *raw, const ds_sample_row *w, int32_t token)
{
    float y[FAKE_V];
    double p[FAKE_V], mean = 0, square = 0;
    fake_change(raw, w, y);
    fake_probs(y, p);
    for (int v = 0; v < FAKE_V; v++) {
        double x = p[v] > 0 ? log(p[v]) : 0;
        mean += p[v] * x;
        square += p[v] * x * x;
    }
    l->sum += (p[token] > 0 ? log(p[token]) : -1e9) - mean;
    l->var += square - mean * mean;
    l->n++;
}

/* fake_follow: what the request must give under any schedule. Straight from the definition, no cache. forced
 * [n_forced]: these tokens were emitted (of a request whose draws depend on the schedule): their
 * log-probabilities, how it ends with them, and, when luck is given, how probable they were. */
static inline fake_result fake_follow(const fake_target *f, const ds_req *q, int max_len,
                                      const int32_t *forced, int n_forced, fake_luck *luck)
{
    fake_result r = {0};
    int cap = q->max_tokens < max_len + 1 - q->n_prompt ? q->max_tokens : max_len + 1 - q->n_prompt, bad = 0;
    int32_t seen[FAKE_V], count[FAKE_V], times[FAKE_V] = {0}, in[FAKE_V] = {0}, stop[80];
    float y[FAKE_V];
    uint64_t chain = 0;
    int n_stop = q->n_stop_id;
    for (int i = 0; i < n_stop; i++)
        stop[i] = q->stop_id[i];
    if (!q->ignore_eos)
        stop[n_stop++] = FAKE_EOS;
    r.token = calloc((size_t)cap + 1, sizeof *r.token);
    r.logprob = calloc((size_t)cap + 1, sizeof *r.logprob);
    r.prompt_logprob = calloc((size_t)q->n_prompt, sizeof(float));
    for (int i = 0;; i++) {
        int32_t token = i < q->n_prompt ? q->prompt[i] : r.token[i - q->n_prompt];
        chain = fake_mix(chain, (uint64_t)token + 7);
        bad |= fake_bad(f, token, chain);
        in[token] = 1;
        times[token] += i >= q->n_prompt;
        fake_logits(chain, bad, y);
        ds_sample_out out;
        ds_sample_row w = {.given = -1};
        if (i + 1 < q->n_prompt) {
            w.given = q->prompt[i + 1];
            fake_sample_one(y, &w, &out);
            r.prompt_logprob[i + 1] = out.logprob;
            if (bad && q->prompt_logprobs >= 0) {
                r.bad = 1;
                return r;
            }
            continue;
        }
        int at = i + 1 - q->n_prompt; /* index of the output token being chosen */
        if (at < q->n_output) {
            r.token[r.n++] = q->output[at];
        } else if (bad) {
            r.bad = 1;
            return r;
        } else {
            int n_seen = 0;
            for (int v = 0; v < FAKE_V; v++)
                if (in[v]) {
                    seen[n_seen] = v;
                    count[n_seen++] = times[v];
                }
            w = (ds_sample_row){q->temperature,
                                q->top_p,
                                q->min_p,
                                q->top_k,
                                q->repetition,
                                q->presence,
                                q->frequency,
                                q->seed,
                                i + 1,
                                seen,
                                count,
                                n_seen,
                                q->bias_id,
                                q->bias,
                                q->n_bias,
                                stop,
                                at < q->min_tokens ? n_stop : 0,
                                INT64_MAX,
                                -1,
                                -1};
            if (forced && r.n == n_forced)
                return r;
            if (forced)
                w.given = forced[r.n];
            fake_sample_one(y, &w, &out);
            if (luck && w.temperature > 0)
                fake_luck_add(luck, y, &w, out.token);
            r.logprob[r.n] = out.logprob;
            r.token[r.n++] = out.token;
        }
        int stopped = 0;
        for (int k = 0; k < n_stop; k++)
            stopped |= r.token[r.n - 1] == stop[k] && r.n > q->min_tokens;
        r.finish = stopped ? DS_FINISH_STOP : r.n == cap ? DS_FINISH_LENGTH : DS_FINISH_NONE;
        /* a resumed request is only looked at again after its last given token */
        if (r.n >= q->n_output && r.finish != DS_FINISH_NONE)
            return r;
    }
}

static inline fake_result fake_expect(const fake_target *f, const ds_req *q, int max_len)
{
    return fake_follow(f, q, max_len, NULL, 0, NULL);
}

static inline void fake_result_free(fake_result *r)
{
    free(r->token);
    free(r->logprob);
    free(r->prompt_logprob);
}

#endif
