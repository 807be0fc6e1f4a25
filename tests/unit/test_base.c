#include "base/buf.h"
#include "base/rng.h"
#include "tests/lib/test.h"

/* Known-answer vectors of the Random123 distribution (kat_vectors, philox4x32 10). */
DS_TEST(philox_known_answers)
{
    ds_rng4 r = ds_philox(0, 0, 0, 0, 0);
    CHECK(r.v[0] == 0x6627e8d5u && r.v[1] == 0xe169c58du && r.v[2] == 0xbc57ac4cu && r.v[3] == 0x9b00dbd8u);
    r = ds_philox(~0ull, ~0u, ~0u, ~0u, ~0u);
    CHECK(r.v[0] == 0x408f276du && r.v[1] == 0x41c83b0eu && r.v[2] == 0xa20bc7c6u && r.v[3] == 0x6d5451fdu);
}

DS_TEST(unit_is_open_interval)
{
    CHECK(ds_rng_unit(0) > 0.0f);
    CHECK(ds_rng_unit(~0u) < 1.0f);
    CHECK(isfinite(ds_rng_gumbel(0)) && isfinite(ds_rng_gumbel(~0u)));
}

DS_TEST(buf_keeps_content_at_its_limit)
{
    ds_buf b = {.max = 8};
    CHECK_EQ(ds_buf_puts(&b, "12345678"), DS_OK);
    CHECK_EQ(ds_buf_puts(&b, "9"), DS_ELIMIT);
    CHECK_STR(b.data, "12345678");
    ds_buf_consume(&b, 3);
    CHECK_STR(b.data, "45678");
    ds_buf_free(&b);
}
