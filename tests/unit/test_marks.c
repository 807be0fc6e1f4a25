/* Text with the accepted drafts marked, and the figures under it. */
#include "base/conf.h"
#include "cli/marks.h"
#include "tests/lib/test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int flag(const void *flags, int64_t i)
{
    return ((const char *)flags)[i] == '1';
}

/* Pieces "d:text" (draft), "t:text" (target) or "r:text" (reasoning), written in this style. */
static char *written(const char *choice, const char *const *piece, size_t n)
{
    char *out = NULL;
    size_t len;
    FILE *f = open_memstream(&out, &len);
    ds_marks m;
    ds_marks_init(&m, choice, 0, 0, 0);
    for (size_t i = 0; i < n; i++)
        ds_marks_text(&m, f, piece[i] + 2, piece[i][0] == 'd', piece[i][0] == 'r');
    ds_marks_end(&m, f);
    fclose(f);
    return out;
}

static void same(const char *choice, const char *want)
{
    static const char *const piece[] = {"r:hm", "t:a", "t:b", "d:c", "d:", "d:d", "t:e", "d:f"};
    char *got = written(choice, piece, 8);
    CHECK_STR(got, want);
    free(got);
}

DS_TEST(styles)
{
    same("off", "abcdef");
    same("auto", "abcdef"); /* no terminal */
    same("brackets", "ab\u2039cd\u203ae\u2039f\u203a");
    same("color", "\033[0m\033[2mhm\n\033[0mab\033[0m\033[4;32mcd\033[0me\033[0m\033[4;32mf\033[0m");
}

DS_TEST(a_terminal_without_colours_gets_brackets)
{
    ds_marks m;
    ds_marks_init(&m, "auto", 1, 1, 0);
    CHECK_EQ(m.style, DS_MARKS_COLOR);
    ds_marks_init(&m, "auto", 1, 0, 0);
    CHECK_EQ(m.style, DS_MARKS_BRACKETS);
    ds_marks_init(&m, "auto", 0, 1, 0);
    CHECK_EQ(m.style, DS_MARKS_OFF);
}

DS_TEST(colours_of_an_environment)
{
    char *const some[] = {"TERM=xterm", "NO_COLOR="}, *const off[] = {"NO_COLOR=1", "TERM=xterm"};
    char *const dumb[] = {"TERM=dumb", "X=TERM=xterm"};
    char *env[3] = {0};
    CHECK_EQ(ds_conf_has_colors(env), 0);
    memcpy(env, some, sizeof some); /* an empty NO_COLOR means nothing (no-color.org) */
    CHECK_EQ(ds_conf_has_colors(env), 1);
    memcpy(env, off, sizeof off);
    CHECK_EQ(ds_conf_has_colors(env), 0);
    memcpy(env, dumb, sizeof dumb);
    CHECK_EQ(ds_conf_has_colors(env), 0);
}

DS_TEST(figures)
{
    ds_marks m;
    ds_buf out = {0};
    ds_marks_init(&m, "brackets", 0, 0, 1000000000);
    CHECK(isnan(ds_marks_speed(&m)));
    ds_marks_event(&m, 1250000000, 1, flag, "0");
    CHECK(ds_marks_speed(&m) == 4);
    ds_marks_event(&m, 1500000000, 3, flag, "110");
    ds_marks_event(&m, 1500000000, 0, flag, "");
    ds_marks_event(&m, 2000000000, 4, flag, "1110");
    CHECK_EQ(ds_marks_steps(&m), 3);
    CHECK(ds_marks_speed(&m) == 8);
    ds_marks_summary(&m, &out);
    CHECK(strstr(
        out.data,
        "8 tokens in 3 steps of the target: 5 steps saved (62 %), 2.67 tokens a step; 8.0 tokens/s\n"));
    CHECK(strstr(out.data, "\u2039marked\u203a"));
    ds_marks_event(&m, 2000000000, 1, flag, "1"); /* cut inside a block: that step gave drafts alone */
    CHECK_EQ(ds_marks_steps(&m), 4);
    ds_buf_clear(&out);
    ds_marks_init(&m, "brackets", 0, 0, 500000000);
    ds_marks_event(&m, 1000000000, 1, flag, "0");
    ds_marks_summary(&m, &out);
    CHECK_STR(out.data, "1 token; 2.0 tokens/s\n");
    ds_buf_free(&out);
}
