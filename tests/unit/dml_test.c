/* The working set: constraints, conflict clauses, automatic ids, repeatable runs. What random
 * statements cover is in sql_diff_test.c. */
#include "base/limits.h"
#include "tests/lib/sql_fixture.h"

#include <criterion/criterion.h>

static struct sql_fixture f;

static void setup(void)
{
    sql_fixture_open(&f);
}

static void teardown(void)
{
    sql_fixture_close(&f);
}

TestSuite(dml, .init = setup, .fini = teardown, .timeout = 60);

static void ok(const char *sql)
{
    cr_assert(sql_client_query(&f.c[0], sql), "%s: %s %s", sql, f.c[0].code, f.c[0].message);
}

static void fails(const char *sql, const char *code, const char *constraint)
{
    cr_assert_not(sql_client_query(&f.c[0], sql), "%s should fail", sql);
    cr_assert_str_eq(f.c[0].code, code, "%s: %s", sql, f.c[0].message);
    cr_assert_str_eq(f.c[0].constraint, constraint, "%s", sql);
}

static void gives(const char *sql, const char *rows)
{
    const char *text = sql_client_ask(&f.c[0], sql);
    cr_assert_str_eq(text, rows, "%s\ngave %s (%s)", sql, text, f.c[0].message);
}

Test(dml, sqlite_enforces_constraints_defaults_and_affinity)
{
    ok("CREATE TABLE t(a INTEGER PRIMARY KEY, b INT NOT NULL DEFAULT 5, c TEXT DEFAULT 'x' CHECK "
       "(length(c) < 4), "
       "d INT GENERATED ALWAYS AS (b * 2) STORED, e TEXT AS (c || '!') , at TEXT DEFAULT "
       "CURRENT_TIMESTAMP)");
    ok("INSERT INTO t(a, b) VALUES (1, '77')");
    gives("SELECT a, b, typeof(b), c, d, e, at FROM t",
          "1|77|integer|x|154|x!|2023-11-14 22:13:20");
    fails("INSERT INTO t(a, b) VALUES (2, NULL)", "23502", "");
    fails("INSERT INTO t(a, c) VALUES (2, 'long')", "23514", "length(c) < 4");
    gives("UPDATE t SET c = 'yy' RETURNING c, d, e", "yy|154|yy!");
    gives("SELECT e FROM t WHERE e = 'yy!'", "yy!");
    ok("INSERT INTO t DEFAULT VALUES");
    ok("CREATE TABLE s(a INT PRIMARY KEY, b TEXT) STRICT");
    fails("INSERT INTO s VALUES ('x', 'y')", "42804", "");
    ok("CREATE TABLE n(a TEXT PRIMARY KEY)");
    fails("INSERT INTO n VALUES (NULL)", "23502", "");
}

Test(dml, a_unique_key_of_a_row_outside_the_statement_is_seen)
{
    ok("CREATE TABLE t(a INT PRIMARY KEY, email TEXT UNIQUE, n INT)");
    ok("CREATE UNIQUE INDEX tn ON t(n)");
    ok("INSERT INTO t VALUES (1, 'x', 1), (2, 'y', 2)");
    fails("UPDATE t SET email = 'y' WHERE a = 1", "23505", "t_email_key");
    fails("UPDATE t SET a = 2 WHERE a = 1", "23505", "t_pkey");
    fails("UPDATE t SET n = 2 WHERE a = 1", "23505", "tn");
    fails("INSERT INTO t VALUES (3, 'y', 3)", "23505", "t_email_key");
    ok("INSERT INTO t VALUES (4, NULL, NULL), (5, NULL, NULL)"); /* NULLs are no doubles */
    ok("UPDATE t SET email = 'z', a = 20 WHERE a = 2");
    ok("INSERT INTO t VALUES (2, 'y', 9)");
    gives("SELECT a, email FROM t WHERE email >= 'y' ORDER BY email", "2|y\n20|z");
}

Test(dml, conflict_clauses_decide_about_stored_rows)
{
    ok("CREATE TABLE t(a INT PRIMARY KEY, b TEXT COLLATE NOCASE UNIQUE, n INT DEFAULT 0)");
    ok("INSERT INTO t VALUES (1, 'one', 1), (2, 'two', 2)");
    gives("INSERT INTO t VALUES (1, 'x', 5) ON CONFLICT (a) DO UPDATE SET n = t.n + excluded.n "
          "RETURNING *",
          "1|one|6");
    gives("INSERT INTO t VALUES (9, 'ONE', 7) ON CONFLICT (b) DO UPDATE SET n = excluded.n "
          "RETURNING *",
          "1|one|7");
    ok("INSERT INTO t VALUES (1, 'q', 1) ON CONFLICT DO NOTHING");
    cr_assert_str_eq(f.c[0].tags, "INSERT 0 0");
    ok("INSERT OR IGNORE INTO t VALUES (2, 'q', 1), (3, 'three', 3)");
    cr_assert_str_eq(f.c[0].tags, "INSERT 0 1");
    ok("INSERT OR REPLACE INTO t VALUES (2, 'THREE', 9)"); /* takes the place of two rows */
    gives("SELECT * FROM t ORDER BY a", "1|one|7\n2|THREE|9");
    ok("UPDATE OR REPLACE t SET b = 'one' WHERE a = 2");
    gives("SELECT * FROM t", "2|one|9");
    ok("CREATE TABLE r(a INT PRIMARY KEY ON CONFLICT REPLACE, b INT)");
    ok("INSERT INTO r VALUES (1, 1)");
    ok("INSERT INTO r VALUES (1, 2)");
    gives("SELECT b FROM r", "2");
}

Test(dml, automatic_ids_rise_over_sessions_and_explicit_ones)
{
    ok("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)");
    gives("INSERT INTO t(v) VALUES ('a'), ('b') RETURNING id", "1\n2");
    gives("INSERT INTO t VALUES (10, 'c'), (NULL, 'd') RETURNING id", "10\n11");
    gives("INSERT INTO t(v) SELECT v FROM t WHERE id < 3 RETURNING id", "12\n13");
    cr_assert_str_eq(sql_client_ask(&f.c[1], "INSERT INTO t(v) VALUES ('other') RETURNING id"),
                     "14");
    cr_assert(sql_client_query(&f.c[1], "INSERT INTO t VALUES (15, 'explicit at the other node')"));
    gives("INSERT INTO t(v) VALUES ('e') RETURNING id", "16");
    gives("INSERT INTO t(id, v) VALUES (1, 'up') ON CONFLICT (id) DO UPDATE SET v = excluded.v "
          "RETURNING id",
          "1");
    gives("SELECT count(*), count(DISTINCT id) FROM t", "9|9");
}

Test(dml, tables_without_a_key_keep_doubles_apart)
{
    ok("CREATE TABLE t(a, b)");
    ok("INSERT INTO t VALUES (1, 1), (1, 1), (2, 2)");
    ok("UPDATE t SET b = 5 WHERE a = 1");
    cr_assert_str_eq(f.c[0].tags, "UPDATE 2");
    gives("SELECT * FROM t", "1|5\n1|5\n2|2");
    ok("DELETE FROM t WHERE rowid = (SELECT min(rowid) FROM t)");
    gives("SELECT count(*) FROM t", "2");
    fails("INSERT INTO t(rowid, a) VALUES (7, 7)", "0A000", "");
}

Test(dml, statements_read_the_whole_table_while_they_change_it)
{
    ok("CREATE TABLE t(a INT PRIMARY KEY, b INT)");
    ok("CREATE TABLE u(a INT PRIMARY KEY, b INT)");
    ok("INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)");
    ok("INSERT INTO u VALUES (2, 20), (3, 30)");
    ok("UPDATE t SET b = (SELECT max(b) FROM t) + b WHERE b < (SELECT avg(b) FROM t) + 0.5");
    gives("SELECT b FROM t ORDER BY a", "4\n5\n3");
    ok("UPDATE t SET b = u.b FROM u WHERE u.a = t.a");
    gives("SELECT b FROM t ORDER BY a", "4\n20\n30");
    ok("INSERT INTO t SELECT a + 10, b FROM t");
    gives("SELECT count(*) FROM t", "6");
    ok("WITH big AS (SELECT a FROM t WHERE b >= 20) DELETE FROM t WHERE a IN big");
    gives("SELECT group_concat(a) FROM t", "1,11");
    ok("UPDATE t AS x SET b = x.b + 1 WHERE x.a = 1");
    ok("UPDATE t SET b = 0 ORDER BY a DESC LIMIT 1");
    gives("SELECT b FROM t ORDER BY a", "5\n0");
    gives("DELETE FROM t RETURNING a", "1\n11");
}

Test(dml, repeated_runs_see_the_same_random_numbers)
{
    ok("CREATE TABLE t(a INTEGER PRIMARY KEY, b INT)");
    /* Half of these keys are stored after the first statement: the second one needs several runs,
     * and ends. */
    ok("INSERT INTO t(a, b) SELECT abs(random() % 20), 1 FROM (SELECT 1 UNION ALL SELECT 2 UNION "
       "ALL SELECT 3) WHERE true "
       "ON CONFLICT (a) DO UPDATE SET b = b + 1");
    for (int i = 0; i < 50; i++) {
        ok("INSERT INTO t(a, b) VALUES (abs(random() % 20), 1), (abs(random() % 20), 1) ON "
           "CONFLICT (a) DO UPDATE SET b = b + 1");
    }
    gives("SELECT sum(b), count(*) <= 20 FROM t", "103|1");
}

Test(dml, views_are_not_targets_and_unknown_names_are_named)
{
    ok("CREATE TABLE t(a INT PRIMARY KEY)");
    ok("CREATE VIEW v AS SELECT a FROM t");
    fails("INSERT INTO v VALUES (1)", "0A000", "");
    fails("INSERT INTO nosuch VALUES (1)", "42P01", "");
    fails("INSERT INTO t(nosuch) VALUES (1)", "42703", "");
    fails("INSERT INTO t VALUES (1, 2)", "42601", "");
    fails("DELETE FROM t USING t AS u WHERE t.a = u.a", "0A000", "");
    fails("UPDATE t", "42601", "");
}

Test(dml, rows_and_keys_beyond_the_limits_are_refused)
{
    ok("CREATE TABLE t(a TEXT PRIMARY KEY, b BLOB)");
    fails("INSERT INTO t VALUES (hex(zeroblob(5000)), NULL)", "54000", "");
    fails("INSERT INTO t VALUES ('x', zeroblob(2000000))", "54000", "");
    ok("INSERT INTO t VALUES ('x', zeroblob(1000000))");
}
