/* A store in memory with two sessions on it, as two nodes' gateways would have them: each with a
 * schema cache of its own. For tests. */
#ifndef SPAN_TESTS_LIB_SQL_FIXTURE_H
#define SPAN_TESTS_LIB_SQL_FIXTURE_H

#include "sql/session.h"
#include "tests/lib/kv_mem.h"
#include "tests/lib/sql_client.h"

struct sql_fixture {
    struct kv_mem_store *store;
    struct schema_cache *cache[2];
    struct sql_session *session[2];
    struct sql_client c[2];
    uint64_t mono_ns; /* the sessions' clock when not 0 */
};

void sql_fixture_open(struct sql_fixture *f);
void sql_fixture_close(struct sql_fixture *f);

#endif
