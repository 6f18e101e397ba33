/* Schema changes: what is stored, seen by others, undone, refused; indexes built over rows. */
#include "sql/ddl.h"
#include "sql/session_impl.h"
#include "tests/lib/sql_fixture.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

static struct sql_fixture f;

static void setup(void)
{
    sql_fixture_open(&f);
}

static void teardown(void)
{
    sql_fixture_close(&f);
}

TestSuite(ddl, .init = setup, .fini = teardown, .timeout = 60);

static void ok(int who, const char *sql)
{
    cr_assert(sql_client_query(&f.c[who], sql), "%s: %s %s", sql, f.c[who].code, f.c[who].message);
}

static void fails(int who, const char *sql, const char *code)
{
    cr_assert_not(sql_client_query(&f.c[who], sql), "%s should fail", sql);
    cr_assert_str_eq(f.c[who].code, code, "%s: %s", sql, f.c[who].message);
}

static void gives(int who, const char *sql, const char *rows)
{
    const char *text = sql_client_ask(&f.c[who], sql);
    cr_assert_str_eq(text, rows, "%s\ngave %s (%s)", sql, text, f.c[who].message);
}

Test(ddl, other_sessions_see_each_change_at_their_next_statement)
{
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY, b INT)");
    ok(1, "INSERT INTO t VALUES (1, 1)");
    ok(0, "DROP TABLE t");
    fails(1, "SELECT * FROM t", "42P01");
    ok(0, "CREATE TABLE t(x TEXT, y INT)");
    gives(1, "SELECT count(*) FROM t", "0");
    ok(1, "INSERT INTO t VALUES ('x', 1)");
    ok(0, "CREATE INDEX ty ON t(y)");
    ok(1, "INSERT INTO t VALUES ('z', 2)"); /* planned without the index: refused, planned again */
    gives(0, "SELECT x FROM t WHERE y = 2", "z");
    ok(0, "CREATE VIEW v AS SELECT x FROM t WHERE y = 1");
    gives(1, "SELECT * FROM v", "x");
    ok(0, "CREATE OR REPLACE VIEW v AS SELECT x FROM t WHERE y = 2");
    gives(1, "SELECT * FROM v", "z");
    ok(0, "DROP VIEW v");
    fails(1, "SELECT * FROM v", "42P01");
}

Test(ddl, a_block_that_used_the_old_schema_cannot_commit)
{
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY, b INT)");
    ok(0, "INSERT INTO t VALUES (1, 1)");
    ok(1, "BEGIN");
    ok(1, "INSERT INTO t VALUES (2, 2)");
    ok(0, "CREATE INDEX tb ON t(b)");
    fails(1, "COMMIT", "40001");
    ok(1, "INSERT INTO t VALUES (2, 2)");
    gives(0, "SELECT a FROM t WHERE b = 2", "2");
}

Test(ddl, a_read_of_the_past_uses_the_schema_of_the_past)
{
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY)");
    ok(0, "INSERT INTO t VALUES (1)");
    kv_mem_advance(f.store, 10000000000ULL);
    ok(0, "DROP TABLE t");
    ok(0, "CREATE TABLE t(z TEXT)");
    ok(0, "INSERT INTO t VALUES ('new')");
    ok(0, "SELECT * FROM t");
    ok(0, "BEGIN READ ONLY AS OF '-5s'");
    gives(0, "SELECT * FROM t", "1");
    ok(0, "COMMIT");
    gives(0, "SELECT * FROM t", "new");
    ok(0, "BEGIN READ ONLY");
    gives(0, "SELECT 1", "1");
    ok(1, "DROP TABLE t; CREATE TABLE t(y INT); INSERT INTO t VALUES (9)");
    ok(1, "SELECT * FROM t");
    gives(0, "SELECT * FROM t", "new");
    ok(0, "COMMIT");
    gives(0, "SELECT * FROM t", "9");
}

Test(ddl, changes_in_a_block_are_seen_in_it_and_undone_with_it)
{
    ok(0, "CREATE TABLE old(a INT PRIMARY KEY)");
    ok(0, "INSERT INTO old VALUES (7)");
    ok(0, "BEGIN");
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY, b INT UNIQUE)");
    ok(0, "INSERT INTO t VALUES (1, 1)");
    ok(0, "CREATE INDEX oa ON old(a)"); /* a few rows are indexed in the block */
    gives(0, "SELECT a FROM old WHERE a > 6", "7");
    ok(0, "ROLLBACK");
    fails(0, "SELECT * FROM t", "42P01");
    ok(0, "BEGIN");
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY, b INT UNIQUE)");
    ok(0, "CREATE INDEX tb ON t(b, a)");
    ok(0, "INSERT INTO t VALUES (1, 1)");
    ok(0, "DROP TABLE old");
    fails(1, "SELECT * FROM t", "42P01");
    gives(1, "SELECT * FROM old", "7");
    ok(0, "COMMIT");
    gives(1, "SELECT a FROM t WHERE b = 1", "1");
    fails(1, "SELECT * FROM old", "42P01");
    ok(0, "BEGIN");
    ok(0, "SAVEPOINT s");
    ok(0, "CREATE TABLE u(a)");
    fails(0, "ROLLBACK TO s", "0A000");
    ok(0, "ROLLBACK");
}

Test(ddl, names_are_one_space_and_if_exists_is_a_notice)
{
    ok(0, "CREATE TABLE t(a INT)");
    fails(0, "CREATE TABLE T(a INT)", "42P07");
    ok(0, "CREATE TABLE IF NOT EXISTS t(a INT)");
    cr_assert_neq(f.c[0].notice[0], '\0');
    ok(0, "CREATE INDEX i ON t(a)");
    fails(0, "CREATE INDEX i ON t(a)", "42P07");
    fails(0, "CREATE TABLE i(a)", "42P07");
    ok(0, "CREATE INDEX IF NOT EXISTS i ON t(a)");
    ok(0, "CREATE INDEX ON t(a)");
    gives(0, "SHOW INDEXES FROM t", "i|a|f|f|public\nt_a_idx|a|f|f|public");
    fails(0, "DROP TABLE nosuch", "42P01");
    ok(0, "DROP TABLE IF EXISTS nosuch, t");
    fails(0, "DROP INDEX i", "42704");
    ok(0, "DROP INDEX IF EXISTS i");
    ok(0, "CREATE TABLE \"odd name\"\"q\"(\"a b\" INT PRIMARY KEY)");
    ok(0, "INSERT INTO \"odd name\"\"q\" VALUES (1)");
    gives(0, "SELECT \"a b\" FROM \"odd name\"\"q\" WHERE \"a b\" = 1", "1");
}

Test(ddl, an_index_is_built_over_many_rows_and_used)
{
    ok(0, "CREATE TABLE t(a INTEGER PRIMARY KEY, b INT, c TEXT)");
    ok(0, "INSERT INTO t WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < "
          "1700) "
          "SELECT x, x % 100, 'row ' || x FROM n");
    kv_mem_fail_commit(f.store, 3, SPAN_CONFLICT, 1); /* one batch is repeated */
    ok(0, "CREATE INDEX tb ON t(b)");
    gives(0, "SHOW INDEXES FROM t", "t_pkey|a|t|t|public\ntb|b|f|f|public");
    uint64_t reads = kv_mem_reads(f.store);
    gives(0, "SELECT count(*) FROM t WHERE b = 7", "17");
    cr_assert_leq(kv_mem_reads(f.store) - reads, 2, "answered from the index alone");
    gives(0, "SELECT min(c), count(*) FROM t WHERE b IN (7, 8)", "row 1007|34");
    fails(0, "CREATE UNIQUE INDEX tu ON t(b)", "23505");
    cr_assert_str_eq(f.c[0].constraint, "tu");
    gives(0, "SHOW INDEXES FROM t", "t_pkey|a|t|t|public\ntb|b|f|f|public");
    ok(0, "CREATE UNIQUE INDEX tu ON t(c)");
    fails(0, "INSERT INTO t VALUES (9999, 1, 'row 5')", "23505");
    ok(0, "DROP INDEX tb");
    gives(0, "SELECT count(*) FROM t WHERE b = 7", "17");
    ok(0, "BEGIN");
    fails(0, "CREATE UNIQUE INDEX x ON t(b)", "23505");
    ok(0, "ROLLBACK");
    ok(0, "INSERT INTO t SELECT a + 2000, b, 'more ' || a FROM t; INSERT INTO t SELECT a + 9000, "
          "b, 'even ' || a FROM t");
    ok(0, "BEGIN");
    fails(0, "CREATE INDEX x ON t(b)", "0A000");
    ok(0, "ROLLBACK");
    ok(0, "CREATE TABLE m(a INT); INSERT INTO m VALUES (1), (2); CREATE INDEX ma ON m(a); SELECT a "
          "FROM m WHERE a = 2");
    gives(1, "SELECT a FROM m WHERE a = 2", "2");
}

Test(ddl, create_as_select_and_truncate)
{
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY, b TEXT)");
    ok(0, "INSERT INTO t VALUES (1, 'x'), (2, 'y')");
    ok(0, "CREATE TABLE c AS SELECT a, b || '!' AS bb FROM t WHERE a > 0");
    gives(0, "SELECT * FROM c ORDER BY a", "1|x!\n2|y!");
    ok(0, "CREATE INDEX cb ON c(bb)");
    ok(0, "TRUNCATE TABLE c, t");
    gives(0,
          "SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM c), (SELECT count(*) FROM c "
          "WHERE bb > '')",
          "0|0|0");
}

Test(ddl, what_would_not_be_kept_is_refused_with_a_hint)
{
    static const char *const sql[] = {
        "CREATE TABLE x(a INT PRIMARY KEY, b INT REFERENCES y(b))",
        "CREATE TABLE x(a INT, FOREIGN KEY (a) REFERENCES y(b))",
        "CREATE TABLE x(a SERIAL)",
        "CREATE TABLE x(a INT GENERATED ALWAYS AS IDENTITY)",
        "CREATE TEMP TABLE x(a INT)",
        "CREATE VIRTUAL TABLE x USING fts5(a)",
        "CREATE INDEX x ON t(a) WHERE a > 1",
        "CREATE INDEX x ON t(a + 1)",
        "CREATE INDEX x ON t USING hash (a)",
        "ALTER TABLE t ADD COLUMN z INT",
        "CREATE SEQUENCE x",
    };
    ok(0, "CREATE TABLE t(a INT)");
    for (size_t i = 0; i < sizeof sql / sizeof sql[0]; i++) {
        fails(0, sql[i], "0A000");
        cr_assert_neq(f.c[0].hint[0], '\0', "%s", sql[i]);
    }
    fails(0, "CREATE TABLE x(a INT, a INT)", "42701");
    fails(0, "CREATE TABLE other.x(a INT)", "3F000");
    fails(0, "CREATE TABLE x", "42601");
    fails(0, "CREATE INDEX x ON t(nosuch)", "42703");
    ok(0, "CREATE TABLE w(a INT PRIMARY KEY, references_x INT) WITH (fillfactor=100)");
}

Test(ddl, split_points_take_the_keys_type)
{
    ok(0, "CREATE TABLE t(a INT, b TEXT, PRIMARY KEY (a, b))");
    ok(0, "CREATE INDEX tb ON t(b)");
    ok(0, "ALTER TABLE t SPLIT AT VALUES ('10'), (20, 5), (5 * 6)");
    ok(0, "ALTER TABLE t SPLIT AT VALUES (10)"); /* a boundary already */
    ok(0, "ALTER INDEX tb SPLIT AT VALUES ('m')");
    cr_assert_eq(kv_mem_boundaries(f.store), 4);
    gives(0, "SHOW RANGES FROM t",
          "1||/t/10\n2|/t/10|/t/20/'5'\n3|/t/20/'5'|/t/30\n4|/t/30|/t@tb/'m'\n5|/t@tb/'m'|NULL");
    fails(0, "ALTER TABLE t SPLIT AT VALUES (1, 2, 3)", "42601");
    fails(0, "ALTER TABLE t SPLIT AT VALUES 1", "42601");
    fails(0, "ALTER TABLE nosuch SPLIT AT VALUES (1)", "42P01");
    cr_assert_eq(kv_mem_boundaries(f.store), 4);
    ok(0, "BEGIN");
    fails(0, "ALTER TABLE t SPLIT AT VALUES (1)", "25001");
    ok(0, "ROLLBACK");
}

Test(ddl, a_descriptor_survives_its_encoding_and_damage_is_noticed)
{
    static const char sql[] =
        "CREATE TABLE t(a TEXT COLLATE NOCASE, b REAL NOT NULL, c INT DEFAULT 1, "
        "d INT AS (c + 1), PRIMARY KEY (b DESC, a), UNIQUE (c, a))";
    struct sql_error err;
    struct buf b = {0};
    struct buf again = {0};
    sql_error_clear(&err);
    struct table_desc *d = ddl_describe(f.session[0], sql, &err);
    cr_assert_not_null(d, "%s", err.message);
    cr_assert_eq(d->pk, PK_COLUMNS);
    cr_assert_eq(d->primary.count, 2);
    cr_assert_eq(d->primary.columns[0], 1);
    cr_assert(d->primary.desc[0]);
    cr_assert_eq(d->primary.collations[1], COLL_NOCASE);
    cr_assert_eq(d->index_count, 1);
    cr_assert_str_eq(d->indexes[0].name, "t_c_a_key");
    cr_assert(d->columns[3].generated);
    table_desc_encode(d, &b);
    struct table_desc *copy = table_desc_copy(d);
    table_desc_encode(copy, &again);
    cr_assert(slice_eq(buf_slice(&b), buf_slice(&again)));
    for (size_t i = 0; i < b.size; i++) {
        struct table_desc *bad = NULL;
        span_status st = table_desc_decode(slice_of(b.data, i), &bad);
        cr_assert_eq(st, SPAN_CORRUPT, "cut at %zu", i);
        b.data[i] ^= 0xff;
        st = table_desc_decode(buf_slice(&b), &bad);
        cr_assert(st == SPAN_OK || bad == NULL);
        table_desc_unref(st == SPAN_OK ? bad : NULL);
        b.data[i] ^= 0xff;
    }
    table_desc_unref(d);
    table_desc_unref(copy);
    buf_deinit(&b);
    buf_deinit(&again);
}

Test(ddl, a_split_point_must_be_a_value_the_key_can_hold)
{
    ok(0, "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, price REAL, any)");
    ok(0, "CREATE INDEX tn ON t(name)");
    ok(0, "CREATE INDEX tp ON t(price)");
    ok(0, "CREATE INDEX ta ON t(any)");
    ok(0, "CREATE TABLE h(v TEXT)"); /* keys are hidden rowids */
    fails(0, "ALTER TABLE t SPLIT AT VALUES ('x')", "42804");
    cr_assert(strstr(f.c[0].message, "\"id\"") != NULL, "%s", f.c[0].message);
    cr_assert(strstr(f.c[0].message, "INTEGER") != NULL, "%s", f.c[0].message);
    fails(0, "ALTER TABLE t SPLIT AT VALUES (x'01')", "42804");
    fails(0, "ALTER TABLE t SPLIT AT VALUES ('')", "42804");
    fails(0, "ALTER TABLE t SPLIT AT VALUES (NULL)", "22004");
    fails(0, "ALTER TABLE h SPLIT AT VALUES ('x')", "42804");
    fails(0, "ALTER INDEX tn SPLIT AT VALUES (x'01')", "42804");
    fails(0, "ALTER INDEX tn SPLIT AT VALUES (NULL)", "22004");
    fails(0, "ALTER INDEX tp SPLIT AT VALUES ('cheap')", "42804");
    fails(0, "ALTER TABLE t SPLIT AT VALUES (1, 2)", "42601");
    fails(0, "ALTER TABLE t SPLIT AT VALUES ()", "42601");
    cr_assert_eq(kv_mem_boundaries(f.store), 0);
    ok(0, "ALTER TABLE t SPLIT AT VALUES ('12'), (13)");
    ok(0, "ALTER TABLE h SPLIT AT VALUES (5)");
    ok(0, "ALTER INDEX tn SPLIT AT VALUES (7)"); /* is the text 7, as an INSERT would store it */
    ok(0, "ALTER INDEX tp SPLIT AT VALUES (1), ('2.5')");
    ok(0, "ALTER INDEX ta SPLIT AT VALUES ('x'), (x'01')");
    cr_assert_eq(kv_mem_boundaries(f.store), 8);
}

Test(ddl, a_key_beyond_the_limit_is_refused_at_once)
{
    static const char *const refused[] = {
        "INSERT INTO t VALUES (printf('%.*c', 5000, 'x'), 'm')",
        "INSERT INTO t VALUES ('a', 'n'), (printf('%.*c', 5000, 'x'), 'm')",
        "UPDATE t SET k = printf('%.*c', 5000, 'x') WHERE k = 'k'",
        "INSERT INTO t VALUES ('u', printf('%.*c', 5000, 'x'))",
        "INSERT OR REPLACE INTO t VALUES (printf('%.*c', 5000, 'x'), 'm')",
        "ALTER TABLE t SPLIT AT VALUES (printf('%.*c', 5000, 'x'))",
        "ALTER INDEX tu SPLIT AT VALUES (printf('%.*c', 5000, 'x'))",
    };
    ok(0, "CREATE TABLE t(k TEXT PRIMARY KEY, u TEXT)");
    ok(0, "CREATE UNIQUE INDEX tu ON t(u)");
    ok(0, "INSERT INTO t VALUES ('k', 'u')");
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        fails(0, refused[i], "54000");
        cr_assert(strstr(f.c[0].message, "\"t\"") != NULL, "%s", f.c[0].message);
        cr_assert(strstr(f.c[0].message, "4096") != NULL, "%s", f.c[0].message);
    }
    ok(0, "DROP INDEX tu");
    ok(0, "CREATE INDEX tu ON t(u)");
    fails(0, "INSERT INTO t VALUES ('u', printf('%.*c', 5000, 'x'))", "54000");
    gives(0, "SELECT k, u FROM t", "k|u");
    ok(0, "DROP INDEX tu");
    ok(0, "INSERT INTO t VALUES ('u', printf('%.*c', 5000, 'x'))"); /* no key any more */
    fails(0, "CREATE INDEX tu ON t(u)", "54000");
    gives(0, "SELECT count(*) FROM t", "2");
}

Test(ddl, a_comparison_with_a_value_too_large_for_a_key_is_answered)
{
    ok(0, "CREATE TABLE t(k TEXT PRIMARY KEY)");
    ok(0, "INSERT INTO t VALUES ('w'), ('x'), (printf('%.*c', 4000, 'x')), ('y')");
    gives(0, "SELECT count(*) FROM t WHERE k = printf('%.*c', 5000, 'x')", "0");
    gives(0, "SELECT count(*) FROM t WHERE k IN ('w', printf('%.*c', 5000, 'x'))", "1");
    gives(0, "SELECT count(*) FROM t WHERE k > printf('%.*c', 5000, 'x')", "1");
    gives(0, "SELECT count(*) FROM t WHERE k >= printf('%.*c', 5000, 'x')", "1");
    gives(0, "SELECT count(*) FROM t WHERE k < printf('%.*c', 5000, 'x')", "3");
    gives(0, "SELECT count(*) FROM t WHERE k <= printf('%.*c', 5000, 'x')", "3");
    gives(0,
          "SELECT count(*) FROM t WHERE k BETWEEN printf('%.*c', 5000, 'x') AND "
          "printf('%.*c', 6000, 'x')",
          "0");
    ok(0, "DELETE FROM t WHERE k >= printf('%.*c', 5000, 'x')");
    gives(0, "SELECT count(*) FROM t", "3");
}

/* --- dropping many rows --- */

#define MANY "2500" /* more than one step of the sweep */

static void count_key(void *ctx, struct slice key, struct slice value)
{
    (void)key;
    (void)value;
    ++*(size_t *)ctx;
}

/* Keys in force of all user tables. */
static size_t user_keys(void)
{
    struct buf from = {0};
    size_t n = 0;
    key_table_start(&from, KEY_USER_TABLE_MIN);
    kv_mem_each(f.store, buf_slice(&from), slice_of("", 0), count_key, &n);
    buf_deinit(&from);
    return n;
}

/* Records of spans still to be swept. */
static size_t records(void)
{
    struct buf from = {0};
    struct buf to = {0};
    size_t n = 0;
    key_table_start(&from, SYS_TABLE_DROPPED);
    key_table_end(&to, SYS_TABLE_DROPPED);
    kv_mem_each(f.store, buf_slice(&from), buf_slice(&to), count_key, &n);
    buf_deinit(&from);
    buf_deinit(&to);
    return n;
}

static void fill(const char *table)
{
    char sql[256];
    snprintf(sql, sizeof sql,
             "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < " MANY
             ") INSERT INTO %s SELECT i, 'v' || i FROM n",
             table);
    ok(0, sql);
}

Test(ddl, a_large_table_is_dropped_and_its_rows_go_in_steps)
{
    ok(0, "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)");
    ok(0, "CREATE INDEX tb ON t(b)");
    ok(0, "CREATE TABLE other(a INTEGER PRIMARY KEY, b TEXT)");
    ok(0, "INSERT INTO other VALUES (1, 'x')");
    fill("t");
    gives(1, "SELECT count(*) FROM t", MANY);
    ok(0, "DROP TABLE t");
    cr_assert_str_eq(f.c[0].notice, "");
    cr_assert_eq(user_keys(), 1, "%zu keys are left", user_keys());
    cr_assert_eq(records(), 0);
    fails(1, "SELECT count(*) FROM t", "42P01");
    ok(1, "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)");
    gives(0, "SELECT count(*) FROM t", "0");
}

Test(ddl, a_large_drop_in_a_block_ends_with_the_block)
{
    ok(0, "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)");
    fill("t");
    ok(0, "BEGIN");
    ok(0, "DROP TABLE t");
    fails(0, "SELECT count(*) FROM t", "42P01");
    ok(0, "ROLLBACK");
    gives(0, "SELECT count(*) FROM t", MANY);
    ok(0, "CREATE TABLE small(a INT)");
    ok(0, "DROP TABLE small");
    gives(1, "SELECT count(*) FROM t", MANY);
    ok(0, "BEGIN");
    ok(0, "DROP TABLE t");
    ok(0, "CREATE TABLE t(a INTEGER PRIMARY KEY)");
    ok(0, "INSERT INTO t VALUES (7)");
    cr_assert_eq(records(), 0);
    ok(0, "COMMIT");
    gives(1, "SELECT a FROM t", "7");
    cr_assert_eq(user_keys(), 1, "%zu keys are left", user_keys());
    cr_assert_eq(records(), 0);
}

Test(ddl, a_sweep_that_stops_is_ended_by_the_next)
{
    ok(0, "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)");
    ok(0, "CREATE TABLE u(a INTEGER PRIMARY KEY, b TEXT)");
    fill("t");
    fill("u");
    kv_mem_fail_commit(f.store, 3, SPAN_IO,
                       1); /* the drop, the look at the records, the first step */
    ok(0, "DROP TABLE t");
    cr_assert(strstr(f.c[0].notice, "remain") != NULL, "%s", f.c[0].notice);
    cr_assert_eq(records(), 1);
    fails(1, "SELECT * FROM t", "42P01");
    kv_mem_fail_commit(f.store, 3, SPAN_CONFLICT, 3); /* tried again */
    ok(1, "DROP TABLE u");
    cr_assert_str_eq(f.c[1].notice, "");
    cr_assert_eq(records(), 0);
    cr_assert_eq(user_keys(), 0, "%zu keys are left", user_keys());
}

Test(ddl, a_large_index_is_dropped_under_a_table_that_lives_on)
{
    ok(0, "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)");
    ok(0, "CREATE INDEX tb ON t(b)");
    fill("t");
    ok(0, "DROP INDEX tb");
    cr_assert_eq(user_keys(), strtoul(MANY, NULL, 10));
    cr_assert_eq(records(), 0);
    gives(1, "SELECT a FROM t WHERE b = 'v77'", "77");
    ok(1, "CREATE INDEX tb ON t(b)");
    gives(0, "SELECT a FROM t WHERE b = 'v78'", "78");
}

Test(ddl, truncate_of_a_large_table_is_one_transaction)
{
    ok(0, "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)");
    ok(0, "CREATE INDEX tb ON t(b)");
    fill("t");
    ok(1, "BEGIN");
    gives(1, "SELECT count(*) FROM t", MANY);
    ok(0, "BEGIN");
    ok(0, "TRUNCATE t");
    gives(0, "SELECT count(*) FROM t", "0");
    ok(0, "INSERT INTO t(b) VALUES ('new')");
    ok(0, "ROLLBACK");
    gives(0, "SELECT count(*) FROM t", MANY);
    ok(0, "BEGIN");
    ok(0, "TRUNCATE t");
    ok(0, "INSERT INTO t(b) VALUES ('new')");
    gives(0, "SELECT a > " MANY ", b FROM t WHERE b = 'new'", "1|new");
    ok(0, "COMMIT");
    ok(1, "ROLLBACK");
    gives(1, "SELECT count(*) FROM t", "1");
    gives(1, "SELECT b FROM t WHERE b > 'a'", "new");
    cr_assert_eq(user_keys(), 2, "a row and its entry, not %zu keys", user_keys());
    ok(1, "INSERT INTO t(b) VALUES ('newer')");
    ok(1, "TRUNCATE t"); /* few rows: deleted in the transaction */
    gives(0, "SELECT count(*) FROM t", "0");
    cr_assert_eq(user_keys(), 0);
}

Test(ddl, a_transaction_too_large_for_a_range_is_told_to_be_split)
{
    ok(0, "CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)");
    ok(0, "BEGIN");
    for (int i = 0; i < 5; i++) {
        char sql[80];
        snprintf(sql, sizeof sql, "INSERT INTO t VALUES (%d, zeroblob(700000))", i);
        ok(0, sql);
    }
    fails(0, "COMMIT", "54000");
    cr_assert(strstr(f.c[0].hint, "several transactions") != NULL, "%s", f.c[0].hint);
    gives(0, "SELECT count(*) FROM t", "0");
    ok(0, "ALTER TABLE t SPLIT AT VALUES (3)");
    ok(0, "BEGIN");
    for (int i = 0; i < 5; i++) {
        char sql[80];
        snprintf(sql, sizeof sql, "INSERT INTO t VALUES (%d, zeroblob(700000))", i);
        ok(0, sql);
    }
    ok(0, "COMMIT"); /* each range has its own entry */
    gives(1, "SELECT count(*) FROM t", "5");
}
