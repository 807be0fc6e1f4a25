/* prom.h - reader of the Prometheus text format, as far as dsparkctl needs it: samples by name and label. */
#ifndef DS_CLI_PROM_H
#define DS_CLI_PROM_H

#include "base/buf.h"

enum { DS_PROM_MAX_SAMPLES = 20000, DS_PROM_MAX_LABEL = 128 };

typedef struct ds_prom_sample {
    const char *name, *labels; /* labels as written between the braces, "" without */
    double value;
} ds_prom_sample;

typedef struct ds_prom {
    ds_prom_sample *sample; /* [n], pointing into text */
    int n;
    char *text;
} ds_prom;

/* ds_prom_parse: a copy of the page is kept. DS_EPROTO names the line; DS_ELIMIT beyond DS_PROM_MAX_SAMPLES.
 */
ds_code ds_prom_parse(const char *page, size_t len, ds_prom *ret, ds_err *err);
void ds_prom_free(ds_prom *p);
/* ds_prom_label: the value of one label, unescaped and cut at DS_PROM_MAX_LABEL; "" when absent. */
void ds_prom_label(const ds_prom_sample *s, const char *key, char out[DS_PROM_MAX_LABEL]);
/* ds_prom_sum: over all series of a name; `missing` when there is none. */
double ds_prom_sum(const ds_prom *p, const char *name, double missing);

#endif
