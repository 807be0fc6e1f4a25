/* marks.c - see marks.h. */
#include "cli/marks.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#define OPEN "\xe2\x80\xb9"  /* U+2039 */
#define CLOSE "\xe2\x80\xba" /* U+203A */
#define GREEN "\033[4;32m"
#define PLAIN "\033[0m"

void ds_marks_init(ds_marks *m, const char *choice, int is_tty, int colors, uint64_t start_ns)
{
    *m = (ds_marks){.style = DS_MARKS_OFF, .start_ns = start_ns};
    if (!strcmp(choice, "brackets"))
        m->style = DS_MARKS_BRACKETS;
    else if (!strcmp(choice, "color"))
        m->style = DS_MARKS_COLOR;
    else if (!strcmp(choice, "auto") && is_tty)
        m->style = colors ? DS_MARKS_COLOR : DS_MARKS_BRACKETS;
}

void ds_marks_event(ds_marks *m, uint64_t now_ns, int64_t n, int (*flag)(const void *ctx, int64_t i),
                    const void *ctx)
{
    if (n <= 0)
        return;
    for (int64_t i = 0; i < n; i++) {
        m->last_accepted = flag(ctx, i);
        m->accepted += m->last_accepted;
    }
    m->tokens += n;
    m->last_ns = now_ns;
}

static void enter(ds_marks *m, FILE *out, int drafted, int thought)
{
    if (m->style == DS_MARKS_COLOR) {
        fputs(PLAIN, out);
        if (thought)
            fputs("\033[2m", out);
        if (drafted)
            fputs(GREEN, out);
    } else if (drafted != m->in_draft) {
        fputs(drafted ? OPEN : CLOSE, out);
    }
    m->in_draft = drafted;
    m->in_thought = thought;
}

void ds_marks_text(ds_marks *m, FILE *out, const char *text, int drafted, int thought)
{
    if (!*text || (thought && m->style != DS_MARKS_COLOR))
        return;
    if (m->style != DS_MARKS_OFF && (drafted != m->in_draft || thought != m->in_thought)) {
        if (m->in_thought && !thought)
            fputs("\n", out);
        enter(m, out, drafted, thought);
    }
    fputs(text, out);
}

void ds_marks_end(ds_marks *m, FILE *out)
{
    if (m->in_draft || m->in_thought)
        enter(m, out, 0, 0);
}

int64_t ds_marks_steps(const ds_marks *m)
{
    return m->tokens - m->accepted + (m->last_accepted ? 1 : 0);
}

double ds_marks_speed(const ds_marks *m)
{
    return m->last_ns > m->start_ns ? (double)m->tokens / ((double)(m->last_ns - m->start_ns) * 1e-9)
                                    : (double)NAN;
}

ds_code ds_marks_summary(const ds_marks *m, ds_buf *out)
{
    int64_t steps = ds_marks_steps(m), saved = m->tokens - steps;
    double speed = ds_marks_speed(m);
    if (saved > 0 && m->style != DS_MARKS_OFF)
        DS_TRY(ds_buf_printf(
            out, "%s: drafted by the small model and accepted by the target; the rest: the target's own\n",
            m->style == DS_MARKS_COLOR ? GREEN "marked" PLAIN : OPEN "marked" CLOSE));
    DS_TRY(ds_buf_printf(out, "%" PRId64 " token%s", m->tokens, m->tokens == 1 ? "" : "s"));
    if (saved > 0)
        DS_TRY(ds_buf_printf(
            out, " in %" PRId64 " steps of the target: %" PRId64 " steps saved (%.0f %%), %.2f tokens a step",
            steps, saved, 100 * (double)saved / (double)m->tokens, (double)m->tokens / (double)steps));
    if (isfinite(speed))
        DS_TRY(ds_buf_printf(out, "; %.1f tokens/s", speed));
    return ds_buf_puts(out, "\n");
}
