/* marks.h - an answer at the terminal: text with the accepted drafts marked, and what they saved. Counts come
 * from the answer itself (`accepted_draft`, one flag a token). Plain data; one thread. */
#ifndef DS_CLI_MARKS_H
#define DS_CLI_MARKS_H

#include "base/buf.h"

#include <stdint.h>
#include <stdio.h>

typedef enum { DS_MARKS_OFF, DS_MARKS_COLOR, DS_MARKS_BRACKETS } ds_marks_style;

typedef struct ds_marks {
    ds_marks_style style;
    int in_draft, in_thought;   /* what the text written last was */
    int64_t tokens, accepted;   /* of the answer so far */
    int last_accepted;          /* the newest token was a draft: the answer ends inside a block */
    uint64_t start_ns, last_ns; /* when the request left; newest event with tokens */
} ds_marks;

/* ds_marks_init: choice "auto" (color at a terminal, brackets where that has no colours, off elsewhere),
 * "color", "brackets" or "off". */
void ds_marks_init(ds_marks *m, const char *choice, int is_tty, int colors, uint64_t start_ns);
/* ds_marks_event: n tokens came at now_ns; flag(ctx, i) is 1 for an accepted draft. */
void ds_marks_event(ds_marks *m, uint64_t now_ns, int64_t n, int (*flag)(const void *ctx, int64_t i),
                    const void *ctx);
/* ds_marks_text: text of the event's tokens; thought: reasoning, shown dim in color and left out otherwise.
 */
void ds_marks_text(ds_marks *m, FILE *out, const char *text, int drafted, int thought);
void ds_marks_end(ds_marks *m, FILE *out); /* back to plain */
/* ds_marks_steps: steps the target made for the answer: one for each token that is its own. */
int64_t ds_marks_steps(const ds_marks *m);
double ds_marks_speed(const ds_marks *m); /* tokens a second, the prompt's time included; NAN without any */
/* ds_marks_summary: "64 tokens in 23 steps ...", one or two lines; the first explains the marks. */
ds_code ds_marks_summary(const ds_marks *m, ds_buf *out);

#endif
