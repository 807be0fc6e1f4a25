/* test_sample.c - the sampler against a naive sort in float64: survivors of each filter, exact probabilities,
 * log-probabilities, ranks, penalties; bad rows; independence from neighbours and threads. */
#include "base/limits.h"
#include "tests/kernel/ref.h"

static ds_sample_row plain(void)
{
    return (ds_sample_row){.temperature = 1,
                           .top_p = 1,
                           .repetition = 1,
                           .n_logprobs = -1,
                           .given = -1,
                           .seed = 1,
                           .banned_until = 1 << 20};
}

static ds_sample_out sample_one(ds_backend *b, const float *logits, int V, const ds_sample_row *r)
{
    float *x = malloc((size_t)V * sizeof *x);
    memcpy(x, logits, (size_t)V * sizeof *x);
    ds_sample_out o;
    ds_sample_args a = {x, 1, V, r, &o};
    CHECK_EQ(b->sample(b, &a), DS_OK);
    free(x);
    return o;
}

typedef struct entry {
    double z;
    int id;
} entry;

static int by_rank(const void *a, const void *b)
{
    const entry *p = a, *q = b;
    return p->z != q->z ? (p->z > q->z ? -1 : 1) : p->id - q->id;
}

/* Probabilities after temperature, top-k, top-p, min-p; slack moves the top-p target to allow for f32 sums.
 */
static int ref_filter(const float *logits, int V, const ds_sample_row *r, double slack, double *ret_p)
{
    entry *e = malloc((size_t)V * sizeof *e);
    for (int i = 0; i < V; i++)
        e[i] = (entry){(double)logits[i], i};
    qsort(e, (size_t)V, sizeof *e, by_rank);
    int n = r->top_k > 0 && r->top_k < V ? r->top_k : V;
    double total = 0, cum = 0, kept = 0, inv = (double)(1.0f / r->temperature);
    for (int i = 0; i < n; i++)
        total += exp((e[i].z - e[0].z) * inv);
    if (r->top_p < 1) {
        int keep = 0;
        while (keep < n && (keep == 0 || cum < ((double)r->top_p + slack) * total))
            cum += exp((e[keep++].z - e[0].z) * inv);
        n = keep;
    }
    while (n > 1 && exp((e[n - 1].z - e[0].z) * inv) < (double)r->min_p)
        n--;
    for (int i = 0; i < n; i++)
        kept += exp((e[i].z - e[0].z) * inv);
    memset(ret_p, 0, (size_t)V * sizeof *ret_p);
    for (int i = 0; i < n; i++)
        ret_p[e[i].id] = exp((e[i].z - e[0].z) * inv) / kept;
    free(e);
    return n;
}

/* The token plain Gumbel-max picks from p. */
static int ref_draw(const float *logits, const double *p, int V, const ds_sample_row *r)
{
    int best = -1;
    double most = -INFINITY;
    for (int i = 0; i < V; i++) {
        double u = (double)ds_rng_unit(ds_rng_u32(r->seed, DS_RNG_TOKEN, (uint64_t)r->pos, (uint32_t)i));
        double s = (double)logits[i] / (double)r->temperature - log(-log(u));
        if (p[i] > 0 && s > most) {
            most = s;
            best = i;
        }
    }
    return best;
}

static void fill_logits(float *x, int V, uint64_t seed, float spread)
{
    for (int i = 0; i < V; i++) {
        float u = ref_random(seed, (uint32_t)i);
        x[i] = spread * u * u * u; /* a few far ahead, many in the middle */
    }
}

static const ds_sample_row *variant(int i, ds_sample_row *r)
{
    static const float ps[] = {1, 0.5f, 0.9f, 0.99f, 0.01f, 0.9999f}, ms[] = {0, 0.1f, 0.01f, 1, 0, 0.5f};
    static const int ks[] = {0, 1, 5, 40, 700, 100000};
    *r = plain();
    r->temperature = 0.25f * (float)(1 + i % 7);
    r->top_p = ps[i % 6];
    r->top_k = ks[i / 2 % 6];
    r->min_p = ms[i / 5 % 6];
    r->seed = (uint64_t)i * 977;
    r->pos = i;
    return r;
}

/* Each draw equals the naive one; near the top-p boundary either neighbour set is allowed. */
static void check_draws(const char *isa, int V, float spread, int trials)
{
    ds_backend *b = ref_open(isa, 1);
    float *x = malloc((size_t)V * sizeof *x);
    double *p = malloc((size_t)V * sizeof *p);
    for (int i = 0; i < trials; i++) {
        ds_sample_row r;
        variant(i, &r);
        fill_logits(x, V, (uint64_t)i + 5, spread);
        ds_sample_out o = sample_one(b, x, V, &r);
        CHECK_EQ(o.bad, 0);
        ref_filter(x, V, &r, 0, p);
        int want = ref_draw(x, p, V, &r);
        if (o.token != want) {
            ref_filter(x, V, &r, 1e-6, p);
            int more = ref_draw(x, p, V, &r);
            ref_filter(x, V, &r, -1e-6, p);
            CHECK_MSG(o.token == more || o.token == ref_draw(x, p, V, &r), "trial %d: %d, want %d", i,
                      o.token, want);
        }
    }
    free(x);
    free(p);
    b->destroy(b);
}

/* Pearson's statistic of many seeds against exact probabilities. */
static double chi_square(ds_backend *b, const float *x, int V, ds_sample_row r, const double *p, int draws,
                         int *ret_df)
{
    enum { TOGETHER = 100 };
    int *count = calloc((size_t)V, sizeof *count);
    float *rows = malloc(TOGETHER * (size_t)V * sizeof *rows);
    ds_sample_row how[TOGETHER];
    ds_sample_out out[TOGETHER];
    double stat = 0;
    *ret_df = -1;
    for (int i = 0; i < draws; i += TOGETHER) {
        for (int k = 0; k < TOGETHER; k++) {
            memcpy(rows + (size_t)k * V, x, (size_t)V * sizeof *x);
            how[k] = r;
            how[k].seed = (uint64_t)(i + k);
            how[k].pos = (i + k) % 13;
        }
        ds_sample_args a = {rows, TOGETHER, V, how, out};
        CHECK_EQ(b->sample(b, &a), DS_OK);
        for (int k = 0; k < TOGETHER; k++)
            count[out[k].token]++;
    }
    free(rows);
    for (int i = 0; i < V; i++) {
        double want = p[i] * draws;
        if (p[i] == 0)
            stat += count[i] ? 1e9 : 0;
        else
            stat += (count[i] - want) * (count[i] - want) / want;
        *ret_df += p[i] > 0;
    }
    free(count);
    return stat;
}

static void check_distribution(const char *isa)
{
    enum { V = 24, DRAWS = 40000 };
    ds_backend *b = ref_open(isa, 1);
    float x[V];
    double p[V], wrong[V];
    int df;
    fill_logits(x, V, 3, 2);
    for (int i = 0; i < 4; i++) {
        ds_sample_row r = plain();
        r.temperature = i & 1 ? 0.7f : 1;
        r.top_p = i & 2 ? 0.8f : 1;
        ref_filter(x, V, &r, 0, p);
        double limit = chi_square(b, x, V, r, p, DRAWS, &df);
        CHECK_MSG(limit < df + 5 * sqrt(2.0 * df), "chi2 %g of %d degrees", limit, df);
        ds_sample_row other = r; /* planted: a temperature that is 20 % off */
        other.temperature *= 1.2f;
        ref_filter(x, V, &other, 0, wrong);
        CHECK(chi_square(b, x, V, r, wrong, DRAWS, &df) > df + 5 * sqrt(2.0 * df));
    }
    b->destroy(b);
}

static void check_reports(const char *isa)
{
    enum { V = 3001 };
    ds_backend *b = ref_open(isa, 2);
    float x[V];
    entry e[V];
    for (int trial = 0; trial < 20; trial++) {
        fill_logits(x, V, 70 + (uint64_t)trial, 12);
        for (int i = 0; i < 30; i++)
            x[(i * 97) % V] = 11.5f; /* ties at the top */
        double most = -INFINITY, sum = 0;
        for (int i = 0; i < V; i++) {
            e[i] = (entry){(double)x[i], i};
            most = fmax(most, (double)x[i]);
        }
        for (int i = 0; i < V; i++)
            sum += exp((double)x[i] - most);
        qsort(e, V, sizeof *e, by_rank);
        int32_t seen[] = {e[0].id, e[1].id, e[40].id}, counts[] = {2, 0, 1}, banned[] = {e[2].id};
        ds_sample_row r = plain();
        r.n_logprobs = 20;
        r.seed = (uint64_t)trial;
        r.seen = seen;
        r.seen_count = counts;
        r.n_seen = 3;
        r.repetition = 1.3f;
        r.banned = banned;
        r.n_banned = 1;
        if (trial % 2)
            r.given = e[trial * 100].id;
        ds_sample_out o = sample_one(b, x, V, &r);
        CHECK(o.token != banned[0] && (trial % 2 == 0 || o.token == r.given));
        CHECK_EQ(o.n_top, 20);
        for (int i = 0; i < 20; i++) {
            CHECK_EQ(o.top_id[i], e[i].id);
            CHECK(fabs((double)o.top_logprob[i] - (e[i].z - most - log(sum))) < 1e-5);
        }
        CHECK(e[o.rank - 1].id == o.token);
        CHECK(fabs((double)o.logprob - (e[o.rank - 1].z - most - log(sum))) < 1e-5);
    }
    b->destroy(b);
}

static void check_greedy(const char *isa)
{
    enum { V = 515 };
    ds_backend *b = ref_open(isa, 1);
    float x[V];
    fill_logits(x, V, 9, 1);
    x[300] = x[77] = x[513] = 5;
    ds_sample_row r = plain();
    r.temperature = 0;
    CHECK_EQ(sample_one(b, x, V, &r).token, 77); /* lowest id on ties */
    int32_t seen[] = {77, 300}, counts[] = {3, 1}, bias_id[] = {4}, banned[] = {513, 4};
    float bias[] = {20};
    r.seen = seen;
    r.seen_count = counts;
    r.n_seen = 2;
    r.presence = 0.5f;
    r.frequency = 0.25f; /* 77: 5 - .5 - .75, 300: 5 - .5 - .25 */
    CHECK_EQ(sample_one(b, x, V, &r).token, 513);
    r.banned = banned;
    r.n_banned = 1;
    CHECK_EQ(sample_one(b, x, V, &r).token, 300);
    int32_t extra[] = {300, 9, 300};
    r.extra = extra; /* 300: 5 - .5 - 3 * .25; 77 as before: lowest id wins the tie at 3.75 */
    r.n_extra = 3;
    CHECK_EQ(sample_one(b, x, V, &r).token, 77);
    x[9] = 4.6f; /* not in seen: 4.6 - .5 - .25 */
    CHECK_EQ(sample_one(b, x, V, &r).token, 9);
    extra[0] = 9; /* 4.6 - .5 - 2 * .25 = 3.6 */
    CHECK_EQ(sample_one(b, x, V, &r).token, 300);
    x[9] = 0;
    r.n_extra = 0;
    counts[1] = 0; /* prompt only: no presence, no frequency */
    CHECK_EQ(sample_one(b, x, V, &r).token, 300);
    r.repetition = 10;
    x[200] = 0.75f;
    for (int i = 0; i < V; i++)
        x[i] = x[i] > 0.75f && x[i] < 5 ? 0 : x[i];
    CHECK_EQ(sample_one(b, x, V, &r).token, 200);
    r.bias_id = bias_id;
    r.bias = bias;
    r.n_bias = 1;
    CHECK_EQ(sample_one(b, x, V, &r).token, 4);
    r.n_banned = 2; /* a ban beats a bias */
    CHECK_EQ(sample_one(b, x, V, &r).token, 200);
    b->destroy(b);
}

static void check_bad_rows(const char *isa)
{
    enum { V = 600, R = 9 };
    ds_backend *b = ref_open(isa, 2);
    float *x = malloc(sizeof(float) * V * R);
    ds_sample_row r[R];
    ds_sample_out o[R];
    for (int i = 0; i < R; i++) {
        r[i] = plain();
        r[i].temperature = (float)(i % 2);
        fill_logits(x + (size_t)i * V, V, (uint64_t)i, 3);
    }
    x[0] = NAN;
    x[1 * V + 599] = -NAN;
    x[2 * V + 300] = INFINITY;
    x[3 * V + 599] = INFINITY;
    for (int i = 0; i < V; i++)
        x[4 * V + i] = -INFINITY;
    x[5 * V + 3] = -INFINITY; /* one forbidden token is fine */
    int32_t *all = malloc(sizeof(int32_t) * V);
    for (int i = 0; i < V; i++)
        all[i] = i;
    r[6].banned = all;
    r[6].n_banned = V;
    r[7].banned = all;
    r[7].n_banned = V - 1;
    ds_sample_args a = {x, R, V, r, o};
    CHECK_EQ(b->sample(b, &a), DS_OK);
    for (int i = 0; i < R; i++)
        CHECK_MSG(o[i].bad == (i < 5 || i == 6), "row %d: bad %d", i, o[i].bad);
    CHECK_EQ(o[7].token, V - 1);
    r[0].given = V;
    CHECK_EQ(b->sample(b, &a), DS_EINVAL);
    free(x);
    free(all);
    b->destroy(b);
}

/* ---- a draft in the row: maximal coupling ---- */

enum { CV = 24 }; /* vocabulary of the coupling tests */

typedef struct couple_case {
    float p_logits[CV], q_logits[CV];
    ds_sample_row r;
} couple_case;

static void couple_variant(int i, couple_case *c, int32_t *ids)
{
    static const float bias[] = {1.5f};
    c->r = plain();
    fill_logits(c->p_logits, CV, 3, 2);
    fill_logits(c->q_logits, CV, i % 2 ? 3 : 4, i % 2 ? 1.7f : 2); /* alike, or not at all */
    c->r.temperature = i % 3 ? 0.7f : 1.3f;
    c->r.top_p = i & 2 ? 0.8f : 1;
    c->r.top_k = i & 4 ? 9 : 0;
    c->r.min_p = i == 6 ? 0.05f : 0;
    if (i == 7) { /* rules that change logits hold for p and for q */
        c->r.extra = ids;
        c->r.n_extra = 3;
        c->r.frequency = 0.5f;
        c->r.bias_id = ids + 3;
        c->r.bias = bias;
        c->r.n_bias = 1;
        c->r.banned = ids + 4;
        c->r.n_banned = 1;
    }
}

static void changed(const float *x, const ds_sample_row *r, float *y)
{
    memcpy(y, x, CV * sizeof *y);
    for (int i = 0; i < r->n_extra; i++)
        y[r->extra[i]] -= r->frequency;
    for (int i = 0; i < r->n_bias; i++)
        y[r->bias_id[i]] += r->bias[i];
    for (int i = 0; i < r->n_banned; i++)
        y[r->banned[i]] = -1e30f;
}

/* Draws x from q and couples it with p, many times. planted: the draft's noise is that of the residual draw,
 * or q is told with another temperature than x was drawn with. Returns chi2 of the outcomes against p; share
 * of outcomes equal to the draft in *ret_kept. */
static double couple_chi2(ds_backend *b, couple_case *c, const double *p, int draws, int planted, int *ret_df,
                          double *ret_kept)
{
    enum { TOGETHER = 250 };
    long count[CV] = {0}, kept = 0;
    static float p_rows[TOGETHER * CV], q_rows[TOGETHER * CV];
    static ds_sample_row d[TOGETHER], v[TOGETHER];
    static ds_sample_out drafted[TOGETHER], out[TOGETHER];
    for (int first = 0; first < draws; first += TOGETHER) {
        for (int k = 0; k < TOGETHER; k++) {
            int i = first + k;
            d[k] = v[k] = c->r;
            d[k].seed = v[k].seed = (uint64_t)i;
            d[k].pos = v[k].pos = i % 13;
            d[k].stream = planted == 1 ? DS_RNG_FINAL : ds_rng_draft_stream(i % 7);
            d[k].temperature *= planted == 2 ? 0.6f : 1;
            v[k].draft_logits = q_rows + k * CV;
            memcpy(p_rows + k * CV, c->p_logits, sizeof c->p_logits);
            memcpy(q_rows + k * CV, c->q_logits, sizeof c->q_logits);
        }
        ds_sample_args draft = {q_rows, TOGETHER, CV, d, drafted}, verify = {p_rows, TOGETHER, CV, v, out};
        CHECK_EQ(b->sample(b, &draft), DS_OK);
        for (int k = 0; k < TOGETHER; k++)
            v[k].draft = drafted[k].token;
        CHECK_EQ(b->sample(b, &verify), DS_OK);
        for (int k = 0; k < TOGETHER; k++) {
            CHECK(memcmp(q_rows + k * CV, c->q_logits, sizeof c->q_logits) == 0); /* put back */
            CHECK(memcmp(p_rows + k * CV, c->p_logits, sizeof c->p_logits) == 0);
            count[out[k].token]++;
            kept += out[k].token == v[k].draft;
        }
    }
    *ret_kept = (double)kept / draws;
    *ret_df = -1;
    double stat = 0;
    for (int i = 0; i < CV; i++) {
        double want = p[i] * draws;
        *ret_df += p[i] > 0;
        stat +=
            p[i] == 0 ? (count[i] ? 1e9 : 0) : ((double)count[i] - want) * ((double)count[i] - want) / want;
    }
    return stat;
}

static void check_coupling(const char *isa)
{
    enum { DRAWS = 40000 };
    ds_backend *b = ref_open(isa, 1);
    int32_t ids[] = {2, 5, 2, 11, 0};
    for (int i = 0; i < 8; i++) {
        couple_case c;
        couple_variant(i, &c, ids);
        float y[CV];
        double p[CV], q[CV], most = 0, kept;
        int df;
        changed(c.p_logits, &c.r, y);
        ref_filter(y, CV, &c.r, 0, p);
        changed(c.q_logits, &c.r, y);
        ref_filter(y, CV, &c.r, 0, q);
        for (int k = 0; k < CV; k++)
            most += fmin(p[k], q[k]);
        double x = couple_chi2(b, &c, p, DRAWS, 0, &df, &kept);
        CHECK_MSG(x < df + 5 * sqrt(2.0 * df), "case %d: chi2 %g of %d degrees", i, x, df);
        CHECK_MSG(fabs(kept - most) < 4 * sqrt(most * (1 - most) / DRAWS), "case %d: kept %g of %g", i, kept,
                  most);
        if (i % 2 == 0) { /* wrong on purpose, where the draft is often refused */
            CHECK(couple_chi2(b, &c, p, DRAWS, 1, &df, &kept) > df + 5 * sqrt(2.0 * df));
            CHECK(couple_chi2(b, &c, p, DRAWS, 2, &df, &kept) > df + 5 * sqrt(2.0 * df));
        }
    }
    b->destroy(b);
}

/* Edges: greedy, p without the draft, q without numbers, a draft that q forbids, p = q. */
static void check_coupling_edges(const char *isa)
{
    enum { V = 600 };
    ds_backend *b = ref_open(isa, 1);
    float x[V], d[V];
    fill_logits(x, V, 1, 4);
    fill_logits(d, V, 2, 4);
    ds_sample_row r = plain(), alone = r;
    r.draft_logits = d;
    for (int i = 0; i < 200; i++) {
        r.seed = alone.seed = (uint64_t)i;
        r.top_k = alone.top_k = 0;
        r.draft = 7;
        r.temperature = 0;
        alone.temperature = 0;
        CHECK_EQ(sample_one(b, x, V, &r).token, sample_one(b, x, V, &alone).token);
        r.temperature = alone.temperature = 1;
        x[7] = -INFINITY;
        d[7] = 20;
        CHECK(sample_one(b, x, V, &r).token != 7);
        d[9] = NAN;
        CHECK_EQ(sample_one(b, x, V, &r).token, sample_one(b, x, V, &alone).token);
        d[9] = 0;
        d[7] = -INFINITY; /* q cannot have drawn it */
        CHECK_EQ(sample_one(b, x, V, &r).token, sample_one(b, x, V, &alone).token);
        x[7] = d[7] = 0;
        r.draft_logits = x; /* p = q: always kept */
        r.top_k = alone.top_k = 5;
        r.draft = sample_one(b, x, V, &alone).token;
        float same[V];
        memcpy(same, x, sizeof same);
        r.draft_logits = same;
        CHECK_EQ(sample_one(b, x, V, &r).token, r.draft);
        r.draft_logits = d;
    }
    r.draft = V;
    ds_sample_out o;
    ds_sample_args a = {x, 1, V, &r, &o};
    CHECK_EQ(b->sample(b, &a), DS_EINVAL);
    b->destroy(b);
}

/* Rows together, two threads, against each alone. */
static void check_independence(const char *isa)
{
    enum { V = 5000, R = 24 };
    ds_backend *b = ref_open(isa, 2), *one = ref_open(isa, 1);
    float *x = malloc(sizeof(float) * V * R), *copy = malloc(sizeof(float) * V * R);
    ds_sample_row r[R];
    ds_sample_out o[R];
    for (int i = 0; i < R; i++) {
        variant(i * 3, &r[i]);
        r[i].n_logprobs = i % 4;
        fill_logits(x + (size_t)i * V, V, (uint64_t)i, 15);
    }
    memcpy(copy, x, sizeof(float) * V * R);
    ds_sample_args a = {copy, R, V, r, o};
    CHECK_EQ(b->sample(b, &a), DS_OK);
    for (int i = 0; i < R; i++) {
        ds_sample_out alone = sample_one(one, x + (size_t)i * V, V, &r[i]);
        CHECK_EQ(alone.token, o[i].token);
        CHECK_EQ(alone.rank, o[i].rank);
        CHECK(memcmp(&alone.logprob, &o[i].logprob, sizeof(float)) == 0);
    }
    free(x);
    free(copy);
    b->destroy(b);
    one->destroy(one);
}

#define LEVEL(isa)                            \
    DS_TEST(sample_draws_##isa)               \
    {                                         \
        check_draws(#isa, 1, 3, 6);           \
        check_draws(#isa, 37, 6, 300);        \
        check_draws(#isa, 5003, 20, 200);     \
        check_draws(#isa, 151936, 18, 12);    \
        check_draws(#isa, 151936, 0.01f, 12); \
    }                                         \
    DS_TEST(sample_distribution_##isa)        \
    {                                         \
        check_distribution(#isa);             \
    }                                         \
    DS_TEST(sample_reports_##isa)             \
    {                                         \
        check_reports(#isa);                  \
    }                                         \
    DS_TEST(sample_rules_##isa)               \
    {                                         \
        check_greedy(#isa);                   \
        check_bad_rows(#isa);                 \
        check_independence(#isa);             \
    }                                         \
    DS_TEST(sample_coupling_##isa)            \
    {                                         \
        check_coupling(#isa);                 \
        check_coupling_edges(#isa);           \
    }
LEVEL(portable)
LEVEL(avx2)
LEVEL(avx512)
LEVEL(avx512bf16)
LEVEL(cuda_auto)
LEVEL(cuda_invariant)
LEVEL(cuda_portable)
