/* Any bytes as config.json, and again as generation_config.json: no crash, and what passes can be tabled. */
#include "worker/model/config.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ds_config c;
    ds_err err;
    if (ds_config_parse((const char *)data, size, &c, &err) == DS_OK) {
        float *table = malloc(8 * (size_t)c.head_dim * sizeof *table);
        if (table)
            ds_rope_fill(&c.rope, c.head_dim, c.max_positions < 8 ? c.max_positions : 8, table,
                         table + 4 * c.head_dim);
        free(table);
    }
    c = (ds_config){.vocab = 1000};
    (void)ds_config_parse_generation((const char *)data, size, &c, &err);
    return 0;
}
