/* An event stream from anywhere: the events do not depend on how the bytes are split. */
#include "cli/sse.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int collect(void *ctx, char *data, size_t n)
{
    return ds_buf_append(ctx, data, n) || ds_buf_append(ctx, "", 1);
}

static void read_in(const uint8_t *data, size_t size, size_t step, ds_buf *out)
{
    ds_sse s;
    ds_sse_init(&s, collect, out);
    for (size_t i = 0; i < size; i += step)
        if (ds_sse_feed(&s, (const char *)data + i, size - i < step ? size - i : step))
            abort();
    ds_sse_fini(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ds_buf whole = {0}, parts = {0};
    read_in(data, size, size + 1, &whole);
    read_in(data, size, size % 7 + 1, &parts);
    if (whole.len != parts.len || (whole.len && memcmp(whole.data, parts.data, whole.len)))
        abort();
    ds_buf_free(&whole);
    ds_buf_free(&parts);
    return 0;
}
