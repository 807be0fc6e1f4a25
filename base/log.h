/* log.h - one line per event on stderr: time, level, module, text.
 * Thread-safe (one write per line). The level is set once at start. Format is text or JSON (for collectors).
 */
#ifndef DS_BASE_LOG_H
#define DS_BASE_LOG_H

typedef enum { DS_LOG_ERROR, DS_LOG_WARN, DS_LOG_INFO, DS_LOG_DEBUG } ds_log_level;

void ds_log_init(ds_log_level level, int json);
void ds_log(ds_log_level level, const char *module, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
