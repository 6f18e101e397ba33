/* Tokens, statements, clauses and PostgreSQL's spellings. */
#include "base/rng.h"
#include "sql/split.h"

#include <criterion/criterion.h>
#include <stdio.h>

static struct buf rewritten_text;

/* First statement rewritten; "ERROR text" when refused. */
static const char *rewrite(const char *sql, bool normalise, size_t *literals)
{
    struct sql_tokens t;
    struct sql_stmt st;
    struct sql_rewritten out;
    struct span_error err = {0};
    size_t at = 0;
    size_t bad = 0;
    sql_tokens_init(&t);
    sql_rewritten_init(&out);
    buf_clear(&rewritten_text);
    if (sql_tokenize(slice_str(sql), &t, &bad) != SPAN_OK || !sql_stmt_next(&t, &at, &st)) {
        buf_printf(&rewritten_text, "BAD %zu", bad);
    } else if (sql_stmt_rewrite(&t, &st, normalise, &out, &err) != SPAN_OK) {
        buf_printf(&rewritten_text, "ERROR %s", err.text);
    } else {
        buf_append_slice(&rewritten_text, buf_slice(&out.text));
    }
    if (literals != NULL) {
        *literals = out.literal_count;
    }
    sql_tokens_deinit(&t);
    sql_rewritten_deinit(&out);
    return buf_cstr(&rewritten_text);
}

Test(split, postgresql_spellings_become_sqlites)
{
    static const char *const cases[][2] = {
        {"SELECT $2, $1", "SELECT ?2, ?1"},
        {"SELECT $1::int", "SELECT CAST(?1 AS INTEGER)"},
        {"SELECT a.b::text || 'x'", "SELECT CAST(a.b AS TEXT) || 'x'"},
        {"SELECT (1+2)::numeric(10,2)", "SELECT CAST((1+2) AS NUMERIC)"},
        {"SELECT lower(x)::varchar(3)::text", "SELECT CAST(CAST(lower(x) AS TEXT) AS TEXT)"},
        {"SELECT x::numeric(10", "ERROR syntax error: \"(\" in a cast is not closed"},
        {"SELECT x::double precision FROM t", "SELECT CAST(x AS REAL) FROM t"},
        {"SELECT a IN (1,2)::int", "SELECT a IN CAST((1,2) AS INTEGER)"},
        {"SELECT E'a\\n''b'", "SELECT 'a\n''b'"},
        {"SELECT 'a'$$b$$, E'a'E'b'$$c$$'d'", "SELECT 'a' 'b', 'a' 'b' 'c' 'd'"},
        {"SELECT 'a'public.'b', $1public.t5", "SELECT 'a' 'b', ?1 t5"},
        {"SELECT 1a, 'a'\"b\"", "SELECT 1a, 'a'\"b\""},
        {"SELECT $$it's$$, $q$a$$b$q$", "SELECT 'it''s', 'a$$b'"},
        {"SELECT * FROM public.t, main.u", "SELECT * FROM t, u"},
        {"SELECT pg_catalog.version()", "SELECT version()"},
        {"SELECT current_user, t.current_user", "SELECT current_user(), t.current_user"},
        {"SELECT a FROM t WHERE b ILIKE 'x'", "SELECT a FROM t WHERE b LIKE 'x'"},
        {"SELECT a FROM t LIMIT ALL", "SELECT a FROM t LIMIT -1"},
        {"SELECT a FROM t OFFSET 3", "SELECT a FROM t LIMIT -1 OFFSET 3"},
        {"SELECT a FROM t LIMIT 2 OFFSET 3", "SELECT a FROM t LIMIT 2 OFFSET 3"},
        {"SELECT a FROM t OFFSET 3 LIMIT $2", "SELECT a FROM t LIMIT ?2 OFFSET 3"},
        {"SELECT a FROM t OFFSET $1 ROWS", "SELECT a FROM t LIMIT -1 OFFSET ?1"},
        {"SELECT a FROM t OFFSET 3 ROWS FETCH FIRST 5 ROWS ONLY",
         "SELECT a FROM t LIMIT 5 OFFSET 3"},
        {"SELECT a FROM t OFFSET 1 ROW FETCH NEXT ROW ONLY", "SELECT a FROM t LIMIT 1 OFFSET 1"},
        {"SELECT a FROM t OFFSET 3 FETCH FIRST ROW ONLY FOR UPDATE",
         "SELECT a FROM t LIMIT 1 OFFSET 3"},
        {"SELECT a FROM t OFFSET 3 FOR SHARE LIMIT 2",
         "SELECT a FROM t LIMIT -1 OFFSET 3  LIMIT 2"},
        {"SELECT a FROM t OFFSET 1 + 1", "SELECT a FROM t LIMIT -1 OFFSET 1 + 1"},
        {"SELECT a FROM t OFFSET $0", "ERROR there is no parameter $0"},
        {"SELECT a FROM t FETCH FIRST 5 ROWS ONLY", "SELECT a FROM t LIMIT 5"},
        {"SELECT a FROM t FOR UPDATE", "SELECT a FROM t"},
        {"SELECT a FROM t FOR UPDATE LIMIT 1", "SELECT a FROM t  LIMIT 1"},
        {"SELECT 'a'FOR NO KEY UPDATE OF t FOR SHARE LIMIT 1", "SELECT 'a' LIMIT 1"},
        {"SELECT a FROM t FOR KEY SHARE OFFSET 2", "SELECT a FROM t  LIMIT -1 OFFSET 2"},
        {"UPDATE t SET a = 1 FOR UPDATE", "UPDATE t SET a = 1 FOR UPDATE"},
        {"SELECT 'a::b', \"c::d\" -- e::f", "SELECT 'a::b', \"c::d\""},
        {"SELECT ?", "ERROR parameters are written $1, $2 ...; \"?\" is not one"},
        {"SELECT $1::regclass", "ERROR type \"regclass\" in a cast is not supported"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cr_assert_str_eq(rewrite(cases[i][0], false, NULL), cases[i][1], "%s\ngave %s", cases[i][0],
                         rewrite(cases[i][0], false, NULL));
    }
}

Test(split, literals_become_parameters_only_where_that_changes_nothing)
{
    static const struct {
        const char *sql;
        const char *want;
        size_t literals;
    } cases[] = {
        {"SELECT a FROM t WHERE id = 5 ORDER BY 1", "SELECT a FROM t WHERE id = ?1 ORDER BY 1", 1},
        {"SELECT 1 + 1 FROM t WHERE x = 'y'", "SELECT 1 + 1 FROM t WHERE x = ?1", 1},
        {"INSERT INTO t VALUES (1, -2, 'x')", "INSERT INTO t VALUES (?1, -?2, ?3)", 3},
        {"UPDATE t SET a = a + 1 WHERE b = 'z'", "UPDATE t SET a = a + ?1 WHERE b = ?2", 2},
        {"SELECT a FROM t WHERE a LIKE 'b%'", "SELECT a FROM t WHERE a LIKE 'b%'", 0},
        {"SELECT a FROM t WHERE a = -9223372036854775808",
         "SELECT a FROM t WHERE a = -9223372036854775808", 0},
        {"SELECT a FROM t WHERE a = (SELECT 1)", "SELECT a FROM t WHERE a = (SELECT 1)", 0},
        {"SELECT a FROM t WHERE a = $1 AND b = 2", "SELECT a FROM t WHERE a = ?1 AND b = 2", 0},
        {"SELECT a FROM t WHERE a = 'x'5", "SELECT a FROM t WHERE a = ?1 5", 1},
        {"DELETE FROM t WHERE a IN (1, 2)", "DELETE FROM t WHERE a IN (?1, ?2)", 2},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t n = 0;
        cr_assert_str_eq(rewrite(cases[i].sql, true, &n), cases[i].want, "%s", cases[i].sql);
        cr_assert_eq(n, cases[i].literals, "%s", cases[i].sql);
    }
}

static size_t count(const char *sql, enum sql_verb *verbs)
{
    struct sql_tokens t;
    struct sql_stmt st;
    size_t at = 0;
    size_t bad = 0;
    size_t n = 0;
    sql_tokens_init(&t);
    cr_assert_eq(sql_tokenize(slice_str(sql), &t, &bad), SPAN_OK, "%s", sql);
    while (sql_stmt_next(&t, &at, &st)) {
        if (st.verb != VERB_EMPTY) {
            verbs[n++] = st.verb;
        }
    }
    sql_tokens_deinit(&t);
    return n;
}

Test(split, a_message_splits_at_semicolons_that_are_none_of_strings_and_comments)
{
    enum sql_verb v[8];
    cr_assert_eq(count("select ';'; -- ; x\n/* ; */ insert into t values (1);;end", v), 3);
    cr_assert_eq(v[0], VERB_SELECT);
    cr_assert_eq(v[1], VERB_INSERT);
    cr_assert_eq(v[2], VERB_COMMIT);
    cr_assert_eq(count(" ; ;-- nothing", v), 0);
    cr_assert_eq(
        count("CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; SELECT 2; END; SELECT 3", v), 2);
    cr_assert_eq(count("with x as (insert_not) delete from t; START TRANSACTION READ ONLY", v), 2);
    cr_assert_eq(v[0], VERB_DELETE);
    cr_assert_eq(v[1], VERB_BEGIN);
}

static void assert_token(const struct sql_tokens *t, size_t i, const char *want)
{
    struct slice s = sql_token_text(t, i);
    cr_assert(s.size == strlen(want) && memcmp(s.data, want, s.size) == 0,
              "token %zu is %.*s, expected %s", i, (int)s.size, (const char *)s.data, want);
}

Test(split, clauses_are_found_at_the_top_level_only)
{
    const char *sql = "WITH q AS (SELECT 1 FROM z WHERE 2) UPDATE OR IGNORE public.\"my t\" AS m "
                      "SET a = (SELECT x FROM "
                      "y WHERE w) FROM s WHERE m.a = s.a RETURNING a";
    struct sql_tokens t;
    struct sql_stmt st;
    size_t at = 0;
    size_t bad = 0;
    sql_tokens_init(&t);
    cr_assert_eq(sql_tokenize(slice_str(sql), &t, &bad), SPAN_OK);
    cr_assert(sql_stmt_next(&t, &at, &st));
    cr_assert(st.with);
    cr_assert_eq(st.conflict, OR_IGNORE);
    assert_token(&t, st.target, "\"my t\"");
    assert_token(&t, st.target_schema, "public");
    assert_token(&t, st.alias, "m");
    assert_token(&t, st.from + 1, "s");
    assert_token(&t, st.where + 1, "m");
    assert_token(&t, st.returning + 1, "a");
    sql_tokens_deinit(&t);

    sql = "INSERT INTO t(a, b) VALUES (1, (SELECT 2)), (3, 4) ON CONFLICT (a) DO UPDATE SET b = 1 "
          "WHERE b > 2 RETURNING *";
    sql_tokens_init(&t);
    at = 0;
    cr_assert_eq(sql_tokenize(slice_str(sql), &t, &bad), SPAN_OK);
    cr_assert(sql_stmt_next(&t, &at, &st));
    cr_assert_eq(st.values_rows, 2);
    cr_assert_neq(st.on_conflict, 0);
    assert_token(&t, st.returning + 1, "*");
    sql_tokens_deinit(&t);
}

Test(split, unterminated_text_names_where_it_began)
{
    static const struct {
        const char *sql;
        size_t at;
    } cases[] = {{"select 'abc", 7},       {"select \"abc", 7}, {"select /* abc", 6},
                 {"select $x$ abc $$", 7}, {"select x'0g'", 7}, {"select x'123'", 7},
                 {"select X'12", 7},       {"select \x01", 7}};

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct sql_tokens t;
        size_t bad = 0;
        sql_tokens_init(&t);
        cr_assert_eq(sql_tokenize(slice_str(cases[i].sql), &t, &bad), SPAN_INVALID, "%s",
                     cases[i].sql);
        cr_assert_eq(bad, cases[i].at, "%s: %zu", cases[i].sql, bad);
        sql_tokens_deinit(&t);
    }
}

Test(split, any_bytes_are_survived)
{
    static const char alphabet[] =
        "select from where values(),;'\"[]`$1:?@-*/.xE\\\n\x01\x80\xff insert into set update "
        "create table index begin end with as over fetch first rows only limit offset::int";
    struct rng r;
    rng_init(&r, 99);
    for (int n = 0; n < 20000; n++) {
        char sql[64];
        size_t len = rng_below(&r, sizeof sql);
        for (size_t i = 0; i < len; i++) {
            sql[i] = alphabet[rng_below(&r, sizeof alphabet - 1)];
        }
        struct sql_tokens t;
        struct sql_stmt st;
        struct sql_rewritten out;
        struct span_error err = {0};
        size_t at = 0;
        size_t bad = 0;
        sql_tokens_init(&t);
        sql_rewritten_init(&out);
        if (sql_tokenize(slice_of(sql, len), &t, &bad) == SPAN_OK) {
            while (sql_stmt_next(&t, &at, &st)) {
                span_status rs = sql_stmt_rewrite(&t, &st, n % 2 == 0, &out, &err);
                cr_assert(rs == SPAN_OK || rs == SPAN_INVALID || rs == SPAN_UNSUPPORTED);
                (void)sql_source_offset(&t, &st, rng_below(&r, 80));
            }
        }
        sql_tokens_deinit(&t);
        sql_rewritten_deinit(&out);
    }
}
