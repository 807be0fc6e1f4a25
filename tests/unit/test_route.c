/* The choice of a worker. */
#include "daemon/route.h"
#include "tests/lib/test.h"

DS_TEST(fewest_outstanding_tokens)
{
    ds_route_view v[3] = {{1, 5, 300, 0}, {1, 5, 100, 0}, {1, 5, 200, 0}};
    CHECK_EQ(ds_route_pick(v, 3, 0), 1);
    v[1].credits = 0;
    CHECK_EQ(ds_route_pick(v, 3, 0), 2);
    v[2].ready = 0;
    CHECK_EQ(ds_route_pick(v, 3, 0), 0);
    v[0].credits = 0;
    CHECK_EQ(ds_route_pick(v, 3, 0), -1);
    CHECK_EQ(ds_route_pick(v, 0, 0), -1);
}

DS_TEST(equal_workers_take_turns)
{
    ds_route_view v[3] = {{1, 5, 0, 0}, {1, 5, 0, 0}, {1, 5, 0, 0}};
    int last = 2;
    for (int i = 0; i < 6; i++) {
        last = ds_route_pick(v, 3, last);
        CHECK_EQ(last, i % 3);
    }
}

DS_TEST(a_worker_to_avoid_is_the_last_resort)
{
    ds_route_view v[3] = {{1, 5, 0, 1}, {1, 5, 900, 0}, {1, 5, 500, 0}};
    CHECK_EQ(ds_route_pick(v, 3, 2), 2);
    v[1].ready = v[2].ready = 0;
    CHECK_EQ(ds_route_pick(v, 3, 2), 0);
    v[1] = (ds_route_view){1, 5, 10, 1};
    CHECK_EQ(ds_route_pick(v, 3, 2), 0);
    v[0].outstanding_tokens = 20;
    CHECK_EQ(ds_route_pick(v, 3, 2), 1);
}
