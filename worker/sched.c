#include "worker/sched.h"

#include <stdlib.h>
#include <string.h>

enum {
    TWIN_PAGES = 4,  /* waiting for a sibling to compute a shared prefix pays from this many pages on */
    BACKOFF_MAX = 4, /* headroom doubles with each preemption of the sequence, up to 2^4 pages per runner */
};

struct ds_sched {
    ds_sched_conf conf;
    ds_kv *kv;
    int stride;
    int32_t *table; /* [max_seqs, stride] page ids; entries 0..n_pages-1 of a slot are valid */
    int *slot;      /* [n_slot] free slots */
    ds_seq **run;   /* [n_run] in order */
    ds_seq head;    /* ring of waiting sequences, in order */
    ds_plan plan;
    int n_slot, n_run, n_wait, n_ending;
    uint64_t arrivals, preemptions, prompt_tokens, prefix_hit_tokens;
};

static int before(const ds_seq *a, const ds_seq *b)
{
    return a->req.priority != b->req.priority ? a->req.priority < b->req.priority : a->arrival < b->arrival;
}

static int32_t *pages_of(const ds_sched *s, const ds_seq *q)
{
    return s->table + (size_t)q->slot * (size_t)s->stride;
}

static int pages_for(const ds_sched *s, int tokens)
{
    return (tokens + s->conf.kv.page_tokens - 1) / s->conf.kv.page_tokens;
}

ds_code ds_sched_create(const ds_sched_conf *conf, ds_sched **ret, ds_err *err)
{
    *ret = NULL;
    ds_sched *s = calloc(1, sizeof *s);
    if (!s)
        return ds_err_set(err, DS_ENOMEM, "no memory for the scheduler");
    s->conf = *conf;
    s->head.prev = s->head.next = &s->head;
    ds_code code = ds_kv_create(&conf->kv, &s->kv, err);
    if (code == DS_OK) {
        size_t n = (size_t)conf->max_seqs;
        s->stride = pages_for(s, conf->max_len);
        s->table = calloc(n * (size_t)s->stride, sizeof *s->table);
        s->slot = calloc(n, sizeof *s->slot);
        s->run = calloc(n, sizeof(ds_seq *));
        s->plan.item = calloc(n, sizeof *s->plan.item);
        if (!s->table || !s->slot || !s->run || !s->plan.item)
            code = ds_err_set(err, DS_ENOMEM, "no memory for %d page tables of %d entries", conf->max_seqs,
                              s->stride);
    }
    if (code != DS_OK) {
        ds_sched_destroy(s);
        return code;
    }
    for (int i = conf->max_seqs - 1; i >= 0; i--)
        s->slot[s->n_slot++] = i;
    *ret = s;
    return DS_OK;
}

void ds_sched_destroy(ds_sched *s)
{
    if (!s)
        return;
    ds_kv_destroy(s->kv);
    free(s->table);
    free(s->slot);
    free(s->run);
    free(s->plan.item);
    free(s);
}

/* Newcomers belong near the end of the ring, so the search for their place starts there. */
static void enqueue(ds_sched *s, ds_seq *q)
{
    ds_seq *at = s->head.prev;
    while (at != &s->head && before(q, at))
        at = at->prev;
    q->prev = at;
    q->next = at->next;
    at->next->prev = q;
    at->next = q;
    s->n_wait++;
}

static void dequeue(ds_sched *s, ds_seq *q)
{
    q->prev->next = q->next;
    q->next->prev = q->prev;
    s->n_wait--;
}

ds_code ds_sched_add(ds_sched *s, ds_seq *q, ds_err *err)
{
    if (s->n_run + s->n_wait >= s->conf.max_seqs + s->conf.max_queue)
        return ds_err_set(err, DS_ELIMIT, "%d requests are running and %d waiting, at most %d + %d here",
                          s->n_run, s->n_wait, s->conf.max_seqs, s->conf.max_queue);
    q->arrival = ++s->arrivals;
    q->blocked_at = UINT64_MAX;
    enqueue(s, q);
    return DS_OK;
}

ds_seq *ds_sched_find(const ds_sched *s, uint64_t id)
{
    for (int i = 0; i < s->n_run; i++)
        if (s->run[i]->req.id == id)
            return s->run[i];
    for (ds_seq *q = s->head.next; q != &s->head; q = q->next)
        if (q->req.id == id)
            return q;
    return NULL;
}

void ds_sched_end(ds_sched *s, ds_seq *q, ds_finish how)
{
    s->n_ending += q->ending == DS_FINISH_NONE;
    q->ending = how;
}

ds_seq *ds_sched_ending(const ds_sched *s)
{
    if (!s->n_ending)
        return NULL;
    for (int i = 0; i < s->n_run; i++)
        if (s->run[i]->ending != DS_FINISH_NONE)
            return s->run[i];
    ds_seq *q = s->head.next;
    while (q->ending == DS_FINISH_NONE)
        q = q->next;
    return q;
}

ds_seq *ds_sched_any(const ds_sched *s)
{
    return s->n_run ? s->run[0] : s->n_wait ? s->head.next : NULL;
}

/* Leave the running set. Pages go back last one first, so that of an idle chain the end is evicted first. */
static void stop_running(ds_sched *s, ds_seq *q, int suspect)
{
    int32_t *pages = pages_of(s, q);
    for (int i = q->n_pages - 1; i >= 0; i--) {
        if (suspect)
            ds_kv_forget(s->kv, pages[i]);
        ds_kv_unref(s->kv, pages[i]);
    }
    int i = 0;
    while (s->run[i] != q)
        i++;
    memmove(s->run + i, s->run + i + 1, (size_t)(--s->n_run - i) * sizeof(ds_seq *));
    s->slot[s->n_slot++] = q->slot;
    q->slot = -1;
    q->n_pages = q->n_published = q->n_computed = 0;
    q->n_draft = q->n_verify = 0;
    q->chain = DS_KV_ROOT;
}

void ds_sched_remove(ds_sched *s, ds_seq *q, int suspect)
{
    if (q->slot >= 0)
        stop_running(s, q, suspect);
    else
        dequeue(s, q);
    s->n_ending -= q->ending != DS_FINISH_NONE;
}

static void preempt(ds_sched *s, ds_seq *q)
{
    stop_running(s, q, 0);
    q->preempted++;
    s->preemptions++;
    enqueue(s, q);
}

/* Pages for the first `tokens` tokens of q, others giving way; 0 when q itself had to. */
static int reserve(ds_sched *s, ds_seq *q, int tokens)
{
    int need = pages_for(s, tokens);
    while (q->n_pages < need) {
        int32_t p = ds_kv_take(s->kv);
        if (p >= 0) {
            pages_of(s, q)[q->n_pages++] = p;
            continue;
        }
        ds_seq *last = s->run[s->n_run - 1];
        DS_ASSERT(s->n_run > 1); /* alone, a sequence of max_len tokens fits */
        preempt(s, last);
        if (last == q)
            return 0;
    }
    return 1;
}

int ds_sched_reserve(ds_sched *s, ds_seq *q, int tokens)
{
    tokens = tokens < s->conf.max_len ? tokens : s->conf.max_len;
    for (int need = pages_for(s, tokens); q->n_pages < need;) {
        int32_t p = ds_kv_take(s->kv);
        if (p < 0)
            return 0;
        pages_of(s, q)[q->n_pages++] = p;
    }
    return 1;
}

/* Pages for drafts, as far as there are free ones. They stay with the sequence, which will need them for its
 * next tokens: at most those of one block. */
static void reserve_drafts(ds_sched *s, ds_seq *q)
{
    if (s->conf.lookahead)
        ds_sched_reserve(s, q, q->n + q->n_verify + s->conf.lookahead);
    int room = ds_sched_room(s, q) - q->n;
    q->n_verify = q->n_verify < room ? q->n_verify : room;
}

static ds_plan_item item_of(const ds_seq *q, int rows)
{
    int verify = rows - ds_seq_pending(q);
    ds_plan_item it = {.seq = (ds_seq *)q,
                       .rows = rows,
                       .n_sample = verify >= 0 ? 1 + verify : 0,
                       .n_verify = verify > 0 ? verify : 0};
    if (ds_seq_scoring(q)) { /* row r reports position n_computed + r + 1 of the prompt */
        int first = q->n_scored - 1 - q->n_computed, end = q->req.n_prompt - 1 - q->n_computed;
        end = end < rows ? end : rows;
        if (first < end) {
            it.score_at = first;
            it.n_score = end - first;
        }
    }
    return it;
}

/* As many rows of q as the budgets allow. */
static void plan_rows(ds_sched *s, ds_seq *q)
{
    ds_plan *p = &s->plan;
    int rows = s->conf.max_step_rows - p->rows, logits = s->conf.max_logit_rows - p->logits;
    int want = ds_seq_pending(q) + (ds_seq_pending(q) == 1 ? q->n_verify : 0);
    rows = want < rows ? want : rows;
    ds_plan_item it = item_of(q, rows);
    while (rows > 0 && it.n_score + it.n_sample > logits)
        it = item_of(q, --rows);
    if (rows <= 0)
        return;
    p->item[p->n++] = it;
    p->rows += rows;
    p->logits += it.n_score + it.n_sample;
}

/* Cached pages that q can start from, written to its slot's table. The row that chooses the next token, and
 * rows still to be reported, are always computed. */
static int find_prefix(ds_sched *s, ds_seq *q, int *ret_idle)
{
    int pt = s->conf.kv.page_tokens, n = 0;
    int max = (ds_seq_scoring(q) ? q->n_scored - 1 : q->n - 1) / pt;
    uint64_t uid = DS_KV_ROOT;
    *ret_idle = 0;
    q->chain = DS_KV_ROOT;
    for (; n < max; n++, q->chain = uid) {
        int32_t p = ds_kv_find(s->kv, q->chain, q->tokens + (size_t)n * (size_t)pt, &uid);
        if (p < 0)
            break;
        *ret_idle += ds_kv_refs(s->kv, p) == 0;
        pages_of(s, q)[n] = p;
    }
    return n;
}

/* A running sequence is about to publish pages that q would otherwise compute beside it (n > 1 choices of one
 * prompt): waiting for them is cheaper. */
static int twin_is_running(const ds_sched *s, const ds_seq *q, int n_hit)
{
    int want = (n_hit + TWIN_PAGES) * s->conf.kv.page_tokens;
    if (!s->conf.kv.cache || ds_seq_scoring(q) || want >= q->n)
        return 0;
    for (int i = 0; i < s->n_run; i++) {
        const ds_seq *r = s->run[i];
        if (r->n >= want && r->n_published < n_hit + TWIN_PAGES &&
            memcmp(r->tokens, q->tokens, (size_t)want * sizeof *q->tokens) == 0)
            return 1;
    }
    return 0;
}

/* Cached pages that q would start from, written to the table of the slot it gets; -1: it must wait. */
static int may_start(ds_sched *s, ds_seq *q)
{
    uint64_t changes = ds_kv_changes(s->kv);
    if (q->blocked_at == changes)
        return -1;
    q->slot = s->slot[s->n_slot - 1];
    int idle, n_hit = find_prefix(s, q, &idle), need = pages_for(s, q->n) - n_hit;
    int64_t headroom = (int64_t)s->n_run << (q->preempted < BACKOFF_MAX ? q->preempted : BACKOFF_MAX);
    q->slot = -1;
    if (need + idle + headroom <= ds_kv_available(s->kv) && !twin_is_running(s, q, n_hit))
        return n_hit;
    q->blocked_at = changes;
    return -1;
}

int ds_sched_admissible(ds_sched *s)
{
    return s->n_wait && s->n_slot && may_start(s, s->head.next) >= 0;
}

/* The first waiting sequence starts running if the pages of all its tokens are there. */
static int admit(ds_sched *s, ds_seq *q)
{
    int n_hit = may_start(s, q);
    if (n_hit < 0)
        return 0;
    q->slot = s->slot[s->n_slot - 1];
    s->n_slot--;
    dequeue(s, q);
    for (int i = 0; i < n_hit; i++)
        ds_kv_ref(s->kv, pages_of(s, q)[i]);
    q->n_pages = q->n_published = n_hit;
    q->n_computed = n_hit * s->conf.kv.page_tokens;
    int at = s->n_run++;
    for (; at > 0 && before(q, s->run[at - 1]); at--)
        s->run[at] = s->run[at - 1];
    s->run[at] = q;
    int kept = reserve(s, q, q->n);
    DS_ASSERT(kept);
    if (q->n_cached < 0) {
        q->n_cached = q->n_computed < q->req.n_prompt ? q->n_computed : q->req.n_prompt;
        s->prefix_hit_tokens += (uint64_t)q->n_cached;
        s->prompt_tokens += (uint64_t)q->req.n_prompt;
    }
    return 1;
}

const ds_plan *ds_sched_plan(ds_sched *s)
{
    ds_plan *p = &s->plan;
    p->n = p->rows = p->logits = 0;
    for (int i = 0; i < s->n_run; i++) /* a victim comes after run[i]: what is planned stays */
        if (ds_seq_pending(s->run[i]) == 1 && reserve(s, s->run[i], s->run[i]->n)) {
            reserve_drafts(s, s->run[i]);
            plan_rows(s, s->run[i]);
        }
    p->decode_rows = p->rows;
    for (int i = 0; i < s->n_run; i++)
        if (ds_seq_pending(s->run[i]) > 1)
            plan_rows(s, s->run[i]);
    while (s->n_wait && s->n_slot && p->rows < s->conf.max_step_rows && p->logits < s->conf.max_logit_rows) {
        ds_seq *q = s->head.next;
        if (!admit(s, q))
            break;
        plan_rows(s, q);
    }
    return p;
}

void ds_sched_publish(ds_sched *s, ds_seq *q)
{
    int pt = s->conf.kv.page_tokens;
    int32_t *pages = pages_of(s, q);
    for (; s->conf.kv.cache && (q->n_published + 1) * pt <= q->n_computed; q->n_published++) {
        int i = q->n_published;
        pages[i] = ds_kv_publish(s->kv, pages[i], q->chain, q->tokens + (size_t)i * (size_t)pt, &q->chain);
    }
}

ds_seq *const *ds_sched_running(const ds_sched *s, int *ret_n)
{
    *ret_n = s->n_run;
    return s->run;
}

int ds_sched_room(const ds_sched *s, const ds_seq *q)
{
    int room = q->n_pages * s->conf.kv.page_tokens;
    return room < s->conf.max_len ? room : s->conf.max_len;
}

const int32_t *ds_sched_page_table(const ds_sched *s, int *ret_stride)
{
    *ret_stride = s->stride;
    return s->table;
}

void ds_sched_get_counts(const ds_sched *s, ds_sched_counts *ret)
{
    *ret = (ds_sched_counts){s->n_run,       s->n_wait,        ds_kv_available(s->kv), ds_kv_cached(s->kv),
                             s->preemptions, s->prompt_tokens, s->prefix_hit_tokens};
}

ds_code ds_sched_audit(const ds_sched *s, ds_err *err)
{
    DS_TRY(ds_kv_audit(s->kv, err));
    int *refs = calloc((size_t)s->conf.kv.pages, sizeof *refs);
    if (!refs)
        return ds_err_set(err, DS_ENOMEM, "no memory for the audit");
    ds_code code = DS_OK;
    for (int i = 0; i < s->n_run; i++) {
        const ds_seq *q = s->run[i];
        for (int k = 0; k < q->n_pages; k++)
            refs[pages_of(s, q)[k]]++;
        if (q->n_computed >= q->n || pages_for(s, q->n_computed) > q->n_pages ||
            (i && !before(s->run[i - 1], q)))
            code = ds_err_set(err, DS_EBUG,
                              "request %llu: %d of %d tokens computed in %d pages, or out of order",
                              (unsigned long long)q->req.id, q->n_computed, q->n, q->n_pages);
    }
    for (int32_t p = 0; p < s->conf.kv.pages; p++)
        if (refs[p] != ds_kv_refs(s->kv, p))
            code = ds_err_set(err, DS_EBUG, "page %d has %d references, the tables hold %d", p,
                              ds_kv_refs(s->kv, p), refs[p]);
    free(refs);
    int n = 0;
    for (const ds_seq *q = s->head.next; q != &s->head; q = q->next, n++)
        if (q->slot >= 0 || q->n_pages || (q->prev != &s->head && !before(q->prev, q)))
            code = ds_err_set(err, DS_EBUG, "request %llu waits with pages or out of order",
                              (unsigned long long)q->req.id);
    if (n != s->n_wait || s->n_run + s->n_slot != s->conf.max_seqs)
        code = ds_err_set(err, DS_EBUG, "%d wait (%d), %d run, %d slots free of %d", n, s->n_wait, s->n_run,
                          s->n_slot, s->conf.max_seqs);
    return code;
}
