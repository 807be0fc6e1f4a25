/* fuzz_encode.c - any bytes as text: refused when not UTF-8, else the ids give the text back, through the
 * table and through the incremental detokeniser. The tokenizer has DeepSeek's rules, which change no text. */
#include "base/buf.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static ds_tokenizer *open_golden(void)
{
    static ds_tokenizer *t;
    ds_err err = {0};
    if (!t && ds_tokenizer_open(DS_SOURCE_DIR "/tests/golden/tokenizer/deepseek", &t, &err) != DS_OK) {
        fprintf(stderr, "%s\n", err.msg);
        abort();
    }
    return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const ds_tokenizer *t = open_golden();
    ds_ids ids = {0};
    ds_err err = {0};
    ds_detok *d;
    ds_buf back = {0};
    const char *p;
    size_t len;
    int stop, parse_special = size ? data[0] & 1 : 1,
              valid = ds_utf8_prefix((const char *)data, size) == size;
    ds_code code = ds_tokenizer_encode(t, (const char *)data, size, parse_special, 0, 0, &ids, &err);
    if (code != (valid ? DS_OK : DS_EINVAL) || (!valid && ids.n))
        abort();
    if (ds_detok_open(t, 0, NULL, 0, &d, &err) != DS_OK)
        abort();
    for (int i = 0; i < ids.n; i++)
        if (ds_detok_push(d, ids.v[i], &p, &len, &stop) != DS_OK || ds_buf_append(&back, p, len) != DS_OK)
            abort();
    if (ds_detok_flush(d, &p, &len) != DS_OK || ds_buf_append(&back, p, len) != DS_OK)
        abort();
    if (valid && (back.len != size || (size && memcmp(back.data, data, size) != 0)))
        abort();
    ds_detok_close(d);
    ds_buf_free(&back);
    ds_ids_free(&ids);
    return 0;
}
