/* Two sessions on one store; see sql_fixture.h. */
#include "tests/lib/sql_fixture.h"

#include "base/invariant.h"
#include "base/limits.h"

#include <time.h>

static uint64_t fixture_mono(void *ctx)
{
    const struct sql_fixture *f = ctx;
    if (f->mono_ns != 0) {
        return f->mono_ns;
    }
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * SEC_NS + (uint64_t)ts.tv_nsec;
}

void sql_fixture_open(struct sql_fixture *f)
{
    *f = (struct sql_fixture){0};
    f->store = kv_mem_store_new();
    for (int i = 0; i < 2; i++) {
        struct sql_session_options opt = {.user = "ann",
                                          .database = "bank",
                                          .backend_pid = 41 + (uint32_t)i,
                                          .seed = 1 + (uint64_t)i,
                                          .mono_ns = fixture_mono,
                                          .clock_ctx = f,
                                          .retry_ns = 200 * MS_NS};
        struct span_error err = {0};
        f->cache[i] = schema_cache_new();
        f->session[i] = sql_session_new(kv_mem_new(f->store), f->cache[i], &opt, &err);
        INVARIANT(f->session[i] != NULL);
        sql_client_init(&f->c[i], sql_session_pg(f->session[i]));
    }
}

void sql_fixture_close(struct sql_fixture *f)
{
    for (int i = 0; i < 2; i++) {
        sql_client_deinit(&f->c[i]);
        sql_session_free(f->session[i]);
        schema_cache_free(f->cache[i]);
    }
    kv_mem_store_free(f->store);
}
