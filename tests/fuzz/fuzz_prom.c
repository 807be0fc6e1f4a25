/* A metrics page from anywhere: refused with a line, or every sample's labels can be read. */
#include "cli/prom.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ds_prom page;
    ds_err err = {0};
    if (ds_prom_parse((const char *)data, size, &page, &err)) {
        if (!err.msg[0] || page.sample)
            abort();
        return 0;
    }
    for (int i = 0; i < page.n; i++) {
        char label[DS_PROM_MAX_LABEL];
        ds_prom_label(&page.sample[i], "worker", label);
        if (strlen(label) >= sizeof label)
            abort();
    }
    ds_prom_sum(&page, "a", 0);
    ds_prom_free(&page);
    return 0;
}
