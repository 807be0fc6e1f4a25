/* ctl_top.c - dsparkctl top: one screen, drawn anew each interval into a buffer and written at once.
 * The terminal is put back on every way out: signals only set `stop`. */
#include "base/clock.h"
#include "cli/ctl.h"
#include "cli/ctl_rpc.h"

#include <langinfo.h>
#include <locale.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { HISTORY = 512, MIN_WIDTH = 60, LABEL = 9, FIGURES = 22 };

typedef struct top {
    double output[HISTORY], prompt[HISTORY]; /* rings of rates */
    int n, at;
    double most_running, most_waiting; /* scale of the bars: the most seen */
    int unicode, width;
    ds_view before, now;
} top;

static const char *const SPARKS[2][8] = {
    {".", ":", "-", "=", "+", "*", "#", "@"},
    {"\u2581", "\u2582", "\u2583", "\u2584", "\u2585", "\u2586", "\u2587", "\u2588"}};

static ds_code put_bar(const top *t, const char *label, double share, const char *figures, int colour,
                       ds_buf *out)
{
    int room = t->width - LABEL - FIGURES - 3, full = (int)lround(fmin(fmax(share, 0), 1) * room);
    DS_TRY(ds_buf_printf(out, "%-*s %-*s \033[%dm", LABEL, label, FIGURES, figures, colour));
    for (int i = 0; i < full; i++)
        DS_TRY(ds_buf_puts(out, t->unicode ? "\u2588" : "#"));
    DS_TRY(ds_buf_puts(out, "\033[2m"));
    for (int i = full; i < room; i++)
        DS_TRY(ds_buf_puts(out, t->unicode ? "\u2591" : "."));
    return ds_buf_puts(out, "\033[0m\033[K\r\n");
}

static ds_code put_sparks(const top *t, const char *label, const double *ring, ds_buf *out)
{
    int room = t->width - LABEL - FIGURES - 3, shown = t->n < room ? t->n : room;
    double most = 0, last = t->n ? ring[(t->at + HISTORY - 1) % HISTORY] : NAN;
    char now[16], peak[16], figures[48];
    for (int i = 0; i < shown; i++)
        most = fmax(most, ring[(t->at + HISTORY - shown + i) % HISTORY]);
    ds_view_count(last, now, sizeof now);
    ds_view_count(most, peak, sizeof peak);
    snprintf(figures, sizeof figures, "%s tok/s (max %s)", now, peak);
    DS_TRY(ds_buf_printf(out, "%-*s %-*s \033[36m", LABEL, label, FIGURES, figures));
    for (int i = 0; i < shown; i++) {
        double v = ring[(t->at + HISTORY - shown + i) % HISTORY];
        int level = most > 0 ? (int)lround(7 * v / most) : 0;
        DS_TRY(ds_buf_puts(out, v > 0 ? SPARKS[t->unicode][level] : " "));
    }
    return ds_buf_puts(out, "\033[0m\033[K\r\n");
}

/* The table of `status`, with the terminal's line ends and cut at its width. */
static ds_code put_table(const top *t, ds_buf *out)
{
    ds_buf table = {0};
    ds_code code = ds_view_table(&t->now, &table);
    for (const char *line = table.data; !code && line && *line; line += strcspn(line, "\n") + 1) {
        int n = (int)strcspn(line, "\n"), head = line == table.data;
        code = ds_buf_printf(out, "%s%.*s\033[0m\033[K\r\n", head ? "\033[7m" : "",
                             n < t->width ? n : t->width, line);
    }
    ds_buf_free(&table);
    return code;
}

static ds_code draw(top *t, const ds_ctl *c, const char *trouble, ds_buf *out)
{
    char figures[64], clock[16];
    time_t wall = time(NULL);
    struct tm local;
    strftime(clock, sizeof clock, "%H:%M:%S", localtime_r(&wall, &local));
    const ds_view_worker *w = &t->now.total;
    ds_buf_clear(out);
    DS_TRY(ds_buf_printf(out, "\033[H\033[1mdspark top\033[0m  %.60s  %s  q quits\033[K\r\n\033[K\r\n",
                         c->rpc ? c->conf->rpc : c->conf->url, clock));
    DS_TRY(put_sparks(t, "output", t->output, out));
    DS_TRY(put_sparks(t, "prompt", t->prompt, out));
    t->most_running = fmax(t->most_running, w->running);
    t->most_waiting = fmax(t->most_waiting, w->waiting);
    snprintf(figures, sizeof figures, "%.0f (max %.0f)", w->running, t->most_running);
    DS_TRY(put_bar(t, "running", w->running / fmax(t->most_running, 1), figures, 32, out));
    snprintf(figures, sizeof figures, "%.0f (max %.0f)", w->waiting, t->most_waiting);
    DS_TRY(put_bar(t, "waiting", w->waiting / fmax(t->most_waiting, 1), figures, 33, out));
    double kv = w->kv_total > 0 ? w->kv_used / w->kv_total : 0;
    snprintf(figures, sizeof figures, "%.0f%%", 100 * kv);
    DS_TRY(put_bar(t, "KV", kv, figures, kv > 0.9 ? 31 : 34, out));
    double busy = isfinite(w->busy_share) ? w->busy_share / fmax(t->now.n_workers, 1) : 0;
    snprintf(figures, sizeof figures, "%.0f%%", 100 * busy);
    DS_TRY(put_bar(t, "busy", busy, figures, 35, out));
    if (isfinite(w->accepted_length)) {
        snprintf(figures, sizeof figures, "%.2f tok/step, %.0f%%", w->accepted_length, 100 * w->acceptance);
        DS_TRY(put_bar(t, "drafts", w->acceptance, figures, 36, out));
    }
    DS_TRY(ds_buf_puts(out, "\033[K\r\n"));
    DS_TRY(put_table(t, out));
    if (trouble)
        DS_TRY(ds_buf_printf(out, "\033[K\r\n\033[31m%.*s\033[0m\033[K\r\n", t->width, trouble));
    return ds_buf_puts(out, "\033[J");
}

static void remember(top *t)
{
    t->output[t->at] = isfinite(t->now.total.output_rate) ? t->now.total.output_rate : 0;
    t->prompt[t->at] = isfinite(t->now.total.prompt_rate) ? t->now.total.prompt_rate : 0;
    t->at = (t->at + 1) % HISTORY;
    t->n += t->n < HISTORY;
}

/* Waits one interval; 1: a key or signal asked to quit. */
static int wait_for_quit(const ds_ctl *c)
{
    uint64_t end = ds_now_ns() + (uint64_t)c->conf->interval_ms * 1000000;
    for (uint64_t now; !*c->stop && (now = ds_now_ns()) < end;) {
        struct pollfd in = {.fd = STDIN_FILENO, .events = POLLIN};
        char key;
        if (poll(&in, 1, (int)((end - now) / 1000000) + 1) > 0 &&
            (read(STDIN_FILENO, &key, 1) <= 0 || key == 'q' || key == 'Q'))
            return 1;
    }
    return *c->stop;
}

static ds_code run(ds_ctl *c, top *t, ds_err *err)
{
    ds_buf out = {0};
    ds_code code = ds_ctl_look(c, &t->now, err), ok = code;
    while (!code) {
        struct winsize size = {0};
        ioctl(STDOUT_FILENO, TIOCGWINSZ, &size);
        t->width = size.ws_col > MIN_WIDTH ? size.ws_col : MIN_WIDTH;
        code = draw(t, c, ok ? err->msg : NULL, &out);
        if (code || fwrite(out.data, 1, out.len, stdout) != out.len || fflush(stdout) || wait_for_quit(c))
            break;
        t->before = t->now;
        ok = ds_ctl_look(c, &t->now, err); /* a daemon that went away is told on the screen and asked again */
        if (!ok) {
            ds_view_rates(&t->before, &t->now);
            remember(t);
        }
    }
    ds_buf_free(&out);
    return code;
}

ds_code ds_ctl_top(ds_ctl *c, int argc, char **argv, ds_err *err)
{
    static top t; /* large, and there is one command a process */
    struct termios saved, raw;
    if (c->conf->once || c->conf->json || !isatty(STDOUT_FILENO) || tcgetattr(STDIN_FILENO, &saved) != 0)
        return ds_ctl_status(c, argc, argv, err);
    if (argc > 0)
        return ds_err_set(err, DS_EINVAL, "unexpected word \"%.100s\"", argv[0]);
    setlocale(LC_CTYPE, "");
    t.unicode = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
    raw = saved;
    raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
    tcsetattr(STDIN_FILENO, TCSAFLUSH, &raw);
    fputs("\033[?1049h\033[?25l", stdout); /* alternate screen, no cursor */
    ds_code code = run(c, &t, err);
    fputs("\033[?25h\033[?1049l", stdout);
    fflush(stdout);
    tcsetattr(STDIN_FILENO, TCSAFLUSH, &saved);
    return code;
}
