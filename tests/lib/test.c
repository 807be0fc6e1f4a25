#include "tests/lib/test.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static ds_test *g_tests, **g_tail = &g_tests;
static jmp_buf g_out;

void ds_test_register(ds_test *t)
{
    *g_tail = t;
    g_tail = &t->next;
}

_Noreturn void ds_test_fail(const char *file, int line, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    printf("  %s:%d: ", file, line);
    vprintf(fmt, ap);
    printf("\n");
    va_end(ap);
    longjmp(g_out, 1);
}

_Noreturn void ds_test_skip(const char *why)
{
    printf("  skipped: %s\n", why);
    longjmp(g_out, 2);
}

void ds_test_str(const char *file, int line, const char *what, const char *got, const char *want)
{
    if (strcmp(got ? got : "(null)", want ? want : "(null)") != 0)
        ds_test_fail(file, line, "%s is \"%s\", want \"%s\"", what, got ? got : "(null)",
                     want ? want : "(null)");
}

static int wanted(const char *name, int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return 1;
    return argc < 2;
}

int main(int argc, char **argv)
{
    volatile int passed = 0, failed = 0, skipped = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (ds_test *volatile t = g_tests; t; t = t->next) {
        if (!wanted(t->name, argc, argv))
            continue;
        printf("%s\n", t->name);
        int how = setjmp(g_out);
        if (how == 0) {
            t->fn();
            passed++;
        } else if (how == 1) {
            failed++;
            printf("  FAILED %s\n", t->name);
        } else {
            skipped++;
        }
    }
    printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    if (failed || passed + skipped == 0)
        return 1;
    return passed == 0 ? 77 : 0;
}
