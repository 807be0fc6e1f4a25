/* mem.h - zeroed, 64-byte aligned memory of the CPU back end, and what the machine has. Thread-safe. */
#ifndef DS_CPU_MEM_H
#define DS_CPU_MEM_H

#include <stddef.h>

void *ds_mem_alloc(size_t bytes); /* NULL when memory ran out; large blocks ask for huge pages */
void ds_mem_free(void *p);        /* NULL is fine */
/* ds_mem_machine: bytes of RAM, or of the cgroup's limit where that is less; and how much of it is free. */
void ds_mem_machine(size_t *ret_total, size_t *ret_free);

#endif
