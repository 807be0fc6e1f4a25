/* route.c - see route.h. */
#include "daemon/route.h"

int ds_route_pick(const ds_route_view *v, int n, int last)
{
    int best = -1;
    for (int k = 1; k <= n; k++) {
        int i = (last + k) % n;
        if (!v[i].ready || !v[i].credits)
            continue;
        if (best < 0 || !v[i].avoid != !v[best].avoid ? best < 0 || !v[i].avoid
                                                      : v[i].outstanding_tokens < v[best].outstanding_tokens)
            best = i;
    }
    return best;
}
