/* rng.h - counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011).
 *
 * A draw is a pure function of (seed, purpose, position, index): no draw depends on the batch, the worker or
 * the wall clock, so a request repeats its tokens anywhere. Purposes keep streams independent. */
#ifndef DS_BASE_RNG_H
#define DS_BASE_RNG_H

#include <math.h>
#include <stdint.h>

typedef enum {
    DS_RNG_TOKEN = 0,  /* Gumbel noise of the token at an absolute position, wherever no draft is tested */
    DS_RNG_DRAFT = 1,  /* draft sampling under `rejection` */
    DS_RNG_ACCEPT = 2, /* acceptance test under `rejection` */
    DS_RNG_FINAL = 3,  /* residual draw under `rejection` */
    DS_RNG_CHOICE = 4, /* seed of choice i of a request with n > 1 */
    DS_RNG_INIT = 5,   /* random weights and test data */
} ds_rng_purpose;

typedef struct ds_rng4 {
    uint32_t v[4];
} ds_rng4;

static inline ds_rng4 ds_philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (ds_rng4){{c0, c1, c2, c3}};
}

/* ds_rng_u32: lane index%4 of block index/4 for this (seed, purpose, pos). */
static inline uint32_t ds_rng_u32(uint64_t seed, ds_rng_purpose purpose, uint64_t pos, uint32_t index)
{
    ds_rng4 r = ds_philox(seed, index >> 2, (uint32_t)pos, (uint32_t)(pos >> 32), (uint32_t)purpose);
    return r.v[index & 3];
}

/* ds_rng_draft_stream: counter word of the draft noise of slot k (0-based) for position start + 1 + k: with
 * that position it is keyed by (seed, start, k), so a position drafted again later gets fresh noise. */
static inline uint32_t ds_rng_draft_stream(int k)
{
    return (uint32_t)DS_RNG_DRAFT | (uint32_t)k << 8;
}

/* ds_rng_unit: uniform in (0, 1), never 0 or 1: 23 bits plus one half are exact in f32. */
static inline float ds_rng_unit(uint32_t u)
{
    return ((float)(u >> 9) + 0.5f) * 0x1p-23f;
}

/* ds_rng_gumbel: -log(-log(u)); in about [-2.8, 16.6]. */
static inline float ds_rng_gumbel(uint32_t u)
{
    return -logf(-logf(ds_rng_unit(u)));
}

#endif
