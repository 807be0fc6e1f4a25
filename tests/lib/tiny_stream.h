/* tiny_stream.h - the number streams of the tiny DSpark golden vectors (tests/golden/dspark/tiny.json):
 * splitmix64 seeded with FNV-1a-64 of a name; values u - 0.5 on a grid of 1/128, so every weight is exact in
 * bf16. */
#ifndef DS_TESTS_LIB_TINY_STREAM_H
#define DS_TESTS_LIB_TINY_STREAM_H

#include <stdint.h>

static inline uint64_t ds_tiny_seed(const char *name)
{
    uint64_t s = 0xCBF29CE484222325ull;
    for (; *name; name++)
        s = (s ^ (unsigned char)*name) * 0x100000001B3ull;
    return s;
}

static inline double ds_tiny_next(uint64_t *s)
{
    *s += 0x9E3779B97F4A7C15ull;
    uint64_t z = *s;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    return (double)(z >> 57) / 128.0 - 0.5;
}

#endif
