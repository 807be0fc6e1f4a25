/* fuzz_main.c - runs a fuzz target without libFuzzer: every file of the corpus folder, then a fixed number of
 * seeded mutations of each, so that plain and sanitizer builds replay the same inputs. */
#include "base/rng.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MUTATIONS = 400, MAX_BYTES = 1 << 20 };

static void mutate(const uint8_t *src, size_t n, uint64_t seed)
{
    size_t cap = n + 64;
    uint8_t *p = malloc(cap);
    if (!p)
        abort();
    if (n)
        memcpy(p, src, n);
    uint32_t edits = 1 + ds_rng_u32(seed, DS_RNG_INIT, 0, 0) % 4;
    for (uint32_t e = 0; e < edits; e++) {
        uint32_t r = ds_rng_u32(seed, DS_RNG_INIT, 1 + e, 0), at = ds_rng_u32(seed, DS_RNG_INIT, 1 + e, 1);
        size_t i = n ? at % n : 0;
        if (r % 4 == 0 && n) {
            p[i] ^= (uint8_t)(1u << (r >> 8 & 7));
        } else if (r % 4 == 1 && n) {
            p[i] = (uint8_t)(r >> 16);
        } else if (r % 4 == 2 && n > 1) {
            memmove(p + i, p + i + 1, n - i - 1);
            n--;
        } else if (n < cap) {
            memmove(p + i + 1, p + i, n - i);
            p[i] = (uint8_t)(r >> 16);
            n++;
        }
    }
    LLVMFuzzerTestOneInput(p, n);
    free(p);
}

int main(int argc, char **argv)
{
    long files = 0, runs = 0;
    LLVMFuzzerTestOneInput((const uint8_t *)"", 0);
    for (int a = 1; a < argc; a++) {
        DIR *d = opendir(argv[a]);
        struct dirent *ent;
        while (d && (ent = readdir(d))) {
            char path[4096];
            snprintf(path, sizeof path, "%s/%s", argv[a], ent->d_name);
            FILE *f = ent->d_name[0] == '.' ? NULL : fopen(path, "rb");
            if (!f)
                continue;
            uint8_t *p = malloc(MAX_BYTES);
            size_t n = p ? fread(p, 1, MAX_BYTES, f) : 0;
            fclose(f);
            LLVMFuzzerTestOneInput(p, n);
            for (int m = 0; m < MUTATIONS && n < 65536; m++, runs++)
                mutate(p, n, (uint64_t)m * 7919 + n);
            free(p);
            files++;
        }
        if (d)
            closedir(d);
    }
    printf("%ld corpus files, %ld mutations\n", files, runs);
    return files > 0 ? 0 : 1;
}
