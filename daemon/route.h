/* route.h - which worker takes the next request. Pure: decided from a view, so that it is tested and
 * simulated without sockets. */
#ifndef DS_DAEMON_ROUTE_H
#define DS_DAEMON_ROUTE_H

#include <stdint.h>

typedef struct ds_route_view {
    int ready;                   /* said hello, heard from lately, not draining */
    uint32_t credits;            /* requests it may still be sent */
    uint64_t outstanding_tokens; /* prompt and possible output of what it holds */
    uint64_t avoid;              /* nonzero: this request's earlier attempt died here (soft) */
} ds_route_view;

/* ds_route_pick: the ready worker with credit and the fewest outstanding tokens; ties go to the one after
 * `last`, so that equal workers take turns. A worker to avoid is taken only when there is no other. -1: none.
 */
int ds_route_pick(const ds_route_view *v, int n, int last);

#endif
