/* kv.h - who owns which KV page, and which full pages may be shared by content. Bookkeeping only: no tensors.
 *
 * Owner: the engine thread; pure (no device, socket or clock), so it is simulated with a seed.
 * Invariants (ds_kv_audit): each page is live (refs > 0), idle (cached, refs = 0, in LRU order) or free;
 * live + idle + free = pages. Only full pages whose rows are known to be good are published, a published page
 * is never written again, so sharing never copies.
 * A published page is identified by (uid of the page before it, its tokens), and a hit compares both: equal
 * parents make equal prefixes by induction, so a hash collision costs time and can never serve foreign KV.
 * uids are never used twice; the children of an evicted page are unreachable and age out. */
#ifndef DS_WORKER_KV_H
#define DS_WORKER_KV_H

#include "base/err.h"

#include <stdint.h>

typedef struct ds_kv ds_kv;

typedef struct ds_kv_conf {
    int pages, page_tokens;
    int cache;          /* 0: nothing is published */
    uint64_t hash_mask; /* bits of the content hash used; ~0, tests force collisions with 0 */
} ds_kv_conf;

enum { DS_KV_ROOT = 0 }; /* parent uid of the first page of a sequence */

ds_code ds_kv_create(const ds_kv_conf *conf, ds_kv **ret, ds_err *err);
void ds_kv_destroy(ds_kv *kv);

int ds_kv_available(const ds_kv *kv); /* pages ds_kv_take can still give: free and idle */
int ds_kv_cached(const ds_kv *kv);    /* published pages, live or idle */
int ds_kv_refs(const ds_kv *kv, int32_t page);
/* ds_kv_changes: grows whenever a page becomes available or shareable; a blocked admission is worth trying
 * again only then. */
uint64_t ds_kv_changes(const ds_kv *kv);

/* ds_kv_take: a page with one reference and undefined content, evicting the least recently used idle page
 * when none is free; -1 when all are live. */
int32_t ds_kv_take(ds_kv *kv);
void ds_kv_ref(ds_kv *kv, int32_t page);
void ds_kv_unref(ds_kv *kv, int32_t page); /* to 0: a published page becomes idle, another one free */

/* ds_kv_find: the published page after `parent` that holds exactly tokens [page_tokens], or -1. Takes no
 * reference. *ret_uid is the parent of the next one. */
int32_t ds_kv_find(const ds_kv *kv, uint64_t parent, const int32_t *tokens, uint64_t *ret_uid);
/* ds_kv_publish: offer a full, computed page. Returns the page the caller holds from now on: the same, or an
 * equal one published before (the caller's reference has moved to it). */
int32_t ds_kv_publish(ds_kv *kv, int32_t page, uint64_t parent, const int32_t *tokens, uint64_t *ret_uid);
/* ds_kv_forget: nobody finds this page again (its content is in doubt). No effect on references. */
void ds_kv_forget(ds_kv *kv, int32_t page);

/* ds_kv_audit: recount everything; DS_EBUG names the broken invariant. O(pages), for tests. */
ds_code ds_kv_audit(const ds_kv *kv, ds_err *err);

#endif
