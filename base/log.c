#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static ds_log_level g_level = DS_LOG_INFO;
static int g_json;

void ds_log_init(ds_log_level level, int json)
{
    g_level = level;
    g_json = json;
}

/* Control bytes and quotes would let a peer forge log lines. */
static void escape(char *dst, size_t cap, const char *src)
{
    size_t n = 0;
    for (; *src && n + 7 < cap; src++) {
        unsigned char c = (unsigned char)*src;
        if (c < 0x20 || c == 0x7f)
            n += (size_t)snprintf(dst + n, cap - n, "\\u%04x", c);
        else if (g_json && (c == '"' || c == '\\'))
            dst[n++] = '\\', dst[n++] = (char)c;
        else
            dst[n++] = (char)c;
    }
    dst[n] = 0;
}

void ds_log(ds_log_level level, const char *module, const char *fmt, ...)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    if (level > g_level)
        return;
    char text[1024], safe[1400], line[1600], stamp[40];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    escape(safe, sizeof safe, text);
    struct timespec ts;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    size_t k = strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(stamp + k, sizeof stamp - k, ".%03ldZ", ts.tv_nsec / 1000000);
    int n = g_json ? snprintf(line, sizeof line,
                              "{\"ts\":\"%s\",\"level\":\"%s\",\"module\":\"%s\",\"msg\":\"%s\"}\n", stamp,
                              names[level], module, safe)
                   : snprintf(line, sizeof line, "%s %-5s %s: %s\n", stamp, names[level], module, safe);
    if (n > (int)sizeof line - 1)
        n = (int)sizeof line - 1;
    ssize_t ignored = write(STDERR_FILENO, line, (size_t)n);
    (void)ignored;
}
