/* Which index a query is planned on, and how much of the store it reads. */
#include "tests/lib/sql_fixture.h"

#include <criterion/criterion.h>

static struct sql_fixture f;

static void setup(void)
{
    sql_fixture_open(&f);
    static const char *const sql[] = {
        "CREATE TABLE t(a INT, b TEXT COLLATE NOCASE, c INT, d TEXT, PRIMARY KEY (a, b))",
        "CREATE INDEX tc ON t(c DESC, d)",
        "CREATE TABLE r(id INTEGER PRIMARY KEY, v INT UNIQUE)",
        "INSERT INTO t WITH RECURSIVE n(x) AS (SELECT 0 UNION ALL SELECT x + 1 FROM n WHERE x < "
        "199) "
        "SELECT x / 10, 'k' || (x % 10), x % 50, 'd' || x FROM n",
        "INSERT INTO r WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < "
        "100) SELECT x, x * 2 FROM n",
    };
    for (size_t i = 0; i < sizeof sql / sizeof sql[0]; i++) {
        cr_assert(sql_client_query(&f.c[0], sql[i]), "%s: %s", sql[i], f.c[0].message);
    }
}

static void teardown(void)
{
    sql_fixture_close(&f);
}

TestSuite(vtab, .init = setup, .fini = teardown, .timeout = 60);

static const char *ask(const char *sql)
{
    const char *text = sql_client_ask(&f.c[0], sql);
    cr_assert_str_eq(f.c[0].code, "", "%s: %s", sql, f.c[0].message);
    return text;
}

/* Reads of the store (gets, scans) for a query that gives rows. */
static void reads(const char *sql, const char *rows, uint64_t max)
{
    (void)ask(sql); /* descriptors and plans are loaded now */
    uint64_t before = kv_mem_reads(f.store);
    cr_assert_str_eq(ask(sql), rows, "%s\ngave %s", sql, ask(sql));
    cr_assert_leq((kv_mem_reads(f.store) - before) / 1, max, "%s took %llu reads", sql,
                  (unsigned long long)(kv_mem_reads(f.store) - before));
}

Test(vtab, keys_are_looked_up_not_scanned)
{
    reads("SELECT d FROM t WHERE a = 3 AND b = 'k4'", "d34", 1);
    reads("SELECT d FROM t WHERE b = 'K4' AND a = '3'", "d34", 1);
    reads("SELECT v FROM r WHERE id = 7", "14", 1);
    reads("SELECT v FROM r WHERE rowid IN (5, 3, 5, '3', NULL)", "6\n10", 2);
    reads("SELECT id FROM r WHERE v = 14", "7", 1);
    reads("SELECT count(*) FROM t WHERE a = 3", "10", 1);
    reads("SELECT d FROM t WHERE a = 3 AND b IN ('k1', 'K2')", "d31\nd32", 2);
    reads("SELECT v FROM r WHERE id = 5.5", "", 1);
    reads("SELECT v FROM r WHERE id = NULL", "", 0);
}

Test(vtab, joins_look_the_inner_side_up)
{
    reads("SELECT r.v, t.d FROM t JOIN r ON r.id = t.c WHERE t.a = 2 AND t.b >= 'k8'",
          "56|d28\n58|d29", 4);
}

Test(vtab, ranges_and_orders_come_from_the_index)
{
    cr_assert_str_eq(ask("SELECT id FROM r WHERE id > 3 AND id <= 6"), "4\n5\n6");
    cr_assert_str_eq(ask("SELECT id FROM r WHERE id BETWEEN 98 AND 1000 ORDER BY id DESC"),
                     "100\n99\n98");
    cr_assert_str_eq(ask("SELECT c, d FROM t WHERE c = 49 ORDER BY d DESC"),
                     "49|d99\n49|d49\n49|d199\n49|d149");
    cr_assert_str_eq(ask("SELECT d FROM t WHERE a = 1 ORDER BY b DESC LIMIT 2"), "d19\nd18");
    cr_assert_str_eq(ask("SELECT a, b FROM t WHERE (a, b) > (18, 'k8') LIMIT 2"), "18|k9\n19|k0");
    cr_assert_str_eq(ask("SELECT max(id), min(id) FROM r"), "100|1");
    cr_assert_str_eq(ask("SELECT d FROM t WHERE c < 1 ORDER BY c, d"), "d0\nd100\nd150\nd50");
    cr_assert_str_eq(ask("EXPLAIN SELECT id FROM r WHERE id > 3 ORDER BY id DESC"),
                     "SCAN r USING PRIMARY KEY (id>?) BACKWARDS");
}

Test(vtab, explain_names_index_and_bounds)
{
    cr_assert_str_eq(ask("EXPLAIN SELECT * FROM t WHERE c = 3 AND d > 'x' AND d <= 'y'"),
                     "SCAN t USING COVERING INDEX tc (c=? AND d>? AND d<=?)");
    cr_assert_str_eq(ask("EXPLAIN SELECT c FROM t ORDER BY c"),
                     "SCAN t USING COVERING INDEX tc BACKWARDS");
    cr_assert_str_eq(ask("EXPLAIN SELECT * FROM r"), "SCAN r");
    cr_assert_str_eq(ask("EXPLAIN UPDATE t SET d = 1 WHERE a IN (1, 2)"),
                     "SCAN t USING PRIMARY KEY (a IN (..))");
}

Test(vtab, a_rescanned_table_is_read_once_more_at_most)
{
    reads("SELECT (SELECT count(*) FROM r AS y WHERE y.v + 0 < x.v) AS n FROM r AS x ORDER BY n "
          "DESC LIMIT 1",
          "99", 3);
}

Test(vtab, collation_of_the_comparison_must_be_the_indexs)
{
    cr_assert_str_eq(ask("SELECT count(*) FROM t WHERE a = 3 AND b = 'K4' COLLATE BINARY"), "0");
    cr_assert_str_eq(ask("SELECT count(*) FROM t WHERE a = 3 AND b = 'K4'"), "1");
    cr_assert_str_eq(ask("SELECT count(*) FROM t WHERE a = 3 AND b > 'K4' COLLATE BINARY"), "10");
}

Test(vtab, rows_pass_whole_when_a_scan_fails_midway)
{
    kv_mem_fail_read(f.store, 1, SPAN_IO);
    cr_assert_not(sql_client_query(&f.c[0], "SELECT * FROM r"));
    cr_assert_str_eq(f.c[0].code, "58030");
    cr_assert_str_eq(ask("SELECT count(*) FROM r"), "100");
}
