#include "cli/prom.h"

#include <stdlib.h>
#include <string.h>

static char *skip_blanks(char *p)
{
    while (*p == ' ' || *p == '\t')
        p++;
    return p;
}

/* End of a label set that starts behind '{': the '}' outside quotes; NULL when it is open. */
static char *labels_end(char *p)
{
    int quoted = 0;
    for (; *p; p++) {
        if (quoted && *p == '\\' && p[1])
            p++;
        else if (*p == '"')
            quoted = !quoted;
        else if (*p == '}' && !quoted)
            return p;
    }
    return NULL;
}

/* "name{labels} value [timestamp]" */
static int parse_line(char *line, ds_prom_sample *ret)
{
    static char none[] = "";
    char *name = line, *p = line + strcspn(line, "{ \t"), *labels = none;
    if (p == name)
        return 0;
    if (*p == '{') {
        *p = 0;
        labels = p + 1;
        p = labels_end(labels);
        if (!p)
            return 0;
        *p++ = 0;
    } else if (*p) {
        *p++ = 0;
    }
    p = skip_blanks(p);
    char *end;
    double v = strtod(p, &end);
    if (end == p || (*end && *end != ' ' && *end != '\t'))
        return 0;
    *ret = (ds_prom_sample){name, labels, v};
    return 1;
}

ds_code ds_prom_parse(const char *page, size_t len, ds_prom *ret, ds_err *err)
{
    *ret = (ds_prom){0};
    ret->text = malloc(len + 1);
    if (!ret->text)
        return ds_err_set(err, DS_ENOMEM, "no memory for a metrics page of %zu bytes", len);
    memcpy(ret->text, page, len);
    ret->text[len] = 0;
    ds_code code = DS_OK;
    int cap = 0, line_no = 1;
    for (char *line = ret->text, *next; line && !code; line = next, line_no++) {
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        line = skip_blanks(line);
        if (!*line || *line == '#' || *line == '\r')
            continue;
        if (ret->n == cap && cap < DS_PROM_MAX_SAMPLES) {
            cap = cap ? 2 * cap : 256;
            ds_prom_sample *more = realloc(ret->sample, (size_t)cap * sizeof *more);
            if (!more) {
                code = ds_err_set(err, DS_ENOMEM, "no memory for %d metric samples", cap);
                break;
            }
            ret->sample = more;
        }
        if (ret->n >= DS_PROM_MAX_SAMPLES)
            code =
                ds_err_set(err, DS_ELIMIT, "the metrics page has more than %d samples", DS_PROM_MAX_SAMPLES);
        else if (!parse_line(line, &ret->sample[ret->n]))
            code = ds_err_set(err, DS_EPROTO, "metrics page, line %d: not a sample", line_no);
        else
            ret->n++;
    }
    if (code)
        ds_prom_free(ret);
    return code;
}

void ds_prom_free(ds_prom *p)
{
    free(p->sample);
    free(p->text);
    *p = (ds_prom){0};
}

void ds_prom_label(const ds_prom_sample *s, const char *key, char out[DS_PROM_MAX_LABEL])
{
    size_t n = strlen(key), used = 0;
    const char *p = s->labels;
    out[0] = 0;
    while (*p) {
        int found = strncmp(p, key, n) == 0 && p[n] == '=';
        p += strcspn(p, "\"");
        if (*p)
            p++;
        for (; *p && *p != '"'; p++) {
            char c = *p;
            if (c == '\\' && p[1]) {
                p++;
                c = *p == 'n' ? '\n' : *p;
            }
            if (found && used + 1 < DS_PROM_MAX_LABEL)
                out[used++] = c;
        }
        if (found) {
            out[used] = 0;
            return;
        }
        p += *p == '"';
        p += strspn(p, ", ");
    }
}

double ds_prom_sum(const ds_prom *p, const char *name, double missing)
{
    double sum = 0;
    int n = 0;
    for (int i = 0; i < p->n; i++)
        if (strcmp(p->sample[i].name, name) == 0) {
            sum += p->sample[i].value;
            n++;
        }
    return n ? sum : missing;
}
