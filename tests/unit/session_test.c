/* A session as a client sees it: results, types, blocks, savepoints, errors, retries, settings,
 * guards. */
#include "base/alloc.h"
#include "base/limits.h"
#include "base/rng.h"
#include "sql/show.h"
#include "tests/lib/sql_fixture.h"
#include "txn/txn_types.h"

#include <criterion/criterion.h>
#include <stdio.h>

static struct sql_fixture f;

static void setup(void)
{
    sql_fixture_open(&f);
}

static void teardown(void)
{
    sql_fixture_close(&f);
}

TestSuite(session, .init = setup, .fini = teardown, .timeout = 60);

static void ok(int who, const char *sql)
{
    cr_assert(sql_client_query(&f.c[who], sql), "%s: %s %s", sql, f.c[who].code, f.c[who].message);
}

static void fails(int who, const char *sql, const char *code)
{
    bool good = sql_client_query(&f.c[who], sql);
    cr_assert_not(good, "%s should fail", sql);
    cr_assert_str_eq(f.c[who].code, code, "%s: %s %s", sql, f.c[who].code, f.c[who].message);
}

static void gives(int who, const char *sql, const char *rows)
{
    const char *text = sql_client_ask(&f.c[who], sql);
    cr_assert_str_eq(text, rows, "%s\ngave %s (%s)", sql, text, f.c[who].message);
}

static char status(int who)
{
    return f.c[who].session.ops->txn_status(f.c[who].session.impl);
}

Test(session, values_come_in_postgresqls_text_format)
{
    gives(0, "SELECT 1, -9223372036854775808, 2.5, 5.0, 0.1, 1e300, 'x', NULL, x'00ff', ''",
          "1|-9223372036854775808|2.5|5|0.1|1e+300|x|NULL|\\x00ff|");
    cr_assert_str_eq(f.c[0].tags, "SELECT 1");
    ok(0, "CREATE TABLE t(i INT, r REAL, t VARCHAR(9), b BYTEA, f BOOLEAN, n NUMERIC, d DOUBLE "
          "PRECISION)");
    ok(0, "INSERT INTO t VALUES (1, 2, 'x', x'61', true, 1.5, 3)");
    gives(0, "SELECT * FROM t", "1|2|x|\\x61|t|1.5|3");
    static const uint32_t types[] = {20, 701, 25, 17, 16, 1700, 701};
    for (size_t i = 0; i < 7; i++) {
        cr_assert_eq(f.c[0].types[i], types[i], "column %zu is %u", i, f.c[0].types[i]);
    }
    gives(0, "SELECT count(*), i + 0, r * 2, t || 'y' FROM t", "1|1|4|xy");
    cr_assert_eq(f.c[0].types[0], 20);
    cr_assert_eq(f.c[0].types[2], 701);
    cr_assert_eq(f.c[0].types[3], 25);
}

Test(session, each_statement_of_a_message_answers_and_an_error_undoes_all)
{
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY)");
    ok(0, "INSERT INTO t VALUES (1); INSERT INTO t VALUES (2); SELECT count(*) FROM t");
    cr_assert_str_eq(f.c[0].tags, "INSERT 0 1; INSERT 0 1; SELECT 1");
    fails(0, "INSERT INTO t VALUES (3); INSERT INTO t VALUES (1); INSERT INTO t VALUES (4)",
          "23505");
    cr_assert_str_eq(f.c[0].tags, "INSERT 0 1");
    cr_assert_eq(status(0), 'I');
    gives(0, "SELECT count(*) FROM t", "2");
    ok(0, " ; -- nothing\n;");
    cr_assert_str_eq(f.c[0].tags, "EMPTY");
}

Test(session, a_block_sees_its_own_writes_and_others_see_them_after_commit)
{
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY, b INT)");
    ok(0, "BEGIN");
    cr_assert_eq(status(0), 'T');
    ok(0, "INSERT INTO t VALUES (1, 10)");
    cr_assert(strncmp(f.c[0].param, "spanlite.txn_id=", 16) == 0,
              "the id is told before COMMIT (E1)");
    gives(0, "SELECT b FROM t WHERE a = 1", "10");
    gives(1, "SELECT count(*) FROM t", "0");
    ok(0, "COMMIT");
    cr_assert_str_eq(f.c[0].tags, "COMMIT");
    cr_assert_gt(f.c[0].gate, 0, "the commit's timestamp gates the answer (D0)");
    gives(1, "SELECT b FROM t", "10");
    cr_assert_gt(f.c[1].gate, 0, "so does a version that was read");
    ok(0, "BEGIN");
    ok(0, "DELETE FROM t");
    ok(0, "ROLLBACK");
    gives(0, "SELECT count(*) FROM t", "1");
}

Test(session, a_failed_block_refuses_everything_but_its_end)
{
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY)");
    ok(0, "BEGIN");
    ok(0, "INSERT INTO t VALUES (1)");
    fails(0, "SELECT nosuch FROM t", "42703");
    cr_assert_eq(status(0), 'E');
    fails(0, "SELECT 1", "25P02");
    fails(0, "SAVEPOINT x", "25P02");
    ok(0, "COMMIT");
    cr_assert_str_eq(f.c[0].tags, "ROLLBACK");
    cr_assert_eq(status(0), 'I');
    gives(0, "SELECT count(*) FROM t", "0");
}

Test(session, savepoints_nest_release_and_roll_back)
{
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY)");
    fails(0, "SAVEPOINT x", "25P01");
    ok(0, "BEGIN");
    ok(0, "INSERT INTO t VALUES (1)");
    ok(0, "SAVEPOINT a");
    ok(0, "INSERT INTO t VALUES (2)");
    ok(0, "SAVEPOINT b");
    fails(0, "INSERT INTO t VALUES (2)", "23505");
    cr_assert_eq(status(0), 'E');
    ok(0, "ROLLBACK TO SAVEPOINT b");
    cr_assert_eq(status(0), 'T');
    gives(0, "SELECT group_concat(a) FROM t", "1,2");
    ok(0, "ROLLBACK TO a");
    gives(0, "SELECT group_concat(a) FROM t", "1");
    fails(0, "ROLLBACK TO b", "3B001");
    ok(0, "ROLLBACK TO a");
    ok(0, "RELEASE a");
    ok(0, "COMMIT");
    gives(0, "SELECT count(*) FROM t", "1");
}

Test(session, a_statement_that_fails_leaves_no_part_of_itself)
{
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY, b INT CHECK (b > 0))");
    ok(0, "BEGIN");
    ok(0, "INSERT INTO t VALUES (1, 1)");
    ok(0, "SAVEPOINT s");
    fails(0, "INSERT INTO t VALUES (2, 2), (3, -1)", "23514");
    ok(0, "ROLLBACK TO s");
    gives(0, "SELECT count(*) FROM t", "1");
    ok(0, "COMMIT");
}

Test(session, autocommit_statements_are_retried_by_the_gateway)
{
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY, b INT)");
    ok(0, "INSERT INTO t VALUES (1, 0)");
    kv_mem_fail_commit(f.store, 1, SPAN_CONFLICT, 3);
    ok(0, "UPDATE t SET b = b + 1 WHERE a = 1");
    gives(0, "SELECT b FROM t", "1");
    kv_mem_fail_read(f.store, 1, SPAN_NOT_LEADER);
    gives(0, "SELECT b FROM t", "1");
    kv_mem_fail_commit(f.store, 1, SPAN_CONFLICT, 1000000);
    fails(0, "UPDATE t SET b = b + 1 WHERE a = 1", "40001");
    kv_mem_fail_commit(f.store, 0, SPAN_OK, 0);
    gives(0, "SELECT b FROM t", "1");
}

Test(session, an_unknown_outcome_is_40003_and_never_tried_again)
{
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY)");
    kv_mem_fail_commit(f.store, 1, SPAN_UNKNOWN_OUTCOME, 1);
    fails(0, "INSERT INTO t VALUES (1)", "40003");
    cr_assert(strstr(f.c[0].hint, "SHOW TRANSACTION STATUS") != NULL);
    cr_assert_str_eq(f.c[0].detail, "");
    gives(0, "SELECT count(*) FROM t", "0");
}

/* Its id is at hand for who wants to know what became of it, also later. */
Test(session, an_unknown_outcome_tells_the_id_to_ask_with)
{
    char id[256];
    char sql[400];
    fails(0, "SHOW TRANSACTION STATUS", "22023"); /* none yet */
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY)");
    ok(0, "BEGIN");
    ok(0, "INSERT INTO t VALUES (1)");
    cr_assert_eq(sscanf(f.c[0].param, "spanlite.txn_id=%200s", id), 1);
    kv_mem_fail_commit(f.store, 1, SPAN_UNKNOWN_OUTCOME, 1);
    fails(0, "COMMIT", "40003");
    cr_assert(strchr(id, '@') != NULL && strstr(f.c[0].detail, id) != NULL, "%s: %s", id,
              f.c[0].detail);
    cr_assert(strstr(f.c[0].hint, id) != NULL, "%s", f.c[0].hint);
    gives(0, "SELECT count(*) FROM t", "0");
    snprintf(sql, sizeof sql, "committed|1700000000000000000|%s", id);
    gives(0, "SHOW TRANSACTION STATUS", sql);
    *strchr(id, '@') = '\0'; /* as SHOW LOCKS shows it */
    snprintf(sql, sizeof sql, "SHOW TRANSACTION STATUS '%s'", id);
    gives(0, sql, "committed|1700000000000000000");
    fails(1, sql, "22023"); /* another session needs the whole of it */
}

Test(session, show_takes_nothing_it_does_not_mean)
{
    static const char *const garbage[] = {
        "SHOW LOCKS WHERE x = 1",
        "SHOW CLOCKS garbage",
        "SHOW NODES garbage here",
        "SHOW RANGES WHERE 1",
        "SHOW RANGES FROM t x",
        "SHOW TRANSACTIONS foo",
        "SHOW TABLES foo",
        "SHOW COLUMNS FROM t foo",
        "SHOW INDEXES FROM t foo",
        "SHOW CREATE TABLE t foo",
        "SHOW NODES FROM t",
        "SHOW TRANSACTION STATUS '1@2' x",
        "SHOW CLUSTER SETTINGS x y",
        "SHOW RANGES FROM public.",
        "SHOW COLUMNS",
        "SHOW CLUSTER truetime.epsilon x",
    };
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY)");
    ok(0, "CREATE VIEW v AS SELECT 1");
    for (size_t i = 0; i < sizeof garbage / sizeof garbage[0]; i++) {
        fails(0, garbage[i], "42601");
    }
    fails(0, "SHOW CLUSTER no.such", "42704");
    fails(0, "SHOW RANGES FROM v", "42809");
    fails(0, "SHOW lock_timeout garbage", "42704");
    gives(0, "SHOW COLUMNS FROM public.t", "a|INT|f|t|f|f|BINARY");
    ok(0, "SHOW RANGES FROM TABLE public.t");
    ok(0, "SHOW CLUSTER SETTINGS; SHOW CLUSTER");
}

Test(session, a_conflict_in_a_block_is_40001_and_ends_it)
{
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY, b INT)");
    ok(0, "INSERT INTO t VALUES (1, 0), (2, 0)");
    ok(0, "BEGIN");
    ok(0, "UPDATE t SET b = b + 1 WHERE a = 1");
    ok(1, "UPDATE t SET b = 100 WHERE a = 1");
    fails(0, "COMMIT", "40001");
    cr_assert_eq(status(0), 'I');
    gives(0, "SELECT b FROM t WHERE a = 1", "100");
    ok(0, "BEGIN");
    ok(0, "UPDATE t SET b = 5 WHERE a = 1");
    kv_mem_fail_read(f.store, 1, SPAN_WOUNDED);
    fails(0, "UPDATE t SET b = 5 WHERE a = 2", "40001");
    cr_assert_eq(status(0), 'E');
    ok(0, "ROLLBACK");
    ok(0, "BEGIN");
    kv_mem_fail_read(f.store, 1, SPAN_WOUNDED);
    ok(0,
       "UPDATE t SET b = 6 WHERE a = 2"); /* nothing depends on the first statement: begun again */
    ok(0, "COMMIT");
    gives(0, "SELECT b FROM t WHERE a = 2", "6");
}

Test(session, read_only_blocks_read_one_timestamp_and_refuse_writes)
{
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY, b INT)");
    ok(0, "INSERT INTO t VALUES (1, 1)");
    kv_mem_advance(f.store, 10 * SEC_NS);
    ok(0, "UPDATE t SET b = 2");
    ok(0, "BEGIN READ ONLY AS OF '-5s'");
    gives(0, "SELECT b FROM t", "1");
    fails(0, "UPDATE t SET b = 3", "25006");
    ok(0, "ROLLBACK");
    ok(0, "BEGIN READ ONLY");
    gives(0, "SELECT b FROM t", "2");
    ok(1, "UPDATE t SET b = 3");
    gives(0, "SELECT b FROM t", "2");
    ok(0, "COMMIT");
    ok(0, "START TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY MAX STALENESS '2s'");
    gives(0, "SHOW transaction_read_only", "on");
    ok(0, "END");
    fails(0, "BEGIN READ ONLY AS OF TIMESTAMP '2099-01-01 00:00:00'", "22023");
    fails(0, "BEGIN READ ONLY AS OF 'yesterday'", "22007");
    fails(0, "BEGIN READ ONLY AS OF '-100000h'", "72000");
    fails(0, "BEGIN SIDEWAYS", "42601");
    ok(0, "BEGIN READ ONLY");
    fails(0, "SELECT * FROM t FOR UPDATE", "25006");
    ok(0, "ROLLBACK");
}

Test(session, updates_and_for_update_lock_what_they_return)
{
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY, b INT)");
    ok(0, "INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)");
    uint64_t before = kv_mem_update_locks(f.store);
    ok(0, "SELECT b FROM t WHERE a = 1");
    cr_assert_eq(kv_mem_update_locks(f.store), before);
    ok(0, "SELECT b FROM t WHERE a = 1 FOR UPDATE");
    cr_assert_eq(kv_mem_update_locks(f.store), before + 1);
    ok(0, "UPDATE t SET b = 9 WHERE a = 1");
    cr_assert_eq(kv_mem_update_locks(f.store), before + 2);
    ok(0, "UPDATE t SET b = 9 WHERE b = 3"); /* searched S, the one row it picked X */
    cr_assert_eq(kv_mem_update_locks(f.store), before + 3);
}

/* What stands behind FOR UPDATE counts: LIMIT works there, and the rest is refused. */
Test(session, nothing_behind_for_update_is_dropped)
{
    static const char *const locks[] = {"UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE"};
    char sql[200];
    ok(0, "CREATE TABLE w(id INT PRIMARY KEY)");
    ok(0, "INSERT INTO w VALUES (1), (2), (3)");
    for (size_t i = 0; i < sizeof locks / sizeof locks[0]; i++) {
        snprintf(sql, sizeof sql, "SELECT * FROM w FOR %s LIMIT 1", locks[i]);
        gives(0, sql, "1");
        snprintf(sql, sizeof sql, "SELECT * FROM w ORDER BY id FOR %s OF w LIMIT 2 OFFSET 1",
                 locks[i]);
        gives(0, sql, "2\n3");
        snprintf(sql, sizeof sql, "SELECT * FROM w AS x FOR %s OF w, nope", locks[i]);
        fails(0, sql, "42P01");
        snprintf(sql, sizeof sql, "SELECT * FROM w FOR %s WHERE id = 2", locks[i]);
        fails(0, sql, "42601");
        snprintf(sql, sizeof sql, "SELECT * FROM w FOR %s foo bar", locks[i]);
        fails(0, sql, "42601");
        snprintf(sql, sizeof sql, "SELECT * FROM w FOR %s SKIP LOCKED LIMIT 1", locks[i]);
        fails(0, sql, "0A000");
        snprintf(sql, sizeof sql, "SELECT * FROM w FOR %s OF w NOWAIT", locks[i]);
        fails(0, sql, "0A000");
    }
    gives(0, "SELECT * FROM w FOR UPDATE OFFSET 1", "2\n3");
    gives(0, "SELECT * FROM w FOR SHARE FETCH FIRST 1 ROW ONLY", "1");
    gives(0, "SELECT * FROM w LIMIT 1 FOR UPDATE", "1");
    gives(0,
          "SELECT * FROM w AS x, w AS y WHERE x.id = y.id LIMIT 1 FOR UPDATE OF x FOR SHARE OF y",
          "1|1");
    fails(0, "SELECT * FROM w LIMIT 1 FOR UPDATE LIMIT 1", "42601");
    fails(0, "SELECT * FROM w FOR NOTHING", "42601");
    fails(0, "EXPLAIN SELECT * FROM w FOR UPDATE SKIP LOCKED", "0A000");
    fails(0, "UPDATE w SET id = 9 WHERE id = 3 FOR UPDATE", "42601");
    fails(0, "DELETE FROM w FOR UPDATE", "42601");
    gives(0, "SELECT count(*) FROM w", "3");
    ok(0, "BEGIN READ ONLY");
    fails(0, "SELECT * FROM w FOR SHARE", "25006");
    ok(0, "ROLLBACK");
}

Test(session, begin_inside_a_message_or_a_block_keeps_its_mode)
{
    ok(0, "CREATE TABLE z(a INT PRIMARY KEY)");
    fails(0, "SELECT count(*) FROM z; BEGIN READ ONLY; INSERT INTO z VALUES (1); COMMIT", "25006");
    ok(0, "ROLLBACK");
    ok(0, "INSERT INTO z VALUES (1); BEGIN READ ONLY; SELECT count(*) FROM z; COMMIT");
    gives(0, "SELECT count(*) FROM z", "1");
    fails(0, "SELECT count(*) FROM z; BEGIN READ ONLY; CREATE TABLE y(a INT); COMMIT", "25006");
    ok(0, "ROLLBACK");
    fails(0, "SELECT count(*) FROM z; BEGIN READ ONLY AS OF '-30s'; SELECT count(*) FROM z; COMMIT",
          "25001");
    cr_assert_eq(status(0), 'I');
    ok(0, "SELECT 1; BEGIN; INSERT INTO z VALUES (2)");
    cr_assert_eq(status(0), 'T');
    ok(0, "COMMIT");
    fails(0, "SELECT 1; BEGIN SIDEWAYS", "42601");

    ok(0, "BEGIN");
    ok(0, "BEGIN ISOLATION LEVEL SERIALIZABLE, READ WRITE");
    cr_assert_str_eq(f.c[0].notice, "there is already a transaction in progress");
    fails(0, "BEGIN READ ONLY", "25001");
    cr_assert_eq(status(0), 'E');
    ok(0, "ROLLBACK");
    ok(0, "BEGIN READ ONLY");
    ok(0, "START TRANSACTION READ ONLY");
    fails(0, "BEGIN AS OF '-1s'", "25001");
    ok(0, "ROLLBACK");
    fails(0, "START", "42601");
    fails(0, "START nothing", "42601");
    fails(0, "BEGIN READ ONLY READ WRITE", "42601");
    fails(0, "BEGIN ISOLATION LEVEL READ nonsense", "42601");
    fails(0, "BEGIN ISOLATION LEVEL nonsense", "42601");
    fails(0, "BEGIN ,", "42601");
    ok(0, "BEGIN IMMEDIATE TRANSACTION; COMMIT");
}

Test(session, set_transaction_gives_the_block_its_mode_or_is_refused)
{
    ok(0, "CREATE TABLE z(a INT PRIMARY KEY)");
    kv_mem_advance(f.store, 10 * SEC_NS);
    ok(0, "INSERT INTO z VALUES (1)");
    ok(0, "SET TRANSACTION READ ONLY");
    cr_assert_str_eq(f.c[0].notice, "SET TRANSACTION can only be used in transaction blocks");
    ok(0, "BEGIN; SET TRANSACTION READ ONLY");
    fails(0, "INSERT INTO z VALUES (2)", "25006");
    ok(0, "ROLLBACK; BEGIN; INSERT INTO z VALUES (2); SET TRANSACTION READ ONLY");
    gives(0, "SHOW transaction_read_only", "on");
    fails(0, "INSERT INTO z VALUES (3)", "25006");
    ok(0,
       "ROLLBACK; BEGIN READ ONLY; SET TRANSACTION READ WRITE; INSERT INTO z VALUES (2); COMMIT");
    ok(0, "BEGIN READ ONLY; SELECT count(*) FROM z");
    fails(0, "SET TRANSACTION READ WRITE", "25001");
    ok(0, "ROLLBACK; BEGIN; SET TRANSACTION AS OF '-5s'");
    gives(0, "SELECT count(*) FROM z", "0");
    ok(0, "COMMIT; BEGIN; SELECT count(*) FROM z");
    fails(0, "SET TRANSACTION AS OF '-5s'", "25001");
    ok(0, "ROLLBACK; BEGIN; SET TRANSACTION ISOLATION LEVEL READ COMMITTED");
    gives(0, "SHOW transaction_isolation", "serializable");
    fails(0, "SET TRANSACTION ISOLATION LEVEL nonsense", "42601");
    ok(0, "ROLLBACK");
    fails(0, "SET TRANSACTION foo", "42601");
    fails(0, "SET TRANSACTION", "42601");
    fails(0, "SET TRANSACTION READ ONLY; INSERT INTO z VALUES (5)", "25006");
    gives(0, "SELECT count(*) FROM z", "2");
}

Test(session, what_stands_behind_the_end_of_a_block_counts)
{
    static const char *const ends[] = {"COMMIT", "END", "ROLLBACK", "ABORT"};
    char sql[100];
    ok(0, "CREATE TABLE z(a INT PRIMARY KEY)");
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        static const char *const good[] = {"", " WORK", " TRANSACTION", " AND NO CHAIN",
                                           " WORK AND NO CHAIN"};
        static const char *const bad[] = {" nonsense",        " WORK TRANSACTION", " AND",
                                          " AND CHAIN CHAIN", " AND NO",           " 5"};
        for (size_t k = 0; k < sizeof good / sizeof good[0]; k++) {
            snprintf(sql, sizeof sql, "%s%s", ends[i], good[k]);
            ok(0, "BEGIN");
            ok(0, sql);
            cr_assert_eq(status(0), 'I');
        }
        ok(0, "BEGIN");
        for (size_t k = 0; k < sizeof bad / sizeof bad[0]; k++) {
            snprintf(sql, sizeof sql, "%s%s", ends[i], bad[k]);
            fails(0, sql, "42601");
            cr_assert_eq(status(0), 'E', "%s", sql);
        }
        snprintf(sql, sizeof sql, "%s PREPARED 'x'", ends[i]);
        fails(0, sql, "0A000");
        ok(0, "ROLLBACK");
        snprintf(sql, sizeof sql, "%s AND CHAIN", ends[i]);
        fails(0, sql, "25P01");
        ok(0, "BEGIN READ ONLY");
        ok(0, sql);
        cr_assert_eq(status(0), 'T');
        fails(0, "INSERT INTO z VALUES (1)", "25006");
        ok(0, sql); /* the failed one ends, the next one begins */
        cr_assert_eq(status(0), 'T');
        ok(0, "ROLLBACK");
    }
    ok(0, "BEGIN; INSERT INTO z VALUES (1); COMMIT AND CHAIN");
    gives(1, "SELECT count(*) FROM z", "1");
    ok(0, "INSERT INTO z VALUES (2); ROLLBACK AND CHAIN");
    ok(0, "INSERT INTO z VALUES (3); COMMIT");
    gives(1, "SELECT group_concat(a) FROM z", "1,3");
    ok(0, "BEGIN; SAVEPOINT a");
    fails(0, "ROLLBACK TO a b", "42601");
    fails(0, "ROLLBACK TO SAVEPOINT", "42601");
    ok(0, "ROLLBACK TO SAVEPOINT a; COMMIT");
}

/* A setting that promises something keeps it or is refused. */
Test(session, settings_that_promise_something_keep_it_or_are_refused)
{
    static const char *const refused[][2] = {
        {"SET timezone = 'Europe/Berlin'", "0A000"},
        {"SET TIME ZONE 'PST8PDT'", "0A000"},
        {"SET TIME ZONE 3", "0A000"},
        {"SET datestyle = 'German'", "0A000"},
        {"SET datestyle = 'SQL, DMY'", "0A000"},
        {"SET bytea_output = 'escape'", "0A000"},
        {"SET standard_conforming_strings = off", "0A000"},
        {"SET standard_conforming_strings = 7", "22023"},
        {"SET transaction_isolation = 'nonsense'", "22023"},
        {"SET default_transaction_read_only = maybe", "22023"},
        {"SET lock_timeout = 'soon'", "22023"},
        {"SET idle_session_timeout = 'x'", "22023"},
        {"SET client_min_messages = loud", "22023"},
        {"SET default_tablespace = 'x'", "0A000"},
        {"RESET ALL foo", "42601"},
        {"RESET lock_timeout foo", "42601"},
        {"DISCARD foo", "42601"},
        {"DISCARD ALL foo", "42601"},
        {"DEALLOCATE ALL foo", "42601"},
        {"SET SESSION CHARACTERISTICS AS TRANSACTION READ nonsense", "42601"},
        {"SET SESSION CHARACTERISTICS foo", "42601"},
        {"SET SESSION CHARACTERISTICS AS TRANSACTION AS OF '-5s'", "0A000"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        fails(0, refused[i][0], refused[i][1]);
    }
    gives(0, "SHOW timezone", "Etc/UTC");
    ok(0, "SET TIME ZONE 'UTC'; SET TIME ZONE LOCAL; SET timezone = 'Etc/GMT'; SET TIME ZONE 0");
    ok(0, "SET TIME ZONE INTERVAL '+00:00' HOUR TO MINUTE; SET datestyle TO iso, dmy");
    ok(0, "SET search_path = a, public");
    cr_assert_str_eq(f.c[0].notice, "schema \"a\" does not exist: every table is in schema public");
    f.c[0].notice[0] = '\0';
    ok(0, "SET client_min_messages = error; SET search_path = a; RESET client_min_messages");
    cr_assert_str_eq(f.c[0].notice, "");
    ok(0, "SET default_transaction_isolation TO 'read committed'");
    gives(0, "SHOW default_transaction_isolation", "serializable");

    ok(0, "CREATE TABLE z(a INT PRIMARY KEY)");
    ok(0, "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY");
    gives(0, "SHOW default_transaction_read_only", "on");
    gives(0, "SHOW transaction_read_only", "on");
    fails(0, "INSERT INTO z VALUES (1)", "25006");
    fails(0, "CREATE INDEX zi ON z(a)", "25006");
    fails(0, "TRUNCATE z", "25006");
    fails(0, "ALTER TABLE z SPLIT AT VALUES (5)", "25006");
    fails(0, "SELECT * FROM z FOR UPDATE", "25006");
    fails(0, "SELECT 1; INSERT INTO z VALUES (1)", "25006");
    gives(0, "SELECT count(*) FROM z", "0");
    ok(0, "BEGIN READ WRITE; INSERT INTO z VALUES (1); COMMIT");
    ok(0, "SET default_transaction_read_only = 0");
    ok(0, "INSERT INTO z VALUES (2)");

    ok(0, "SET lock_timeout = '50ms'");
    kv_mem_fail_read(f.store, 1, SPAN_DEADLINE);
    fails(0, "SELECT * FROM z WHERE a = 1", "55P03");
    cr_assert_str_eq(f.c[0].message, "canceling statement due to lock timeout");
    kv_mem_fail_read(f.store, 0, SPAN_OK);

    const struct pg_session_ops *ops = f.c[0].session.ops;
    f.mono_ns = 1000 * SEC_NS;
    ok(0, "SET idle_session_timeout = '5s'");
    cr_assert(ops->idle_check(f.c[0].session.impl, f.mono_ns + 4 * SEC_NS, &f.c[0].sink));
    cr_assert_not(ops->idle_check(f.c[0].session.impl, f.mono_ns + 6 * SEC_NS, &f.c[0].sink));
    cr_assert_str_eq(f.c[0].code, "57P05");
}

/* What a driver says of itself at start-up refuses no connection: it is told what is so. */
Test(session, a_time_zone_at_start_up_is_answered_with_utc)
{
    struct span_error err = {0};
    cr_assert(sql_session_set(f.session[0], "TimeZone", "Europe/Berlin", &err), "%s", err.text);
    cr_assert(sql_session_set(f.session[0], "DateStyle", "German", &err), "%s", err.text);
    cr_assert_not(sql_session_set(f.session[0], "client_encoding", "LATIN1", &err));
    cr_assert_not(sql_session_set(f.session[0], "nosuch", "1", &err));
    gives(0, "SHOW timezone", "Etc/UTC");
    gives(0, "SHOW datestyle", "ISO, MDY");
    gives(0, "SELECT 1", "1");
}

Test(session, settings_follow_their_transaction)
{
    ok(0, "SET lock_timeout = '1s'");
    ok(0, "BEGIN; SET LOCAL lock_timeout = '2s'");
    gives(0, "SHOW lock_timeout", "2s");
    ok(0, "COMMIT");
    gives(0, "SHOW lock_timeout", "1s");
    ok(0, "BEGIN; SET lock_timeout = '3s'; SET LOCAL lock_timeout = '4s'; COMMIT");
    gives(0, "SHOW lock_timeout", "3s");
    ok(0, "BEGIN; SET LOCAL lock_timeout = '4s'; SET lock_timeout = '5s'; COMMIT");
    gives(0, "SHOW lock_timeout", "5s");
    ok(0, "BEGIN; SET lock_timeout = '6s'; SET application_name = 'x'; ROLLBACK");
    gives(0, "SHOW lock_timeout", "5s");
    cr_assert_str_eq(f.c[0].param, "application_name=");
    ok(0, "BEGIN; SET lock_timeout = '6s'; SAVEPOINT a; SET lock_timeout = '7s'; SET LOCAL "
          "statement_timeout = '9s'; ROLLBACK TO a");
    gives(0, "SHOW lock_timeout", "6s");
    gives(0, "SHOW statement_timeout", "0");
    ok(0, "COMMIT");
    gives(0, "SHOW lock_timeout", "6s");
    fails(0, "SET lock_timeout = '8s'; SELECT nosuch", "42703");
    gives(0, "SHOW lock_timeout", "6s");
    ok(0, "SET LOCAL lock_timeout = '8s'");
    cr_assert_str_eq(f.c[0].notice, "SET LOCAL can only be used in transaction blocks");
    gives(0, "SHOW lock_timeout", "6s");
    ok(0, "BEGIN; RESET lock_timeout; ROLLBACK");
    gives(0, "SHOW lock_timeout", "6s");
}

Test(session, settings_are_remembered_checked_and_reported)
{
    ok(0, "SET application_name = 'my app'");
    cr_assert_str_eq(f.c[0].param, "application_name=my app");
    gives(0, "SHOW application_name", "my app");
    gives(0, "SELECT current_setting('application_name')", "my app");
    ok(0, "SET TIME ZONE 'UTC'; SET extra_float_digits = 3; SET SESSION search_path TO a, public");
    gives(0, "SHOW search_path", "a, public");
    gives(0, "SHOW TRANSACTION ISOLATION LEVEL", "serializable");
    fails(0, "SET nosuch = 1", "42704");
    fails(0, "SHOW nosuch", "42704");
    fails(0, "SET server_version = '9'", "55P02");
    fails(0, "SET client_encoding = 'LATIN1'", "0A000");
    fails(0, "SET statement_timeout = 'soon'", "22023");
    ok(0, "RESET ALL");
    gives(0, "SHOW application_name", "");
    ok(0, "SET CLUSTER truetime.epsilon = '4ms'");
    fails(0, "SET CLUSTER no.such = 1", "22023");
    ok(0, "DISCARD ALL");
}

Test(session, a_statement_ends_at_its_timeout_and_the_session_lives)
{
    ok(0, "SET statement_timeout = '50ms'");
    fails(0,
          "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c",
          "57014");
    fails(0, "SELECT pg_sleep(5)", "57014");
    ok(0, "SET statement_timeout = 0");
    gives(0, "SELECT 1", "1");
}

/* A wait that ends without the client's wish is told from one that it set a limit to. */
Test(session, what_a_statement_waited_for_in_vain_has_a_code_of_its_own)
{
    static const struct {
        span_status st;
        const char *code;
        const char *message;
    } cases[] = {
        {SPAN_DEADLINE, "55P03", "injected"},
        {SPAN_UNAVAILABLE, "57P03", "injected"},
        {SPAN_CLOCK, "57P03", "injected"},
        {SPAN_CANCELED, "57014", "canceling statement due to user request"},
    };

    ok(0, "CREATE TABLE t(a INT PRIMARY KEY)");
    ok(0, "INSERT INTO t VALUES (1)");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        kv_mem_fail_read(f.store, 1, cases[i].st);
        fails(0, "SELECT * FROM t WHERE a = 1", cases[i].code); /* not run again: it would pass */
        cr_assert_str_eq(f.c[0].message, cases[i].message);
        kv_mem_fail_read(f.store, 0, SPAN_OK);
    }
    ok(0, "SET statement_timeout = '1h'");
    kv_mem_fail_read(f.store, 1, SPAN_DEADLINE); /* the range gives up a little earlier */
    fails(0, "SELECT * FROM t WHERE a = 1", "57014");
    cr_assert_str_eq(f.c[0].message, "canceling statement due to statement timeout");
    kv_mem_fail_read(f.store, 1, SPAN_UNAVAILABLE);
    fails(0, "SELECT * FROM t WHERE a = 1", "57P03");
}

Test(session, an_idle_block_is_ended_with_its_connection)
{
    const struct pg_session_ops *ops = f.c[0].session.ops;
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY)");
    f.mono_ns = 1000 * SEC_NS;
    ok(0, "SET idle_in_transaction_session_timeout = '5s'");
    cr_assert(ops->idle_check(f.c[0].session.impl, f.mono_ns + 60 * SEC_NS, &f.c[0].sink),
              "no block: stays");
    ok(0, "BEGIN");
    ok(0, "INSERT INTO t VALUES (1)");
    cr_assert(ops->idle_check(f.c[0].session.impl, f.mono_ns + 4 * SEC_NS, &f.c[0].sink));
    cr_assert_not(ops->idle_check(f.c[0].session.impl, f.mono_ns + 6 * SEC_NS, &f.c[0].sink));
    cr_assert_str_eq(f.c[0].code, "25P03");
    gives(1, "SELECT count(*) FROM t", "0");
}

Test(session, what_would_leave_the_session_is_refused)
{
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY, b INT)");
    ok(0, "INSERT INTO t VALUES (1, 1)");
    fails(0, "ATTACH 'x.db' AS x", "0A000");
    fails(0, "PRAGMA table_info(t)", "0A000");
    fails(0, "SELECT * FROM sqlite_master", "42501");
    fails(0, "SELECT * FROM sqlite_temp_master", "42501");
    fails(0, "SELECT * FROM pragma_table_info('t')", "42501");
    fails(0, "SELECT load_extension('x')", "42501");
    fails(0, "SELECT printf('%.*c', 100000000, 'x')", "54000");
    fails(0, "SELECT \"nosuch\"", "42703");
    fails(0, "UPDATE temp.t SET b = 2", "42P01");
    fails(0, "COPY t FROM STDIN", "0A000");
    fails(0, "LOCK TABLE t", "0A000");
    fails(0, "CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; END", "0A000");
    cr_assert_neq(f.c[0].hint[0], '\0');
    ok(0, "UPDATE t SET b = 3");
    fails(0, "SELECT (SELECT count(*) FROM \"~upd t\")", "42501");
    gives(0, "SELECT b FROM main.t", "3"); /* main. is public: never the working set */
    gives(0, "SELECT printf('%5.2f|%-4s|%d', 1.234, 'ab', 42)", " 1.23|ab  |42");
    gives(0, "SELECT printf('%.3c|%5.2c|%-3c|%c|%c', 'xy', 'a', 'é', '漢', '🙂')",
          "xxx|   aa|é  |漢|🙂");
    ok(0, "VACUUM");
    ok(0, "ANALYZE t");
}

Test(session, errors_point_at_the_place_in_the_text_the_client_sent)
{
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY)");
    fails(0, "SELECT a, nosuch FROM public.t", "42703");
    cr_assert_eq(f.c[0].position, 11);
    fails(0, "SELECT 'é', nosuch::int FROM t WHERE a = 1", "42703");
    cr_assert_eq(f.c[0].position, 13);
    fails(0, "SELECT 1; SELEC 2", "42601");
    cr_assert_eq(f.c[0].position, 11);
    fails(0, "SELECT 'abc", "42601");
}

Test(session, functions_clients_expect_are_there)
{
    gives(0,
          "SELECT version() LIKE 'PostgreSQL 15%', current_database(), current_schema(), "
          "current_user, "
          "pg_backend_pid()",
          "1|bank|public|ann|41");
    gives(0, "SELECT now() = now(), random() = random()", "1|0");
    ok(0, "SELECT gen_random_uuid(), CURRENT_TIMESTAMP, txid_current()");
    cr_assert_str_eq(sql_client_cell(&f.c[0], 0, 1), "2023-11-14 22:13:20",
                     "the store's time, not the machine's");
}

/* --- extended protocol --- */

static struct pg_stmt *parse(const char *sql)
{
    struct pg_stmt *st = NULL;
    sql_client_clear(&f.c[0]);
    cr_assert(
        f.c[0].session.ops->parse(f.c[0].session.impl, slice_str(sql), NULL, 0, &f.c[0].sink, &st),
        "%s: %s", sql, f.c[0].message);
    return st;
}

static struct pg_portal *bind(struct pg_stmt *st, const char *const *values, size_t n)
{
    struct pg_value v[8];
    struct pg_portal *p = NULL;
    for (size_t i = 0; i < n; i++) {
        v[i].is_null = values[i] == NULL;
        v[i].text = slice_str(values[i] == NULL ? "" : values[i]);
    }
    cr_assert(f.c[0].session.ops->bind(f.c[0].session.impl, st, v, n, &f.c[0].sink, &p), "%s",
              f.c[0].message);
    return p;
}

static bool execute(struct pg_portal *p, uint32_t max)
{
    return f.c[0].session.ops->execute(f.c[0].session.impl, p, max, &f.c[0].sink);
}

static bool sync(bool failed)
{
    return f.c[0].session.ops->sync(f.c[0].session.impl, failed, &f.c[0].sink);
}

Test(session, parameters_go_by_number_and_take_their_column_s_type)
{
    const struct pg_session_ops *ops = f.c[0].session.ops;
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY, b TEXT, c REAL)");
    struct pg_stmt *ins = parse("INSERT INTO t(b, a, c) VALUES ($2, $1, $3)");
    struct pg_portal *p = bind(ins, (const char *const[]){"7", "seven", NULL}, 3);
    cr_assert(execute(p, 0));
    cr_assert(sync(false));
    cr_assert_str_eq(f.c[0].tags, "INSERT 0 1");
    ops->portal_free(f.c[0].session.impl, p);
    ops->stmt_free(f.c[0].session.impl, ins);
    gives(1, "SELECT a, typeof(a), b, c FROM t", "7|integer|seven|NULL");
    struct pg_stmt *sel = parse("SELECT b FROM t WHERE a = $1::int AND b = $2");
    cr_assert(ops->describe_stmt(f.c[0].session.impl, sel, &f.c[0].sink));
    cr_assert_eq(f.c[0].columns, 1);
    cr_assert_eq(f.c[0].types[0], 25);
    uint64_t reads = kv_mem_reads(f.store);
    p = bind(sel, (const char *const[]){"7", "seven"}, 2);
    ops->stmt_free(f.c[0].session.impl, sel); /* a portal outlives its statement */
    cr_assert(execute(p, 0));
    cr_assert_str_eq(sql_client_text(&f.c[0]), "seven");
    cr_assert_eq(kv_mem_reads(f.store), reads + 1, "one get by key");
    ops->portal_free(f.c[0].session.impl, p);
    struct pg_value one = {.text = slice_str("1")};
    struct pg_stmt *two = parse("SELECT $1, $2");
    cr_assert_not(ops->bind(f.c[0].session.impl, two, &one, 1, &f.c[0].sink, &p));
    cr_assert_str_eq(f.c[0].code, "08P01");
    ops->stmt_free(f.c[0].session.impl, two);
}

Test(session, a_portal_gives_its_rows_in_parts)
{
    const struct pg_session_ops *ops = f.c[0].session.ops;
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY)");
    ok(0, "INSERT INTO t VALUES (1), (2), (3), (4), (5)");
    ok(0, "BEGIN");
    struct pg_stmt *st = parse("SELECT a FROM t ORDER BY a");
    struct pg_portal *p = bind(st, NULL, 0);
    cr_assert(ops->describe_portal(f.c[0].session.impl, p, &f.c[0].sink));
    cr_assert(execute(p, 2));
    cr_assert(f.c[0].suspended);
    cr_assert_str_eq(sql_client_text(&f.c[0]), "1\n2");
    cr_assert(execute(p, 2));
    cr_assert(execute(p, 2));
    cr_assert_str_eq(sql_client_text(&f.c[0]), "1\n2\n3\n4\n5");
    cr_assert_str_eq(f.c[0].tags, "SELECT 1");
    ops->portal_free(f.c[0].session.impl, p);
    ops->stmt_free(f.c[0].session.impl, st);
    ok(0, "COMMIT");
}

Test(session, a_portal_notices_that_its_table_changed)
{
    const struct pg_session_ops *ops = f.c[0].session.ops;
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY)");
    ok(0, "INSERT INTO t VALUES (1), (2), (3)");
    struct pg_stmt *st = parse("SELECT * FROM t");
    struct pg_portal *p = bind(st, NULL, 0);
    cr_assert(execute(p, 2), "rows in parts also without Describe");
    cr_assert_str_eq(sql_client_text(&f.c[0]), "1\n2");
    ops->portal_free(f.c[0].session.impl, p);
    p = bind(st, NULL, 0);
    cr_assert(ops->describe_portal(f.c[0].session.impl, p, &f.c[0].sink));
    ok(1, "DROP TABLE t; CREATE TABLE t(a INT PRIMARY KEY, b INT)");
    cr_assert_not(execute(p, 0));
    cr_assert_str_eq(f.c[0].code, "0A000");
    ops->portal_free(f.c[0].session.impl, p);
    ops->stmt_free(f.c[0].session.impl, st);
}

Test(session, a_pipeline_is_one_transaction_until_sync)
{
    const struct pg_session_ops *ops = f.c[0].session.ops;
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY)");
    struct pg_stmt *st = parse("INSERT INTO t VALUES ($1)");
    struct pg_portal *p1 = bind(st, (const char *const[]){"1"}, 1);
    struct pg_portal *p2 = bind(st, (const char *const[]){"1"}, 1);
    cr_assert(execute(p1, 0));
    cr_assert_eq(status(0), 'I');
    cr_assert_not(execute(p2, 0));
    cr_assert_str_eq(f.c[0].code, "23505");
    cr_assert(sync(true));
    gives(1, "SELECT count(*) FROM t", "0");
    struct pg_portal *p3 = bind(st, (const char *const[]){"3"}, 1);
    kv_mem_fail_commit(f.store, 1, SPAN_CONFLICT, 2);
    cr_assert(execute(p3, 0));
    cr_assert(sync(false), "one write alone is tried again at Sync");
    gives(1, "SELECT a FROM t", "3");
    ops->portal_free(f.c[0].session.impl, p1);
    ops->portal_free(f.c[0].session.impl, p2);
    ops->portal_free(f.c[0].session.impl, p3);
    ops->stmt_free(f.c[0].session.impl, st);
}

Test(session, show_tells_about_schema_ranges_and_transactions)
{
    ok(0, "CREATE TABLE t(a INT, b TEXT NOT NULL DEFAULT 'x', PRIMARY KEY (a, b))");
    ok(0, "CREATE INDEX tb ON t(b DESC)");
    ok(0, "ALTER TABLE t SPLIT AT VALUES (10, 'm'), (20)");
    gives(0, "SHOW TABLES", "t|table|1024|2");
    kv_mem_fail_read(f.store, 1, SPAN_NOT_LEADER);
    fails(0, "SHOW TABLES", "40001"); /* not an empty list */
    gives(0, "SHOW COLUMNS FROM t", "a|INT|f|t|f|f|BINARY\nb|TEXT|f|t|t|f|BINARY");
    gives(0, "SHOW INDEXES FROM t", "t_pkey|a, b|t|t|public\ntb|b DESC|f|f|public");
    gives(0, "SHOW RANGES FROM t", "1||/t/10/'m'\n2|/t/10/'m'|/t/20\n3|/t/20|NULL");
    ok(0, "SHOW CREATE TABLE t");
    cr_assert(strstr(sql_client_text(&f.c[0]), "PRIMARY KEY (a, b)") != NULL);
    gives(0, "SHOW TRANSACTION STATUS '1@mem'", "committed|1700000000000000000");
    fails(0, "SHOW TRANSACTION STATUS '1-2-3'", "22023");
    cr_assert(strstr(f.c[0].hint, "@key") != NULL, "%s", f.c[0].hint);
    fails(0, "SHOW COLUMNS FROM nosuch", "42P01");
    ok(0, "SHOW NODES");
    ok(0, "ALTER RANGE 1 TRANSFER LEADER TO 2");
    fails(0, "ALTER RANGE 0 TRANSFER LEADER TO 2", "42704");
    gives(0, "EXPLAIN SELECT * FROM t WHERE a = 1", "SCAN t USING PRIMARY KEY (a=?)");
}

Test(session, a_client_that_is_gone_ends_the_statement)
{
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY)");
    ok(0, "INSERT INTO t VALUES (1), (2)");
    f.c[0].gone = true;
    cr_assert_not(sql_client_query(&f.c[0], "SELECT * FROM t"));
    cr_assert_str_eq(f.c[0].code, "", "no error is sent to it");
    f.c[0].gone = false;
    gives(0, "SELECT count(*) FROM t", "2");
}

/* Statements with pieces cut out, doubled, swapped and damaged: never a crash, a leak or a lost
 * session. */
Test(session, any_text_is_survived)
{
    static const char *const corpus[] = {
        "SELECT a, b FROM t WHERE a = 1 AND b IN ('x', $1::text) ORDER BY a DESC LIMIT 2 OFFSET 1 "
        "FOR UPDATE",
        "INSERT INTO t(a, b) VALUES (5, 'y'), (6, E'z\\n') ON CONFLICT (a) DO UPDATE SET b = "
        "excluded.b RETURNING *",
        "WITH q AS (SELECT a FROM t) UPDATE t AS x SET b = (SELECT max(b) FROM t) FROM q WHERE x.a "
        "= q.a RETURNING x.a",
        "DELETE FROM public.t WHERE rowid > 3 AND b LIKE 'x%' RETURNING b",
        "CREATE TABLE u(a INTEGER PRIMARY KEY, b TEXT UNIQUE, c INT AS (a * 2) VIRTUAL, CHECK (a > "
        "0)) WITH (x = 1)",
        "CREATE UNIQUE INDEX IF NOT EXISTS ui ON t USING btree (b COLLATE NOCASE DESC, a)",
        "CREATE VIEW v(x, y) AS SELECT a, b FROM t; SELECT * FROM v JOIN t ON v.x = t.a",
        "DROP TABLE IF EXISTS u, v CASCADE; DROP INDEX ui; DROP VIEW v; TRUNCATE TABLE t",
        "BEGIN READ ONLY AS OF TIMESTAMP '2023-11-14 22:13:20.5+01:00'; SELECT 1; COMMIT",
        "BEGIN; SAVEPOINT s; UPDATE t SET a = a + 1; ROLLBACK TO s; RELEASE s; END",
        "SET TIME ZONE INTERVAL '+00:00' HOUR TO MINUTE; SHOW TRANSACTION STATUS '1@2'; SHOW "
        "COLUMNS FROM t",
        "ALTER TABLE t SPLIT AT VALUES (1), ('2'), (3.5); ALTER RANGE 1 TRANSFER LEADER TO NODE 2",
        "EXPLAIN (VERBOSE) SELECT count(*) FROM t GROUP BY b HAVING count(*) > 1; SET CLUSTER a.b "
        "= 'c'",
        "REPLACE INTO t SELECT a, printf('%-5s|%.3f', b, a) FROM t WHERE a BETWEEN 1 AND $2; "
        "VALUES (1, $$a$$)",
    };
    static const size_t n = sizeof corpus / sizeof corpus[0];
    struct rng r;
    rng_init(&r, 2024);
    ok(0, "CREATE TABLE t(a INT, b TEXT)");
    ok(0, "INSERT INTO t VALUES (1, 'x'), (2, 'xy')");
    ok(0, "SET statement_timeout = '200ms'");
    for (int round = 0; round < 4000; round++) {
        struct buf b = {0};
        const char *one = corpus[rng_below(&r, n)];
        const char *two = corpus[rng_below(&r, n)];
        size_t cut = rng_below(&r, strlen(one) + 1);
        size_t from = rng_below(&r, strlen(two) + 1);
        buf_append(&b, one, cut);
        if (round % 2 == 0) {
            buf_append_str(&b, one + cut);
        } else {
            buf_append_str(&b, two + from);
        }
        for (uint64_t k = rng_below(&r, 3); k > 0 && b.size > 0; k--) {
            static const char bytes[] = "();,'\"$:.*=- 1ax\x80";
            b.data[rng_below(&r, b.size)] = (uint8_t)bytes[rng_below(&r, sizeof bytes - 1)];
        }
        const struct pg_session_ops *ops = f.c[0].session.ops;
        sql_client_clear(&f.c[0]);
        if (round % 3 == 0) {
            struct pg_stmt *st = NULL;
            struct pg_portal *p = NULL;
            struct pg_value v[4] = {{.text = slice_str("7")},
                                    {.is_null = true},
                                    {.text = slice_str("x")},
                                    {.is_null = true}};
            void *s = f.c[0].session.impl;
            bool fine = ops->parse(s, buf_slice(&b), NULL, 0, &f.c[0].sink, &st) &&
                        ops->bind(s, st, v, 2, &f.c[0].sink, &p) &&
                        ops->describe_portal(s, p, &f.c[0].sink) &&
                        ops->execute(s, p, (uint32_t)rng_below(&r, 3), &f.c[0].sink);
            if (p != NULL) {
                ops->portal_free(s, p);
            }
            if (st != NULL) {
                ops->stmt_free(s, st);
            }
            fine = ops->sync(s, !fine, &f.c[0].sink) && fine;
            cr_assert(fine || f.c[0].code[0] != '\0', "a failure names its code");
        } else {
            bool fine = ops->simple(f.c[0].session.impl, buf_slice(&b), &f.c[0].sink);
            cr_assert(fine || f.c[0].code[0] != '\0', "a failure names its code: %s", buf_cstr(&b));
        }
        cr_assert_str_neq(f.c[0].code, "XX000", "%s: %s", buf_cstr(&b), f.c[0].message);
        if (status(0) != 'I' && round % 7 == 0) {
            ok(0, "ROLLBACK");
        }
        buf_deinit(&b);
    }
    if (status(0) != 'I') {
        ok(0, "ROLLBACK");
    }
    gives(0, "SELECT 1", "1");
}

Test(session, a_parameter_without_a_value_is_named)
{
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY)");
    fails(0, "SELECT $1", "42P02");
    cr_assert_str_eq(f.c[0].message, "there is no parameter $1");
    cr_assert_eq(f.c[0].position, 8);
    fails(0, "SELECT 1; SELECT 1, $3, $2", "42P02");
    cr_assert_str_eq(f.c[0].message, "there is no parameter $3");
    fails(0, "SELECT $0", "42P02");
    fails(0, "INSERT INTO t VALUES ($1)", "42P02");
    fails(0, "EXPLAIN SELECT $1", "42P02");
    fails(0, "CREATE VIEW v AS SELECT $1", "42P02");
    gives(0, "SELECT count(*), '$1' FROM t", "0|$1");
    ok(0, "BEGIN");
    fails(0, "SELECT $1", "42P02");
    fails(0, "SELECT 1", "25P02");
    ok(0, "ROLLBACK");
}

Test(session, other_spellings_of_upsert_are_told_the_one_that_works)
{
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY, b INT)");
    fails(0, "UPSERT t VALUES (1, 2)", "0A000");
    cr_assert(strstr(f.c[0].hint, "ON CONFLICT") != NULL, "%s", f.c[0].hint);
    fails(0, "MERGE INTO t USING t AS u ON t.a = u.a WHEN MATCHED THEN DELETE", "0A000");
    fails(0, "INSERT INTO t VALUES (1, 2) ON CONFLICT ON CONSTRAINT t_pkey DO NOTHING", "0A000");
    cr_assert(strstr(f.c[0].hint, "columns") != NULL, "%s", f.c[0].hint);
    ok(0, "INSERT INTO t VALUES (1, 2) ON CONFLICT (a) DO UPDATE SET b = excluded.b");
    ok(0, "INSERT INTO t VALUES (1, 3) ON CONFLICT (a) DO UPDATE SET b = excluded.b");
    gives(0, "SELECT * FROM t", "1|3");
}

Test(session, upsert_takes_the_place_of_the_row_with_its_key)
{
    ok(0,
       "CREATE TABLE t(a INT, k TEXT, b INT DEFAULT 7, c INT, d AS (c * 2) STORED, u INT UNIQUE, "
       "PRIMARY KEY (a, k))");
    ok(0, "UPSERT INTO t VALUES (1, 'x', 1, 1, 5), (2, 'y', 2, 2, 6)");
    cr_assert_str_eq(f.c[0].tags, "INSERT 0 2");
    ok(0, "UPSERT INTO public.t VALUES (1, 'x', 10, 10, 5)");
    ok(0, "UPSERT INTO t (a, k, c) VALUES (2, 'y', 20), (3, 'z', 30)");
    gives(0, "SELECT a, b, c, d, u FROM t", "1|10|10|20|5\n2|2|20|40|6\n3|7|30|60|NULL");
    gives(0, "UPSERT INTO t (k, a, b) VALUES ('z', 3, 8) RETURNING b, c", "8|30");
    ok(0, "UPSERT INTO t (a, k, b) SELECT a, k, b + 1 FROM t ORDER BY a");
    ok(0, "UPSERT INTO t (a, k) VALUES (1, 'x')"); /* nothing but its key */
    gives(0, "SELECT group_concat(b) FROM t", "11,3,9");
    fails(0, "UPSERT INTO t VALUES (9, 'q', 0, 0, 5)", "23505"); /* another row's unique value */
    fails(0, "UPSERT INTO nosuch VALUES (1)", "42P01");
    fails(0, "UPSERT INTO t VALUES (1, 'x')", "42601");
    fails(0, "UPSERT INTO t DEFAULT VALUES", "0A000");
    fails(0, "UPSERT INTO t VALUES (1, 'x', 1, 1, 1) ON CONFLICT DO NOTHING", "0A000");
    ok(0,
       "BEGIN; UPSERT INTO t (a, k, b) VALUES (1, 'x', 99); SELECT b FROM t WHERE a = 1; ROLLBACK");
    ok(0, "BEGIN READ ONLY");
    fails(0, "UPSERT INTO t (a, k) VALUES (5, 'x')", "25006");
    cr_assert_eq(status(0), 'E');
    ok(0, "ROLLBACK");
    ok(0, "CREATE TABLE r(id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE h(v TEXT)");
    ok(0, "UPSERT INTO r VALUES (1, 'a'); UPSERT INTO r VALUES (1, 'b'); UPSERT INTO r (v) VALUES "
          "('c'); UPSERT INTO h VALUES ('x'); UPSERT INTO h VALUES ('x')");
    gives(0, "SELECT group_concat(v) FROM r", "b,c");
    gives(0, "SELECT count(*) FROM h", "2");
    const struct pg_session_ops *ops = f.c[0].session.ops;
    struct pg_stmt *st = parse("UPSERT INTO r VALUES ($2, $1) RETURNING v");
    cr_assert(ops->describe_stmt(f.c[0].session.impl, st, &f.c[0].sink));
    cr_assert_eq(f.c[0].columns, 1);
    struct pg_portal *p = bind(st, (const char *const[]){"w", "1"}, 2);
    cr_assert(execute(p, 0));
    cr_assert_str_eq(sql_client_text(&f.c[0]), "w");
    cr_assert(sync(true), "a pipeline's failure undoes it");
    gives(0, "SELECT v FROM r WHERE id = 1", "b");
    ops->portal_free(f.c[0].session.impl, p);
    ops->stmt_free(f.c[0].session.impl, st);
}

/* A syntax error that is a known word of PostgreSQL says so, and what to write instead. */
Test(session, known_words_of_other_systems_are_named)
{
    static const char *const refused[] = {
        "SELECT * FROM t AS OF '-5s'",
        "SELECT * FROM t AS OF SYSTEM TIME '-5s'",
        "TABLE t",
        "CREATE TABLE p (a INT PRIMARY KEY) PARTITION BY RANGE (a)",
        "CREATE TABLE p (a INT PRIMARY KEY) INHERITS (t)",
        "CREATE TABLE p (a INT PRIMARY KEY) TABLESPACE x",
        "CREATE TABLE p (a INT PRIMARY KEY) WITH (fillfactor=3)",
        "CREATE TABLE p (a INT PRIMARY KEY) WITH (fillfactor=100) WITH (x=1)",
        "CREATE TABLE p (LIKE t)",
        "CREATE TABLE p (a INT PRIMARY KEY, LIKE t INCLUDING ALL)",
        "CREATE TABLE p (a INT PRIMARY KEY, b INT UNIQUE DEFERRABLE INITIALLY DEFERRED)",
        "CREATE INDEX ti ON t(b) INCLUDE (a)",
        "SELECT EXTRACT(year FROM b) FROM t",
        "SELECT b AT TIME ZONE 'UTC' FROM t",
        "SELECT b + INTERVAL '1 day' FROM t",
        "WITH d AS (DELETE FROM t RETURNING a) SELECT * FROM d",
        "WITH d AS (INSERT INTO t VALUES (9, 9) RETURNING a) SELECT * FROM d",
        "SELECT * FROM t WHERE a = ANY (SELECT 1)",
        "SELECT DISTINCT ON (a) * FROM t",
        "SELECT ARRAY[1, 2]",
        "SELECT * INTO u FROM t",
        "SELECT * FROM t, LATERAL (SELECT t.a) AS x",
        "EXPLAIN (ANALYZE) SELECT * FROM t",
        "EXPLAIN (FORMAT JSON) SELECT * FROM t",
        "TRUNCATE t RESTART IDENTITY",
    };
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY, b INT)");
    ok(0, "INSERT INTO t VALUES (1, 1)");
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        fails(0, refused[i], "0A000");
        cr_assert_neq(f.c[0].hint[0], '\0', "%s", refused[i]);
    }
    fails(0, "SELECT ) FROM t", "42601");
    fails(0, "SELECT interval FROM FROM t", "0A000"); /* a guess: never for what SQLite takes */
    fails(0, "TRUNCATE t foo", "42601");
    ok(0, "CREATE INDEX tb ON t(b); CREATE INDEX tc ON t(b)");
    fails(0, "DROP INDEX tb, tc", "0A000");
    fails(0, "DROP INDEX tb foo", "42601");
    fails(0, "DROP INDEX IF EXISTS nosuch foo", "42601");
    ok(0, "DROP INDEX tb RESTRICT; DROP INDEX tc");
    ok(0, "UPDATE ONLY t SET b = 4 WHERE a = 1; DELETE FROM ONLY public.t AS x WHERE x.a = 2");
    gives(0, "SELECT b FROM t", "4");
    fails(0, "RESET", "42601");
    fails(0, "CHECKPOINT foo", "42601");
    fails(0, "INSERT INTO t VALUES (1)", "42601");
    cr_assert_str_eq(f.c[0].message, "table t has 2 columns but 1 values were supplied");
    ok(0, "CREATE TABLE p (a INT PRIMARY KEY NOT DEFERRABLE, \"deferrable\" INT, \"like\" INT, "
          "CHECK (a LIKE 'x' OR 1)) WITH (fillfactor=100)");
    ok(0, "SELECT a AS interval FROM t; SELECT 1 AS extract, trim('x'), position FROM (SELECT 2 AS "
          "position)");
    ok(0, "EXPLAIN (VERBOSE, COSTS OFF, FORMAT TEXT) SELECT * FROM t; EXPLAIN VERBOSE SELECT 1");
    gives(0, "SELECT count(*) FROM t", "1");
    ok(0, "TRUNCATE TABLE ONLY t CONTINUE IDENTITY CASCADE");
    gives(0, "SELECT count(*) FROM t", "0");
}

/* A list of tables of which one is wrong leaves the others as they are, also to a savepoint. */
Test(session, a_failed_drop_is_no_drop)
{
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY)");
    ok(0, "INSERT INTO t VALUES (1)");
    ok(0, "BEGIN; SAVEPOINT s");
    fails(0, "DROP TABLE t, nosuch", "42P01");
    fails(0, "ROLLBACK TO s", "0A000"); /* the session has half of it: only all of it can go */
    ok(0, "ROLLBACK");
    gives(0, "SELECT count(*) FROM t", "1");
    ok(0, "BEGIN; SAVEPOINT s");
    fails(0, "TRUNCATE t, nosuch", "42P01");
    ok(0, "ROLLBACK TO s");
    gives(0, "SELECT count(*) FROM t", "1");
    ok(0, "COMMIT");
    gives(1, "SELECT count(*) FROM t", "1");
}

Test(session, catalog_queries_are_refused_with_what_to_use_instead)
{
    static const char *const sql[] = {
        "SELECT * FROM pg_catalog.pg_class",
        "SELECT * FROM pg_class",
        "SELECT table_name FROM information_schema.tables",
        /* psql's \d */
        "SELECT n.nspname FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_namespace n ON n.oid "
        "= c.relnamespace WHERE c.relkind IN ('r','p') AND n.nspname !~ '^pg_toast' AND "
        "c.relname OPERATOR(pg_catalog.~) '^(t)$' COLLATE pg_catalog.default",
    };
    for (size_t i = 0; i < sizeof sql / sizeof sql[0]; i++) {
        fails(0, sql[i], "0A000");
        cr_assert(strstr(f.c[0].hint, "SHOW TABLES") != NULL, "%s", f.c[0].hint);
        cr_assert(strstr(f.c[0].hint, "spanlite sql") != NULL, "%s", f.c[0].hint);
    }
    gives(0, "SELECT length(pg_catalog.version()) > 0, 'pg_catalog.pg_class'",
          "1|pg_catalog.pg_class");
    ok(0, "CREATE TABLE pg_mine(a INT)");
    gives(0, "SELECT count(*) FROM pg_mine", "0");
}

Test(session, knows_the_process_number_its_client_was_told)
{
    f.c[0].session.ops->told_pid(f.c[0].session.impl, 4711);
    gives(0, "SELECT pg_backend_pid()", "4711");
}

static void shows_key(const char *bytes, size_t n, const char *text)
{
    struct table_desc *d = table_desc_new();
    struct buf out = {0};
    d->kind = DESC_TABLE;
    d->id = 1024;
    d->name = span_strdup("t");
    show_key(slice_of(bytes, n), &d, 1, &out);
    cr_assert_str_eq(buf_cstr(&out), text);
    buf_deinit(&out);
    table_desc_unref(d);
}

Test(session, system_keys_are_shown_by_name)
{
    struct buf key = {0};
    uint8_t b[SCHEMA_KEY_BYTES];
    shows_key((const char *)schema_key(b, 1024).data, SCHEMA_KEY_BYTES, "/schema version/t");
    shows_key((const char *)schema_key(b, 1025).data, SCHEMA_KEY_BYTES,
              "/schema version/table/1025");
    schema_name_key("T", &key);
    shows_key((const char *)key.data, key.size, "/system/schema/'t'");
    shows_key("\1\0\0\0\1", 5, "/system/schema");
    shows_key("\1\0\0\3\350\0\0\0\0\4\0", 11, "/system/counters/1024");
    shows_key("\1\0\0\3\350\0\1\0\0\0\1", 11, "/system/counters@own/1");
    shows_key("\1\0\0\3\351\0\0sql.x", 12, "/system/settings/'sql.x'");
    shows_key("\1\0\0\4\0\0\7", 7, "/t@7");
    buf_deinit(&key);
}

Test(session, show_says_which_nodes_did_not_answer)
{
    kv_mem_miss_nodes(f.store, "2, 3");
    ok(0, "SHOW LOCKS");
    cr_assert_str_eq(f.c[0].notice,
                     "no answer from nodes 2, 3: what only they know is missing here");
    kv_mem_miss_nodes(f.store, "2");
    ok(0, "SHOW TRANSACTIONS");
    cr_assert_str_eq(f.c[0].notice, "no answer from node 2: what only it knows is missing here");
    kv_mem_miss_nodes(f.store, NULL);
    ok(0, "SHOW LOCKS");
    cr_assert_str_eq(f.c[0].notice, "");
}

Test(session, show_works_without_the_schema_and_says_so)
{
    ok(0, "CREATE TABLE t(a INT PRIMARY KEY)");
    ok(0, "INSERT INTO t VALUES (1)");
    ok(0, "ALTER TABLE t SPLIT AT VALUES (10)");
    kv_mem_fail_read(f.store, 1, SPAN_DEADLINE);
    gives(0, "SHOW RANGES", "1||/t/10\n2|/t/10|NULL"); /* this node knows its name */
    cr_assert(strstr(f.c[0].notice, "schema cannot be read") != NULL, "%s", f.c[0].notice);
    kv_mem_fail_read(f.store, 1, SPAN_DEADLINE);
    gives(1, "SHOW RANGES", "1||/table/1024/10\n2|/table/1024/10|NULL");
    gives(1, "SHOW RANGES", "1||/t/10\n2|/t/10|NULL");
    cr_assert_str_eq(f.c[1].notice, "");
}
