#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static void fill(ds_err *err, ds_code code, const char *field, const char *fmt, va_list ap)
{
    err->code = code;
    snprintf(err->field, sizeof err->field, "%s", field);
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
}

ds_code ds_err_set(ds_err *err, ds_code code, const char *fmt, ...)
{
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        fill(err, code, "", fmt, ap);
        va_end(ap);
    }
    return code;
}

ds_code ds_err_field(ds_err *err, ds_code code, const char *field, const char *fmt, ...)
{
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        fill(err, code, field, fmt, ap);
        va_end(ap);
    }
    return code;
}

ds_class ds_err_class(ds_code code)
{
    switch ((int)code / 10) {
    case 0:
        return code == DS_OK ? DS_CLASS_NONE : DS_CLASS_CALLER;
    case 1:
        return DS_CLASS_LIMIT;
    case 2:
        return DS_CLASS_IO;
    case 3:
        return DS_CLASS_DEVICE;
    case 4:
        return DS_CLASS_LOST;
    default:
        return DS_CLASS_BUG;
    }
}

const char *ds_err_name(ds_code code)
{
    switch (code) {
    case DS_OK:
        return "ok";
    case DS_EINVAL:
        return "invalid";
    case DS_ENOTFOUND:
        return "not_found";
    case DS_EUNSUPPORTED:
        return "unsupported";
    case DS_ELIMIT:
        return "limit";
    case DS_ENOMEM:
        return "no_memory";
    case DS_ETIMEOUT:
        return "timeout";
    case DS_ECANCELLED:
        return "cancelled";
    case DS_EDRAINING:
        return "draining";
    case DS_EIO:
        return "io";
    case DS_EPROTO:
        return "protocol";
    case DS_ECORRUPT:
        return "corrupt";
    case DS_EDEVICE:
        return "device";
    case DS_ENUMERIC:
        return "numeric";
    case DS_ELOST:
        return "lost";
    case DS_EBUG:
        return "bug";
    }
    return "unknown";
}

_Noreturn void ds_assert_fail(const char *cond, const char *file, int line)
{
    fprintf(stderr, "%s:%d: broken promise: %s\n", file, line, cond);
    abort();
}
