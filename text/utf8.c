/* utf8.c - validation of whole texts, eight ASCII bytes at a time. */
#include "text/utf8.h"

#include <string.h>

size_t ds_utf8_ascii(const char *p, size_t len)
{
    size_t i = 0;
    for (uint64_t w; i + 8 <= len; i += 8) {
        memcpy(&w, p + i, 8);
        if (w & 0x8080808080808080u)
            break;
    }
    while (i < len && (unsigned char)p[i] < 0x80)
        i++;
    return i;
}

size_t ds_utf8_prefix(const char *p, size_t len)
{
    size_t i = 0;
    while (i < len) {
        if ((unsigned char)p[i] < 0x80) {
            i += ds_utf8_ascii(p + i, len - i);
            continue;
        }
        uint32_t cp;
        int is_short, n = ds_utf8_next(p + i, p + len, &cp, &is_short);
        if (n < 0)
            return i;
        i += (size_t)n;
    }
    return len;
}
