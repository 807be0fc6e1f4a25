/* mem.c - memory straight from mmap above 1 MiB (zero pages, huge pages), else from the C library. A 64-byte
 * header before the block holds its mapped size (0: from the C library). */
#include "kernels/cpu/mem.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { HEADER = 64, MAP_FROM = 1 << 20, HUGE = 2 << 20 };

void *ds_mem_alloc(size_t bytes)
{
    if (bytes > SIZE_MAX / 2)
        return NULL;
    size_t total = (bytes + HEADER + 63) & ~(size_t)63, mapped = 0;
    char *p;
    if (total < MAP_FROM) {
        p = aligned_alloc(64, total);
        if (!p)
            return NULL;
        memset(p, 0, total);
    } else {
        mapped = (total + HUGE - 1) & ~((size_t)HUGE - 1);
        p = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            return NULL;
        madvise(p, mapped, MADV_HUGEPAGE);
    }
    memcpy(p, &mapped, sizeof mapped);
    return p + HEADER;
}

void ds_mem_free(void *p)
{
    if (!p)
        return;
    char *base = (char *)p - HEADER;
    size_t mapped;
    memcpy(&mapped, base, sizeof mapped);
    if (mapped)
        munmap(base, mapped);
    else
        free(base);
}

/* The number in a one-line file, or -1 ("max", or no such file). */
static long long file_number(const char *path)
{
    FILE *f = fopen(path, "re");
    long long v = -1;
    if (!f)
        return -1;
    if (fscanf(f, "%lld", &v) != 1)
        v = -1;
    fclose(f);
    return v;
}

static size_t available_bytes(size_t fallback)
{
    FILE *f = fopen("/proc/meminfo", "re");
    char line[128];
    unsigned long long kib;
    size_t bytes = fallback;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            bytes = (size_t)kib << 10;
    if (f)
        fclose(f);
    return bytes;
}

void ds_mem_machine(size_t *ret_total, size_t *ret_free)
{
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    size_t total = pages > 0 && page > 0 ? (size_t)pages * (size_t)page : 0;
    size_t avail = available_bytes(total);
    long long limit = file_number("/sys/fs/cgroup/memory.max");
    if (limit > 0 && (size_t)limit < total) {
        long long used = file_number("/sys/fs/cgroup/memory.current");
        size_t left = used >= 0 && used < limit ? (size_t)(limit - used) : 0;
        total = (size_t)limit;
        avail = left < avail ? left : avail;
    }
    *ret_total = total;
    *ret_free = avail;
}
