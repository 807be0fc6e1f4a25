#include "worker/kv.h"

#include "base/limits.h"

#include <stdlib.h>
#include <string.h>

typedef struct page {
    uint64_t uid, parent; /* of a published page; uid 0: not published */
    int32_t refs;
    int32_t chain;      /* next page of the same bucket, -1 ends */
    int32_t prev, next; /* neighbours in the LRU (idle) or `next` in the free list */
} page;

struct ds_kv {
    ds_kv_conf conf;
    page *page;      /* [pages] */
    int32_t *tokens; /* [pages, page_tokens] of published pages */
    int32_t *bucket; /* [mask + 1] first page of the chain */
    uint64_t mask;
    int32_t free_head, lru_head, lru_tail; /* LRU head is evicted first */
    int n_free, n_idle, n_cached;
    uint64_t last_uid, changes;
};

static int32_t *tokens_of(const ds_kv *kv, int32_t p)
{
    return kv->tokens + (size_t)p * (size_t)kv->conf.page_tokens;
}

static int32_t *bucket_of(const ds_kv *kv, uint64_t parent, const int32_t *tokens)
{
    uint64_t h = parent * 0x9E3779B97F4A7C15u;
    for (int i = 0; i < kv->conf.page_tokens; i++) {
        h = (h ^ (uint32_t)tokens[i]) * 0xBF58476D1CE4E5B9u;
        h ^= h >> 29;
    }
    return &kv->bucket[h & kv->conf.hash_mask & kv->mask];
}

static void free_push(ds_kv *kv, int32_t p)
{
    kv->page[p].next = kv->free_head;
    kv->free_head = p;
    kv->n_free++;
}

static void lru_push(ds_kv *kv, int32_t p)
{
    kv->page[p].prev = kv->lru_tail;
    kv->page[p].next = -1;
    if (kv->lru_tail >= 0)
        kv->page[kv->lru_tail].next = p;
    else
        kv->lru_head = p;
    kv->lru_tail = p;
    kv->n_idle++;
}

static void lru_remove(ds_kv *kv, int32_t p)
{
    page *g = &kv->page[p];
    if (g->prev >= 0)
        kv->page[g->prev].next = g->next;
    else
        kv->lru_head = g->next;
    if (g->next >= 0)
        kv->page[g->next].prev = g->prev;
    else
        kv->lru_tail = g->prev;
    kv->n_idle--;
}

static void unpublish(ds_kv *kv, int32_t p)
{
    int32_t *at = bucket_of(kv, kv->page[p].parent, tokens_of(kv, p));
    while (*at != p)
        at = &kv->page[*at].chain;
    *at = kv->page[p].chain;
    kv->page[p].uid = 0;
    kv->n_cached--;
}

ds_code ds_kv_create(const ds_kv_conf *conf, ds_kv **ret, ds_err *err)
{
    *ret = NULL;
    if (conf->pages < 1)
        return ds_err_field(err, DS_EINVAL, "kv_pages", "kv_pages is %d, must be at least 1", conf->pages);
    if (conf->page_tokens < 1 || conf->page_tokens > DS_MAX_PAGE_TOKENS)
        return ds_err_field(err, DS_EINVAL, "page_tokens", "page_tokens is %d, must be 1..%d",
                            conf->page_tokens, DS_MAX_PAGE_TOKENS);
    uint64_t buckets = 1;
    while (buckets < 2 * (uint64_t)conf->pages)
        buckets *= 2;
    ds_kv *kv = calloc(1, sizeof *kv);
    if (kv) {
        kv->page = calloc((size_t)conf->pages, sizeof *kv->page);
        kv->tokens = calloc((size_t)conf->pages * (size_t)conf->page_tokens, sizeof *kv->tokens);
        kv->bucket = malloc(buckets * sizeof *kv->bucket);
    }
    if (!kv || !kv->page || !kv->tokens || !kv->bucket) {
        ds_kv_destroy(kv);
        return ds_err_set(err, DS_ENOMEM, "no memory for the tables of %d KV pages", conf->pages);
    }
    kv->conf = *conf;
    kv->mask = buckets - 1;
    memset(kv->bucket, 0xff, buckets * sizeof *kv->bucket);
    kv->free_head = kv->lru_head = kv->lru_tail = -1;
    for (int32_t p = conf->pages - 1; p >= 0; p--)
        free_push(kv, p);
    *ret = kv;
    return DS_OK;
}

void ds_kv_destroy(ds_kv *kv)
{
    if (!kv)
        return;
    free(kv->page);
    free(kv->tokens);
    free(kv->bucket);
    free(kv);
}

int ds_kv_available(const ds_kv *kv)
{
    return kv->n_free + kv->n_idle;
}

int ds_kv_cached(const ds_kv *kv)
{
    return kv->n_cached;
}

int ds_kv_refs(const ds_kv *kv, int32_t p)
{
    return kv->page[p].refs;
}

uint64_t ds_kv_changes(const ds_kv *kv)
{
    return kv->changes;
}

int32_t ds_kv_take(ds_kv *kv)
{
    int32_t p = kv->free_head;
    if (p >= 0) {
        kv->free_head = kv->page[p].next;
        kv->n_free--;
    } else if ((p = kv->lru_head) >= 0) {
        lru_remove(kv, p);
        unpublish(kv, p);
    } else {
        return -1;
    }
    kv->page[p].refs = 1;
    return p;
}

void ds_kv_ref(ds_kv *kv, int32_t p)
{
    page *g = &kv->page[p];
    DS_ASSERT(g->refs > 0 || g->uid);
    if (g->refs++ == 0)
        lru_remove(kv, p);
}

void ds_kv_unref(ds_kv *kv, int32_t p)
{
    page *g = &kv->page[p];
    DS_ASSERT(g->refs > 0);
    if (--g->refs > 0)
        return;
    if (g->uid)
        lru_push(kv, p);
    else
        free_push(kv, p);
    kv->changes++;
}

int32_t ds_kv_find(const ds_kv *kv, uint64_t parent, const int32_t *tokens, uint64_t *ret_uid)
{
    if (!kv->conf.cache)
        return -1;
    for (int32_t p = *bucket_of(kv, parent, tokens); p >= 0; p = kv->page[p].chain) {
        const page *g = &kv->page[p];
        if (g->parent == parent &&
            memcmp(tokens_of(kv, p), tokens, (size_t)kv->conf.page_tokens * sizeof *tokens) == 0) {
            *ret_uid = g->uid;
            return p;
        }
    }
    return -1;
}

int32_t ds_kv_publish(ds_kv *kv, int32_t p, uint64_t parent, const int32_t *tokens, uint64_t *ret_uid)
{
    page *g = &kv->page[p];
    DS_ASSERT(kv->conf.cache && g->refs > 0 && !g->uid);
    int32_t same = ds_kv_find(kv, parent, tokens, ret_uid);
    if (same >= 0) {
        ds_kv_ref(kv, same);
        ds_kv_unref(kv, p);
        return same;
    }
    int32_t *at = bucket_of(kv, parent, tokens);
    memcpy(tokens_of(kv, p), tokens, (size_t)kv->conf.page_tokens * sizeof *tokens);
    g->parent = parent;
    g->uid = *ret_uid = ++kv->last_uid;
    g->chain = *at;
    *at = p;
    kv->n_cached++;
    kv->changes++;
    return p;
}

void ds_kv_forget(ds_kv *kv, int32_t p)
{
    if (!kv->page[p].uid)
        return;
    unpublish(kv, p);
    if (kv->page[p].refs == 0) {
        lru_remove(kv, p);
        free_push(kv, p);
    }
}

ds_code ds_kv_audit(const ds_kv *kv, ds_err *err)
{
    int pages = kv->conf.pages, n_free = 0, n_idle = 0, n_live = 0, n_cached = 0, n_chained = 0;
    for (int32_t p = kv->free_head; p >= 0 && n_free <= pages; p = kv->page[p].next, n_free++)
        if (kv->page[p].refs || kv->page[p].uid)
            return ds_err_set(err, DS_EBUG, "page %d is free but in use or published", p);
    for (int32_t p = kv->lru_head; p >= 0 && n_idle <= pages; p = kv->page[p].next, n_idle++)
        if (kv->page[p].refs || !kv->page[p].uid)
            return ds_err_set(err, DS_EBUG, "page %d is idle but in use or not published", p);
    for (int32_t p = 0; p < pages; p++) {
        n_live += kv->page[p].refs > 0;
        n_cached += kv->page[p].uid != 0;
    }
    for (uint64_t b = 0; b <= kv->mask; b++)
        for (int32_t p = kv->bucket[b]; p >= 0 && n_chained <= pages; p = kv->page[p].chain, n_chained++)
            if (!kv->page[p].uid || bucket_of(kv, kv->page[p].parent, tokens_of(kv, p)) != &kv->bucket[b])
                return ds_err_set(err, DS_EBUG, "page %d is in the wrong bucket", p);
    if (n_free != kv->n_free || n_idle != kv->n_idle || n_free + n_idle + n_live != pages)
        return ds_err_set(err, DS_EBUG, "free %d (%d) + idle %d (%d) + live %d is not %d pages", n_free,
                          kv->n_free, n_idle, kv->n_idle, n_live, pages);
    if (n_cached != kv->n_cached || n_chained != n_cached)
        return ds_err_set(err, DS_EBUG, "%d pages are published, %d counted, %d chained", n_cached,
                          kv->n_cached, n_chained);
    return DS_OK;
}
