/* isa.c - which instruction-set levels this CPU and system offer, best first. */
#include "kernels/cpu/cpu.h"

#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

typedef struct level {
    const ds_isa *isa;
    int (*offered)(void);
    int (*best)(void); /* whether it is faster than those below it */
} level;

static int always(void)
{
    return 1;
}

#if defined(__x86_64__)
/* __builtin_cpu_supports also checks that the system saves the wide registers (XGETBV). clang 14 has no name
 * for F16C: CPUID leaf 1, ECX bit 29. */
static int has_avx2(void)
{
    unsigned a, b, c, d;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
static int has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
static int has_avx512bf16(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
}
#endif

#if defined(__x86_64__)
/* VDPBF16PS: one a cycle on Zen 4; on Intel's Emerald Rapids every third, so that FMAs on f32 have 2.7 times
 * its rate (docs/performance.md) and also keep activations in f32. */
static int fast_avx512bf16(void)
{
    return has_avx512bf16() && !__builtin_cpu_is("intel");
}
#endif

static const level levels[] = {
#if defined(__x86_64__)
    {&ds_isa_avx512bf16, has_avx512bf16, fast_avx512bf16},
    {&ds_isa_avx512, has_avx512, has_avx512},
    {&ds_isa_avx2, has_avx2, has_avx2},
#endif
    {&ds_isa_portable, always, always},
};

ds_code ds_isa_find(const char *name, const ds_isa **ret, ds_err *err)
{
    int any = !name || !*name;
    for (size_t i = 0; i < sizeof levels / sizeof levels[0]; i++) {
        if (!any && strcmp(name, levels[i].isa->name) != 0)
            continue;
        if (any ? levels[i].best() : levels[i].offered()) {
            *ret = levels[i].isa;
            return DS_OK;
        }
        if (!any)
            return ds_err_field(err, DS_EUNSUPPORTED, "isa", "this CPU does not offer isa \"%s\"", name);
    }
    return ds_err_field(err, DS_EINVAL, "isa",
                        "isa \"%s\" is unknown: avx512bf16, avx512, avx2 or portable, and empty for the best",
                        name ? name : "");
}
