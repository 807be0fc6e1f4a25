/* fuzz_tokenizer.c - tokenizer.json from anywhere: it loads or is refused; what loads encodes and decodes. */
#include "text/tokenizer.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = "it's <|im_start|> ab 12\n\n  \xC3\xA9 e\xCC\x81 \xE4\xBD\xA0\xE5\xA5\xBD!";
    ds_tokenizer *t;
    ds_err err = {0};
    ds_code code = ds_tokenizer_parse((const char *)data, size, &t, &err);
    if (code != DS_OK) {
        if (t || !err.msg[0] || err.code != code)
            abort();
        return 0;
    }
    ds_ids ids = {0};
    ds_detok *d;
    if (ds_tokenizer_encode(t, text, sizeof text - 1, 1, 1, 1000, &ids, &err) != DS_OK)
        ids.n = 0;
    if (ds_detok_open(t, 0, NULL, 0, &d, &err) != DS_OK)
        abort();
    for (int i = 0; i < ids.n; i++) {
        const char *p;
        size_t len;
        int stop;
        if (ids.v[i] < 0 || ids.v[i] >= ds_tokenizer_size(t) ||
            ds_detok_push(d, ids.v[i], &p, &len, &stop) != DS_OK)
            abort();
    }
    ds_detok_close(d);
    ds_ids_free(&ids);
    ds_tokenizer_close(t);
    return 0;
}
