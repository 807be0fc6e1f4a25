/* utf8.h - strict UTF-8: no surrogates, no overlong forms, nothing above U+10FFFF. Pure; any thread. */
#ifndef DS_TEXT_UTF8_H
#define DS_TEXT_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* ds_utf8_next: decodes one code point of [p, end), p < end. Returns its length 1..4, or minus the length of
 * the maximal invalid subpart (what a lossy decoder replaces by one U+FFFD). *ret_short is set when the bytes
 * are a valid beginning that merely ended too early. Source: Unicode 15, table 3-7 and section 3.9. */
static inline int ds_utf8_next(const char *p, const char *end, uint32_t *ret_cp, int *ret_short)
{
    const unsigned char *s = (const unsigned char *)p;
    uint32_t c = s[0];
    int need = c < 0x80                ? 0
               : c >= 0xC2 && c < 0xE0 ? 1
               : c >= 0xE0 && c < 0xF0 ? 2
               : c >= 0xF0 && c < 0xF5 ? 3
                                       : -1;
    *ret_short = 0;
    if (need < 0)
        return -1;
    uint32_t lo = c == 0xE0 ? 0xA0 : c == 0xF0 ? 0x90 : 0x80, hi = c == 0xED ? 0x9F : c == 0xF4 ? 0x8F : 0xBF;
    uint32_t cp = need == 0 ? c : c & (0x3Fu >> need);
    for (int i = 1; i <= need; i++) {
        if (p + i >= end) {
            *ret_short = 1;
            return -i;
        }
        if (s[i] < lo || s[i] > hi)
            return -i;
        cp = cp << 6 | (s[i] & 0x3F);
        lo = 0x80;
        hi = 0xBF;
    }
    *ret_cp = cp;
    return need + 1;
}

/* ds_utf8_put: writes cp as 1..4 bytes, returns how many. */
static inline int ds_utf8_put(uint32_t cp, char *out)
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    int n = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (int i = n - 1; i > 0; i--, cp >>= 6)
        out[i] = (char)(0x80 | (cp & 0x3F));
    out[0] = (char)((n == 2 ? 0xC0 : n == 3 ? 0xE0 : 0xF0) | cp);
    return n;
}

/* ds_utf8_prefix: length of the longest valid prefix; equal to len when all of it is valid. */
size_t ds_utf8_prefix(const char *p, size_t len);
/* ds_utf8_ascii: length of the ASCII prefix. */
size_t ds_utf8_ascii(const char *p, size_t len);

#endif
