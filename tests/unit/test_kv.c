/* The page accounting by itself, with the content hash at full width and with every page in one bucket. */
#include "base/rng.h"
#include "tests/lib/test.h"
#include "worker/kv.h"

#include <string.h>

static ds_kv *make(int pages, int page_tokens, uint64_t hash_mask)
{
    ds_err err = {0};
    ds_kv *kv;
    ds_kv_conf conf = {pages, page_tokens, 1, hash_mask};
    CHECK_OK(ds_kv_create(&conf, &kv, &err), err);
    return kv;
}

DS_TEST(take_until_empty_and_give_back)
{
    ds_kv *kv = make(3, 2, ~0ull);
    int32_t a = ds_kv_take(kv), b = ds_kv_take(kv), c = ds_kv_take(kv);
    CHECK(a >= 0 && b >= 0 && c >= 0 && a != b && b != c && a != c);
    CHECK_EQ(ds_kv_take(kv), -1);
    uint64_t changes = ds_kv_changes(kv);
    ds_kv_unref(kv, b);
    CHECK(ds_kv_changes(kv) > changes);
    CHECK_EQ(ds_kv_available(kv), 1);
    CHECK_EQ(ds_kv_take(kv), b);
    ds_kv_destroy(kv);
}

DS_TEST(equal_tokens_behind_other_parents_never_match)
{
    for (int wide = 0; wide < 2; wide++) {
        ds_kv *kv = make(8, 2, wide ? ~0ull : 0);
        int32_t x[2] = {1, 2}, y[2] = {3, 4}, z[2] = {5, 6};
        uint64_t ux, uy, uxz, uid;
        int32_t px = ds_kv_take(kv), py = ds_kv_take(kv), pxz = ds_kv_take(kv);
        CHECK_EQ(ds_kv_publish(kv, px, DS_KV_ROOT, x, &ux), px);
        CHECK_EQ(ds_kv_publish(kv, py, DS_KV_ROOT, y, &uy), py);
        CHECK_EQ(ds_kv_publish(kv, pxz, ux, z, &uxz), pxz);
        CHECK(ux != uy && uy != uxz);
        CHECK_EQ(ds_kv_find(kv, ux, z, &uid), pxz);
        CHECK_EQ(ds_kv_find(kv, uy, z, &uid), -1); /* [3 4 5 6] was never computed */
        CHECK_EQ(ds_kv_find(kv, DS_KV_ROOT, z, &uid), -1);
        CHECK_EQ(ds_kv_find(kv, ux, y, &uid), -1);
        ds_kv_destroy(kv);
    }
}

DS_TEST(publishing_twice_shares_the_first_page)
{
    ds_kv *kv = make(4, 2, ~0ull);
    int32_t x[2] = {1, 2}, a = ds_kv_take(kv), b = ds_kv_take(kv);
    uint64_t ua, ub;
    CHECK_EQ(ds_kv_publish(kv, a, DS_KV_ROOT, x, &ua), a);
    CHECK_EQ(ds_kv_publish(kv, b, DS_KV_ROOT, x, &ub), a);
    CHECK_EQ(ua, ub);
    CHECK_EQ(ds_kv_refs(kv, a), 2);
    CHECK_EQ(ds_kv_refs(kv, b), 0);
    CHECK_EQ(ds_kv_available(kv), 3);
    ds_kv_destroy(kv);
}

DS_TEST(least_recently_used_idle_page_goes_first_and_leaves_no_child_reachable)
{
    ds_kv *kv = make(3, 1, ~0ull);
    int32_t x = 1, y = 2, z = 3, a = ds_kv_take(kv), b = ds_kv_take(kv), c = ds_kv_take(kv);
    uint64_t ua, ub, uc, uid;
    ds_kv_publish(kv, a, DS_KV_ROOT, &x, &ua);
    ds_kv_publish(kv, b, ua, &y, &ub);
    ds_kv_publish(kv, c, DS_KV_ROOT, &z, &uc);
    ds_kv_unref(kv, a);
    ds_kv_unref(kv, c);
    ds_kv_unref(kv, b);
    CHECK_EQ(ds_kv_available(kv), 3);
    CHECK_EQ(ds_kv_take(kv), a);
    CHECK_EQ(ds_kv_find(kv, DS_KV_ROOT, &x, &uid), -1);
    CHECK_EQ(ds_kv_find(kv, DS_KV_ROOT, &z, &uid), c);
    uint64_t again;
    ds_kv_publish(kv, a, DS_KV_ROOT, &x, &again); /* the same content anew has a new uid: b stays orphaned */
    CHECK(again != ua);
    CHECK_EQ(ds_kv_find(kv, again, &y, &uid), -1);
    ds_kv_destroy(kv);
}

DS_TEST(forgotten_pages_are_not_found)
{
    ds_kv *kv = make(3, 1, ~0ull);
    int32_t x = 1, y = 2, a = ds_kv_take(kv), b = ds_kv_take(kv);
    uint64_t ua, ub, uid;
    ds_err err = {0};
    ds_kv_publish(kv, a, DS_KV_ROOT, &x, &ua);
    ds_kv_publish(kv, b, ua, &y, &ub);
    ds_kv_unref(kv, b);
    ds_kv_forget(kv, a); /* live */
    ds_kv_forget(kv, b); /* idle */
    CHECK_EQ(ds_kv_find(kv, DS_KV_ROOT, &x, &uid), -1);
    CHECK_EQ(ds_kv_find(kv, ua, &y, &uid), -1);
    CHECK_EQ(ds_kv_refs(kv, a), 1);
    CHECK_EQ(ds_kv_cached(kv), 0);
    CHECK_OK(ds_kv_audit(kv, &err), err);
    ds_kv_destroy(kv);
}

DS_TEST(impossible_sizes_are_refused_by_name)
{
    ds_kv *kv;
    ds_err err = {0};
    CHECK_EQ(ds_kv_create(&(ds_kv_conf){0, 16, 1, ~0ull}, &kv, &err), DS_EINVAL);
    CHECK_STR(err.field, "kv_pages");
    CHECK_EQ(ds_kv_create(&(ds_kv_conf){4, 17, 1, ~0ull}, &kv, &err), DS_EINVAL);
    CHECK_STR(err.field, "page_tokens");
}

/* Random histories against a model that knows each page's whole prefix: a find may only ever return a page
 * whose prefix is the one asked for. Content is drawn from two tokens, so equal blocks abound. */
DS_TEST(random_histories_never_serve_a_foreign_prefix)
{
    enum { PAGES = 24, DEPTH = 6, HOLD = 6 };
    for (uint64_t seed = 0; seed < 200; seed++) {
        ds_kv *kv = make(PAGES, 1, seed % 2 ? ~0ull : 3);
        uint32_t d = 0, prefix[PAGES] = {0}; /* of each page: its tokens as bits behind a leading 1 */
        int32_t held[HOLD][DEPTH];
        int n[HOLD] = {0};
        ds_err err = {0};
        for (int op = 0; op < 400; op++) {
            int h = (int)(ds_rng_u32(seed, DS_RNG_INIT, 2, d++) % HOLD);
            while (n[h] > 0) /* drop what holder h has, then build another chain */
                ds_kv_unref(kv, held[h][--n[h]]);
            uint32_t bits = ds_rng_u32(seed, DS_RNG_INIT, 2, d++), want = 1;
            int depth = (int)(bits >> 16) % (DEPTH + 1), computing = 0;
            uint64_t parent = DS_KV_ROOT;
            for (int i = 0; i < depth && n[h] == i; i++) {
                int32_t token = (int32_t)(bits >> i & 1), p = -1;
                uint64_t uid = 0;
                want = want << 1 | (uint32_t)token;
                if (!computing && (p = ds_kv_find(kv, parent, &token, &uid)) >= 0) {
                    CHECK_EQ(prefix[p], want);
                    ds_kv_ref(kv, p);
                } else if ((p = ds_kv_take(kv)) >= 0) {
                    computing = 1;
                    prefix[p] = want;
                    p = ds_kv_publish(kv, p, parent, &token, &uid);
                    CHECK_EQ(prefix[p], want);
                }
                if (p >= 0)
                    held[h][n[h]++] = p;
                parent = uid;
            }
            CHECK_OK(ds_kv_audit(kv, &err), err);
        }
        for (int h = 0; h < HOLD; h++)
            while (n[h] > 0)
                ds_kv_unref(kv, held[h][--n[h]]);
        CHECK_EQ(ds_kv_available(kv), PAGES);
        ds_kv_destroy(kv);
    }
}
