#include "cli/load.h"

#include "base/clock.h"
#include "base/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum { PROGRESS_NS = 100000000, MAX_ANSWER = 8 << 20, LAST_MS = 100, HOPELESS = 50 };

typedef enum { SLOT_FREE, SLOT_BUSY, SLOT_NEXT_TURN } slot_state;

typedef struct slot {
    slot_state state;
    const ds_prompt *prompt;
    int turn;
    ds_buf answer[DS_PROMPT_MAX_TURNS];
    uint64_t planned_ns, first_ns, last_ns; /* first, last: of text */
} slot;

struct ds_load {
    slot *slots; /* [DS_LOAD_MAX_SLOTS] made when first used */
    int n_slots, cap_slots, busy;
    const ds_load_conf *conf;
    ds_door *door;
    ds_load_result *result;
    uint64_t start_ns, next_ns, last_end_ns, progress_ns;
    int64_t planned; /* arrivals so far */
    int64_t next_prompt;
};

ds_code ds_load_create(ds_load **ret, ds_err *err)
{
    *ret = calloc(1, sizeof **ret);
    return *ret ? DS_OK : ds_err_set(err, DS_ENOMEM, "no memory for the load");
}

void ds_load_destroy(ds_load *l)
{
    if (!l)
        return;
    for (int i = 0; i < l->cap_slots; i++)
        for (int t = 0; t < DS_PROMPT_MAX_TURNS; t++)
            ds_buf_free(&l->slots[i].answer[t]);
    free(l->slots);
    free(l);
}

void ds_load_result_fini(ds_load_result *r)
{
    ds_dist_fini(&r->ttft_ms);
    ds_dist_fini(&r->itl_ms);
    ds_dist_fini(&r->tpot_ms);
    ds_dist_fini(&r->e2e_ms);
}

static double ms(uint64_t from_ns, uint64_t to_ns)
{
    return (double)(to_ns - from_ns) / 1e6;
}

void ds_load_on_text(ds_load *l, int i, const char *text, size_t n)
{
    slot *s = &l->slots[i];
    uint64_t now = ds_now_ns();
    if (s->first_ns == 0)
        s->first_ns = now;
    else
        ds_dist_add(&l->result->itl_ms, ms(s->last_ns, now));
    s->last_ns = now;
    if (s->turn + 1 < s->prompt->n_turns) /* only a later turn needs the words */
        ds_buf_append(&s->answer[s->turn], text, n);
}

static void note_failure(ds_load_result *r, const char *msg)
{
    r->failed++;
    if (!r->first_error[0])
        snprintf(r->first_error, sizeof r->first_error, "%s", msg && *msg ? msg : "unknown error");
}

void ds_load_on_end(ds_load *l, int i, const ds_load_end *end)
{
    slot *s = &l->slots[i];
    ds_load_result *r = l->result;
    uint64_t now = ds_now_ns();
    l->last_end_ns = now;
    s->state = SLOT_FREE;
    l->busy--;
    if (end->code == DS_ECANCELLED) {
        r->cancelled++;
        return;
    }
    if (end->code) {
        note_failure(r, end->msg);
        return;
    }
    r->ok++;
    r->prompt_tokens += end->prompt_tokens;
    r->output_tokens += end->output_tokens;
    r->cached_tokens += end->cached_tokens;
    ds_dist_add(&r->e2e_ms, ms(s->planned_ns, now));
    if (s->first_ns) {
        ds_dist_add(&r->ttft_ms, ms(s->planned_ns, s->first_ns));
        if (end->output_tokens > 1)
            ds_dist_add(&r->tpot_ms, ms(s->first_ns, s->last_ns) / (double)(end->output_tokens - 1));
    }
    if (s->turn + 1 < s->prompt->n_turns) {
        s->turn++;
        s->state = SLOT_NEXT_TURN;
    }
}

static void start_request(ds_load *l, int i, uint64_t planned_ns)
{
    slot *s = &l->slots[i];
    ds_err err = {0};
    uint64_t n = (uint64_t)(l->conf->first_prompt + l->result->started);
    ds_load_req req = {s->prompt, s->turn, s->answer, l->conf->seed + n};
    s->state = SLOT_BUSY;
    s->planned_ns = planned_ns;
    s->first_ns = s->last_ns = 0;
    ds_buf_clear(&s->answer[s->turn]);
    s->answer[s->turn].max = MAX_ANSWER;
    l->busy++;
    l->result->started++;
    ds_code code = l->door->start(l->door->self, i, &req, &err);
    if (code)
        ds_load_on_end(l, i, &(ds_load_end){.code = code, .msg = err.msg});
}

static int may_start(const ds_load *l, uint64_t now)
{
    const ds_load_conf *c = l->conf;
    return !*c->stop && (c->requests == 0 || l->result->started < c->requests) &&
           (c->duration_s == 0 || (double)(now - l->start_ns) / 1e9 < c->duration_s);
}

static void begin_prompt(ds_load *l, int i, uint64_t planned_ns)
{
    slot *s = &l->slots[i];
    s->prompt = &l->conf->prompts->item[l->next_prompt++ % l->conf->prompts->n];
    s->turn = 0;
    start_request(l, i, planned_ns);
}

/* Gap to the next arrival: a function of seed and number, so that a run can be repeated. */
static uint64_t next_gap_ns(const ds_load *l)
{
    double mean = 1e9 / l->conf->rate;
    if (!l->conf->poisson)
        return (uint64_t)mean;
    return (uint64_t)(-mean *
                      log(ds_rng_unit(ds_rng_u32(l->conf->seed, DS_RNG_CHOICE, (uint64_t)l->planned, 0))));
}

static int free_slot(const ds_load *l)
{
    for (int i = 0; i < l->n_slots; i++)
        if (l->slots[i].state == SLOT_FREE)
            return i;
    return -1;
}

/* Starts what is due; returns 1 while more will come. */
static int start_due(ds_load *l, uint64_t now)
{
    for (int i = 0; i < l->n_slots; i++)
        if (l->slots[i].state == SLOT_NEXT_TURN) {
            if (may_start(l, now))
                start_request(l, i, now);
            else
                l->slots[i].state = SLOT_FREE;
        }
    if (l->conf->rate == 0) {
        for (int i = 0; i < l->n_slots && may_start(l, now); i++)
            if (l->slots[i].state == SLOT_FREE)
                begin_prompt(l, i, now);
        return may_start(l, now);
    }
    while (may_start(l, now) && l->next_ns <= now) {
        int i = free_slot(l);
        if (i < 0)
            break;
        if (now - l->next_ns > 1000000)
            l->result->late++;
        begin_prompt(l, i, l->next_ns);
        l->planned++;
        l->next_ns += next_gap_ns(l);
    }
    return may_start(l, now);
}

static void report_progress(ds_load *l, uint64_t now, int last)
{
    const ds_load_conf *c = l->conf;
    if (!c->progress || (!last && now - l->progress_ns < PROGRESS_NS))
        return;
    l->progress_ns = now;
    l->result->seconds = (double)(now - l->start_ns) / 1e9;
    double by_count = c->requests ? (double)(l->result->started - l->busy) / (double)c->requests : 0;
    double by_time = c->duration_s > 0 ? l->result->seconds / c->duration_s : 0;
    c->progress(c->progress_ctx, l->result, last ? 1 : fmin(fmax(by_count, by_time), 1));
}

static double cpu_now(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static ds_code loop(ds_load *l, ds_err *err)
{
    for (;;) {
        uint64_t now = ds_now_ns();
        int more = start_due(l, now);
        if (*l->conf->stop)
            return ds_err_set(err, DS_ECANCELLED, "stopped");
        if (!more && l->busy == 0)
            return DS_OK;
        if (l->result->ok == 0 && l->result->failed > HOPELESS + l->conf->concurrency)
            return ds_err_set(err, DS_EIO, "%lld requests failed and none went well: %s",
                              (long long)l->result->failed, l->result->first_error);
        int timeout_ms = LAST_MS;
        if (l->conf->rate > 0 && more && l->next_ns > now && l->next_ns - now < LAST_MS * 1000000ull)
            timeout_ms = (int)((l->next_ns - now) / 1000000); /* below 1 ms: look and come back */
        else if (l->conf->rate > 0 && more && l->next_ns <= now && free_slot(l) >= 0)
            timeout_ms = 0;
        DS_TRY(l->door->wait(l->door->self, timeout_ms, err));
        report_progress(l, now, 0);
    }
}

static ds_code make_slots(ds_load *l, int n, ds_err *err)
{
    if (n > l->cap_slots) {
        slot *more = realloc(l->slots, (size_t)n * sizeof *more);
        if (!more)
            return ds_err_set(err, DS_ENOMEM, "no memory for %d requests at once", n);
        memset(more + l->cap_slots, 0, (size_t)(n - l->cap_slots) * sizeof *more);
        l->slots = more;
        l->cap_slots = n;
    }
    l->n_slots = n;
    return DS_OK;
}

ds_code ds_load_run(ds_load *l, const ds_load_conf *conf, ds_door *door, ds_load_result *ret, ds_err *err)
{
    *ret = (ds_load_result){.concurrency = conf->concurrency, .rate = conf->rate};
    DS_TRY(make_slots(l, conf->concurrency, err));
    l->conf = conf;
    l->door = door;
    l->result = ret;
    l->busy = 0;
    l->planned = 0;
    l->next_prompt = conf->first_prompt;
    double cpu = cpu_now();
    l->start_ns = l->next_ns = l->last_end_ns = l->progress_ns = ds_now_ns();
    ds_code code = loop(l, err);
    report_progress(l, ds_now_ns(), 1);
    ret->seconds = (double)(l->last_end_ns - l->start_ns) / 1e9;
    ret->cpu_seconds = cpu_now() - cpu;
    return code;
}
