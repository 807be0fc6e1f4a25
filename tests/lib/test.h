/* test.h - the smallest harness that names its cases. DS_TEST(name) { ... } registers a case; a program runs
 * all of them, or those whose names are given as arguments. CHECK* report and go on to the next case. */
#ifndef DS_TESTS_LIB_TEST_H
#define DS_TESTS_LIB_TEST_H

#include "base/err.h"

#include <stddef.h>

typedef struct ds_test {
    const char *name;
    void (*fn)(void);
    struct ds_test *next;
} ds_test;

void ds_test_register(ds_test *t);
_Noreturn void ds_test_fail(const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
_Noreturn void ds_test_skip(const char *why); /* counted; a program whose cases all skip exits with 77 */

#define DS_TEST(id)                                              \
    static void test_##id(void);                                 \
    __attribute__((constructor)) static void register_##id(void) \
    {                                                            \
        static ds_test t = {#id, test_##id, 0};                  \
        ds_test_register(&t);                                    \
    }                                                            \
    static void test_##id(void)

#define CHECK(cond)                                        \
    do {                                                   \
        if (!(cond))                                       \
            ds_test_fail(__FILE__, __LINE__, "%s", #cond); \
    } while (0)
#define CHECK_MSG(cond, ...)                               \
    do {                                                   \
        if (!(cond))                                       \
            ds_test_fail(__FILE__, __LINE__, __VA_ARGS__); \
    } while (0)
#define CHECK_EQ(a, b)                                                                           \
    do {                                                                                         \
        long long ds_a_ = (long long)(a), ds_b_ = (long long)(b);                                \
        if (ds_a_ != ds_b_)                                                                      \
            ds_test_fail(__FILE__, __LINE__, "%s = %lld, want %s = %lld", #a, ds_a_, #b, ds_b_); \
    } while (0)
#define CHECK_STR(a, b) ds_test_str(__FILE__, __LINE__, #a, (a), (b))
#define CHECK_OK(expr, err) /* err: the ds_err the call fills */                                  \
    do {                                                                                          \
        ds_code ds_c_ = (expr);                                                                   \
        if (ds_c_ != DS_OK)                                                                       \
            ds_test_fail(__FILE__, __LINE__, "%s: %s: %s", #expr, ds_err_name(ds_c_), (err).msg); \
    } while (0)

void ds_test_str(const char *file, int line, const char *what, const char *got, const char *want);

#endif
