/* err.h - error codes and error values.
 *
 * Every fallible function returns a ds_code (0 = DS_OK) and fills an optional ds_err with one sentence that
 * names the field and the limit. Codes are grouped in classes, and the class decides what the caller does
 * (docs/architecture.md, "Error classes"). An error is logged or returned, never both. */
#ifndef DS_BASE_ERR_H
#define DS_BASE_ERR_H

#include <stddef.h>

typedef enum {
    DS_OK = 0,
    /* caller: the request or the configuration is wrong; repeating it cannot help */
    DS_EINVAL = 1,       /* a field has a wrong type, value or size */
    DS_ENOTFOUND = 2,    /* no such model, file, key or request */
    DS_EUNSUPPORTED = 3, /* understood, but not offered here */
    /* limit: try again later or smaller */
    DS_ELIMIT = 10,     /* a queue, buffer or quota is full */
    DS_ENOMEM = 11,     /* memory or KV pages ran out */
    DS_ETIMEOUT = 12,   /* a deadline passed */
    DS_ECANCELLED = 13, /* asked to stop by the owner */
    DS_EDRAINING = 14,  /* the process is shutting down */
    /* io: a file, socket or peer failed */
    DS_EIO = 20,
    DS_EPROTO = 21,   /* a peer sent a frame that does not decode or validate */
    DS_ECORRUPT = 22, /* a checkpoint or tokenizer file contradicts itself */
    /* device: this step's sequences fail, the worker goes on */
    DS_EDEVICE = 30,
    DS_ENUMERIC = 31, /* a NaN or infinity where a number must be */
    /* lost: the worker reports and exits */
    DS_ELOST = 40,
    /* bug: a promise inside the program was broken */
    DS_EBUG = 50,
} ds_code;

typedef enum {
    DS_CLASS_NONE,
    DS_CLASS_CALLER,
    DS_CLASS_LIMIT,
    DS_CLASS_IO,
    DS_CLASS_DEVICE,
    DS_CLASS_LOST,
    DS_CLASS_BUG
} ds_class;

enum { DS_ERR_MSG_MAX = 512 };

typedef struct ds_err {
    ds_code code;
    char field[64];           /* name of the offending field, tensor or key; "" when there is none */
    char msg[DS_ERR_MSG_MAX]; /* one sentence, no trailing newline */
} ds_err;

/* ds_err_set: fill err (may be NULL) and return code, so that callers can `return ds_err_set(...)`. */
ds_code ds_err_set(ds_err *err, ds_code code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* ds_err_field: the same, naming the offending field. */
ds_code ds_err_field(ds_err *err, ds_code code, const char *field, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
ds_class ds_err_class(ds_code code);
const char *ds_err_name(ds_code code); /* "invalid", "limit", ...; never NULL */

/* DS_TRY: return the code of a failed call. */
#define DS_TRY(expr)                   \
    do {                               \
        ds_code ds_try_code_ = (expr); \
        if (ds_try_code_ != DS_OK)     \
            return ds_try_code_;       \
    } while (0)

/* DS_ASSERT: a broken promise inside the program; stays in release builds and aborts with place and text. */
#define DS_ASSERT(cond)                                \
    do {                                               \
        if (__builtin_expect(!(cond), 0))              \
            ds_assert_fail(#cond, __FILE__, __LINE__); \
    } while (0)
__attribute__((noreturn)) void ds_assert_fail(const char *cond, const char *file, int line);

#endif
