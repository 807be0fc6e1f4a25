/* detok.c - tokens of one stream back to text. Bytes go through a UTF-8 gate (what is incomplete waits, what
 * is invalid becomes U+FFFD, one for each maximal subpart), then past the stop strings. Each stop string has
 * its own Knuth-Morris-Pratt state, so a byte costs O(stops) and the text held back is exactly the longest
 * suffix that may still become one. The stop string that is complete first ends the stream, of several
 * complete at the same byte the longest: neither depends on how the text was cut into tokens. One stream, one
 * thread. */
#include "base/buf.h"
#include "base/limits.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    char *text;
    uint16_t *fail; /* [len]: longest proper border of text[0..i] */
    uint16_t len, state;
} stop_string;

struct ds_detok {
    const ds_tokenizer *t;
    int skip_special, n_stop, stopped; /* stopped: index of the stop string, or -1 */
    stop_string stop[DS_MAX_STOP_STRINGS];
    ds_buf raw;  /* bytes not yet decoded: an incomplete sequence of at most 3 between calls */
    ds_buf text; /* [0, sent): given to the caller by the last call; then what is held back */
    size_t sent;
};

static ds_code stop_init(stop_string *s, const char *text, size_t len)
{
    s->text = malloc(len);
    s->fail = malloc(len * sizeof *s->fail);
    if (!s->text || !s->fail)
        return DS_ENOMEM;
    memcpy(s->text, text, len);
    s->len = (uint16_t)len;
    s->fail[0] = 0;
    for (uint16_t i = 1, k = 0; i < len; i++) {
        while (k && text[i] != text[k])
            k = s->fail[k - 1];
        k += text[i] == text[k];
        s->fail[i] = k;
    }
    return DS_OK;
}

/* Advances by one byte; 1 when the string is complete. */
static int stop_step(stop_string *s, char c)
{
    uint16_t k = s->state;
    while (k && c != s->text[k])
        k = s->fail[k - 1];
    k += c == s->text[k];
    s->state = k;
    return k == s->len;
}

ds_code ds_detok_open(const ds_tokenizer *t, int skip_special, const char *const *stop, int n_stop,
                      ds_detok **ret, ds_err *err)
{
    *ret = NULL;
    if (n_stop < 0 || n_stop > DS_MAX_STOP_STRINGS)
        return ds_err_field(err, DS_EINVAL, "stop", "stop has %d strings; the limit is %d", n_stop,
                            DS_MAX_STOP_STRINGS);
    ds_detok *d = calloc(1, sizeof *d);
    if (!d)
        return ds_err_set(err, DS_ENOMEM, "no memory for a detokeniser");
    d->t = t;
    d->skip_special = skip_special;
    d->stopped = -1;
    for (int i = 0; i < n_stop; i++) {
        size_t len = strlen(stop[i]);
        ds_code code =
            len && len <= DS_MAX_STOP_BYTES && ds_utf8_prefix(stop[i], len) == len ? DS_OK : DS_EINVAL;
        if (code != DS_OK)
            ds_err_field(err, code, "stop", "stop[%d] must be 1 to %d bytes of UTF-8", i, DS_MAX_STOP_BYTES);
        else if ((code = stop_init(&d->stop[d->n_stop++], stop[i], len)) != DS_OK)
            ds_err_set(err, code, "no memory for stop[%d]", i);
        if (code != DS_OK) {
            ds_detok_close(d);
            return code;
        }
    }
    *ret = d;
    return DS_OK;
}

void ds_detok_close(ds_detok *d)
{
    if (!d)
        return;
    for (int i = 0; i < d->n_stop; i++) {
        free(d->stop[i].text);
        free(d->stop[i].fail);
    }
    ds_buf_free(&d->raw);
    ds_buf_free(&d->text);
    free(d);
}

/* Appends valid text up to the first complete stop string, which is cut off; *ret_held is how much of the end
 * must wait. */
static ds_code append_text(ds_detok *d, const char *s, size_t len)
{
    if (!d->n_stop)
        return ds_buf_append(&d->text, s, len);
    for (size_t i = 0; i < len; i++) {
        int hit = -1;
        for (int k = 0; k < d->n_stop; k++)
            if (stop_step(&d->stop[k], s[i]) && (hit < 0 || d->stop[k].len > d->stop[hit].len))
                hit = k;
        if (hit < 0)
            continue;
        DS_TRY(ds_buf_append(&d->text, s, i + 1));
        d->stopped = hit;
        d->text.len -= d->stop[hit].len;
        return DS_OK;
    }
    return ds_buf_append(&d->text, s, len);
}

/* Decodes raw into text; an incomplete end stays, unless this is the end of the stream. */
static ds_code decode_raw(ds_detok *d, int at_end)
{
    size_t i = 0, valid = 0;
    ds_code code = DS_OK;
    while (i < d->raw.len && code == DS_OK && d->stopped < 0) {
        valid = i + ds_utf8_prefix(d->raw.data + i, d->raw.len - i);
        code = append_text(d, d->raw.data + i, valid - i);
        i = valid;
        if (code != DS_OK || d->stopped >= 0 || i == d->raw.len)
            break;
        uint32_t cp;
        int is_short, n = ds_utf8_next(d->raw.data + i, d->raw.data + d->raw.len, &cp, &is_short);
        if (is_short && !at_end)
            break;
        code = append_text(d, "\xEF\xBF\xBD", 3);
        i += (size_t)-n;
    }
    ds_buf_consume(&d->raw, d->stopped >= 0 ? d->raw.len : i);
    return code;
}

static size_t held(const ds_detok *d)
{
    size_t n = 0;
    for (int k = 0; k < d->n_stop && d->stopped < 0; k++)
        n = d->stop[k].state > n ? d->stop[k].state : n;
    return n;
}

static void give(ds_detok *d, size_t keep, const char **ret_text, size_t *ret_len)
{
    d->sent = d->text.len - keep;
    *ret_text = d->text.data ? d->text.data : "";
    *ret_len = d->sent;
}

ds_code ds_detok_push(ds_detok *d, int32_t id, const char **ret_text, size_t *ret_len, int *ret_stop)
{
    ds_buf_consume(&d->text, d->sent);
    d->sent = 0;
    *ret_text = "";
    *ret_len = 0;
    *ret_stop = d->stopped;
    if (d->stopped >= 0 || (d->skip_special && ds_tokenizer_is_special(d->t, id)))
        return DS_OK;
    size_t len;
    const char *bytes = ds_tokenizer_token(d->t, id, &len);
    DS_TRY(ds_buf_append(&d->raw, bytes, len));
    DS_TRY(decode_raw(d, 0));
    give(d, held(d), ret_text, ret_len);
    *ret_stop = d->stopped;
    return DS_OK;
}

ds_code ds_detok_flush(ds_detok *d, const char **ret_text, size_t *ret_len)
{
    ds_buf_consume(&d->text, d->sent);
    d->sent = 0;
    *ret_text = "";
    *ret_len = 0;
    DS_TRY(decode_raw(d, 1));
    give(d, 0, ret_text, ret_len);
    return DS_OK;
}
