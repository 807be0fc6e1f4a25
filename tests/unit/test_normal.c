/* test_normal.c - NFC against utf8proc's own whole-string call: every code point of the first planes between
 * characters that may join it (this checks each range of is_inert), and random texts. */
#include "base/rng.h"
#include "tests/lib/test.h"
#include "text/normal.h"
#include "text/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static void check_nfc(const char *text, size_t len, uint32_t what)
{
    ds_buf got = {0};
    utf8proc_uint8_t *want;
    utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)len, &want,
                                      UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    CHECK(n >= 0);
    CHECK_EQ(ds_nfc(text, len, &got), DS_OK);
    CHECK_MSG(got.len == (size_t)n && memcmp(got.data, want, got.len) == 0, "differs at %x", what);
    free(want);
    ds_buf_free(&got);
}

static size_t put_all(const uint32_t *cp, int n, char *out)
{
    size_t len = 0;
    for (int i = 0; i < n; i++)
        len += (size_t)ds_utf8_put(cp[i], out + len);
    return len;
}

DS_TEST(every_code_point)
{
    for (uint32_t cp = 1; cp < 0x110000; cp += cp < 0x20000 || cp >= 0xE0000 ? 1 : 61) {
        if (cp >= 0xD800 && cp < 0xE000)
            continue;
        /* after a letter, after a Hangul syllable and a jamo, before marks of two classes, after itself */
        const uint32_t around[] = {'a', cp, 0x301, 0x323, cp, cp, 0xAC00, cp, 0x1100, cp, 0x915, cp, 0x93C};
        char s[64];
        check_nfc(s, put_all(around, sizeof around / sizeof *around, s), cp);
    }
}

DS_TEST(random_texts)
{
    static const uint32_t pool[] = {'a',    'e',     0xE9,     0x301,  0x323,  0x302,  0x345,  0x1100,
                                    0x1161, 0x11A8,  0xAC00,   0x212B, 0x4F60, 0x3042, 0x3099, 0x0958,
                                    0x093C, 0x1F600, 0x10FFFF, ' ',    0x0B47, 0x0B3E};
    for (uint64_t seed = 0; seed < 20000; seed++) {
        uint32_t cp[12];
        int n = 1 + (int)(ds_rng_u32(seed, DS_RNG_INIT, 0, 0) % 12);
        for (int i = 0; i < n; i++)
            cp[i] = pool[ds_rng_u32(seed, DS_RNG_INIT, 1, (uint32_t)i) % (sizeof pool / sizeof *pool)];
        char s[64];
        check_nfc(s, put_all(cp, n, s), (uint32_t)seed);
    }
}
