/* CPU of the SQL layer per statement, over the store in memory: point SELECT, UPDATE and INSERT, as
 * text with literals (simple protocol), autocommit and inside a block. sql_bench [statements]. */
#include "base/limits.h"
#include "sql/session.h"
#include "tests/lib/kv_mem.h"
#include "tests/lib/sql_client.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static uint64_t cpu_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * SEC_NS + (uint64_t)ts.tv_nsec;
}

#pragma GCC diagnostic ignored "-Wformat-nonliteral"

static void run(struct sql_client *c, const char *name, const char *fmt, unsigned n, unsigned rows)
{
    char sql[256];
    uint64_t start = cpu_ns();
    for (unsigned i = 0; i < n; i++) {
        unsigned id = (i * 7919U) % rows + 1;
        (void)snprintf(sql, sizeof sql, fmt, id);
        if (!sql_client_query(c, sql)) {
            printf("%s: %s\n", name, c->message);
            exit(1);
        }
    }
    printf("%-46s %6.2f us\n", name, (double)(cpu_ns() - start) / n / 1000.0);
}

int main(int argc, char **argv)
{
    unsigned n = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 100000;
    struct kv_mem_store *store = kv_mem_store_new();
    struct schema_cache *cache = schema_cache_new();
    struct sql_session_options opt = {.user = "bench", .database = "bench", .seed = 1};
    struct span_error err = {0};
    struct sql_session *s = sql_session_new(kv_mem_new(store), cache, &opt, &err);
    struct sql_client c;
    sql_client_init(&c, sql_session_pg(s));
    sql_client_query(
        &c,
        "CREATE TABLE acct(id INT PRIMARY KEY, owner TEXT, bal BIGINT NOT NULL CHECK (bal >= 0))");
    sql_client_query(&c, "CREATE TABLE log(id INTEGER PRIMARY KEY, what TEXT, at INT)");
    char sql[128];
    for (unsigned i = 1; i <= 10000; i++) {
        snprintf(sql, sizeof sql, "INSERT INTO acct VALUES (%u, 'owner', 1000)", i);
        sql_client_query(&c, sql);
    }
    run(&c, "SELECT by key, autocommit", "SELECT bal FROM acct WHERE id = %u", n, 10000);
    run(&c, "UPDATE by key, autocommit", "UPDATE acct SET bal = bal + 1 WHERE id = %u", n, 10000);
    run(&c, "INSERT automatic id, autocommit", "INSERT INTO log(what, at) VALUES ('x', %u)", n,
        1000000);
    run(&c, "INSERT given key, autocommit", "INSERT INTO acct VALUES (20000 + %u, 'o', 1)",
        n < 50000 ? n : 50000, 1000000);
    sql_client_query(&c, "BEGIN");
    run(&c, "SELECT by key, in a block", "SELECT bal FROM acct WHERE id = %u",
        n < 20000 ? n : 20000, 10000);
    sql_client_query(&c, "ROLLBACK");
    sql_client_query(&c, "BEGIN");
    run(&c, "UPDATE by key, in a block", "UPDATE acct SET bal = bal + 1 WHERE id = %u",
        n < 20000 ? n : 20000, 10000);
    sql_client_query(&c, "ROLLBACK");
    sql_client_deinit(&c);
    sql_session_free(s);
    schema_cache_free(cache);
    kv_mem_store_free(store);
    return 0;
}
