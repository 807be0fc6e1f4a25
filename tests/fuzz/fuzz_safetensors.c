/* Any bytes as a safetensors file: no crash, and every accepted tensor lies inside the file. */
#include "base/limits.h"
#include "worker/model/safetensors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ds_st st = {0};
    ds_err err;
    uint64_t len;
    if (size < 8)
        return 0;
    memcpy(&len, data, 8);
    if (len > size - 8)
        len = size - 8;
    if (ds_st_parse(&st, 0, "fuzz", (const char *)data + 8, (size_t)len, 8 + len, size, &err) == DS_OK &&
        ds_st_sort(&st, &err) == DS_OK)
        for (int i = 0; i < st.n; i++) {
            const ds_st_tensor *t = &st.tensor[i];
            if (t->begin < 8 + len || t->begin + t->bytes > size || ds_st_find(&st, t->name) != t)
                abort();
        }
    ds_st_close(&st);
    return 0;
}
