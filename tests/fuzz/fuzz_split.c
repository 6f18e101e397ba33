/* SQL text: tokens, statements, the rewritten text, and offsets back. The rewritten text is SQL
 * that can be split again. */
#include "sql/split.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    return 0;
}

static void rewrite(struct sql_tokens *t, const struct sql_stmt *s, bool normalise)
{
    struct sql_rewritten r;
    struct span_error err = {0};
    struct buf value = {0};
    sql_rewritten_init(&r);
    if (sql_stmt_rewrite(t, s, normalise, &r, &err) == SPAN_OK) {
        size_t size = r.text.size;
        INVARIANT(strlen(buf_cstr(&r.text)) <= size);
        for (size_t i = 0; i < r.literal_count; i++) {
            buf_clear(&value);
            sql_literal_value(&r.literals[i], &value);
        }
        for (size_t at = 0; at <= size; at += 1 + size / 16) {
            INVARIANT(sql_source_offset(t, s, at) <= t->src.size);
        }
        if (strlen(buf_cstr(&r.text)) == size) {
            struct sql_tokens again;
            size_t bad_at = 0;
            sql_tokens_init(&again);
            INVARIANT(sql_tokenize(slice_of(r.text.data, size), &again, &bad_at) == SPAN_OK);
            sql_tokens_deinit(&again);
        }
    } else {
        INVARIANT(err.text[0] != '\0');
    }
    sql_rewritten_deinit(&r);
    buf_deinit(&value);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sql_tokens t;
    struct sql_stmt s;
    struct buf name = {0};
    size_t bad_at = 0;
    size_t at = 0;
    if (size > 16384) {
        return 0;
    }
    sql_tokens_init(&t);
    if (sql_tokenize(slice_of(data, size), &t, &bad_at) != SPAN_OK) {
        INVARIANT(bad_at <= size);
        sql_tokens_deinit(&t);
        return 0;
    }
    for (size_t i = 0; i < t.count; i++) {
        INVARIANT(t.t[i].start < t.t[i].end && t.t[i].end <= size);
        INVARIANT(i == 0 || t.t[i - 1].end <= t.t[i].start);
        buf_clear(&name);
        sql_token_name(&t, i, &name);
    }
    for (size_t before = 0; sql_stmt_next(&t, &at, &s); before = at) {
        INVARIANT(at > before && s.first <= s.last && s.last <= t.count);
        rewrite(&t, &s, false);
        rewrite(&t, &s, true);
    }
    sql_tokens_deinit(&t);
    buf_deinit(&name);
    return 0;
}

void fuzz_seeds(fuzz_emit *emit, void *ctx)
{
    static const char *const texts[] = {
        "SELECT a, b::int8 FROM public.t AS x WHERE a = $1 AND b LIKE 'x%' ORDER BY a LIMIT 5",
        "INSERT INTO t (a, b) VALUES (1, 'it''s'), (2, E'a\\nb') ON CONFLICT (a) DO UPDATE SET b = "
        "excluded.b RETURNING a",
        "UPDATE t x SET a = a + 1 WHERE id IN (SELECT id FROM u FETCH FIRST 3 ROWS ONLY);DELETE "
        "FROM t;;",
        "WITH q AS (SELECT 1) SELECT * FROM q FOR UPDATE",
        "BEGIN IDEMPOTENT 'key'; COMMIT -- end\n; /* c */ SELECT $tag$ body $tag$, x'00ff', "
        "current_user",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, \"q\"\"x\" TEXT, [br] BLOB, `bt` REAL)",
        "ALTER TABLE t SPLIT AT VALUES (1), (2)",
        "BEGIN READ ONLY AS OF '-200ms'",
        "SELECT count(*) FROM pg_catalog.pg_class c OFFSET 2 ROWS",
        "EXPLAIN SELECT 1 ILIKE 2",
        "SHOW TRANSACTION STATUS 'id'",
        "INSERT OR REPLACE INTO t DEFAULT VALUES",
        "SELECT 'a'FOR UPDATE OF t, u SKIP LOCKED FOR NO KEY UPDATE LIMIT 1 OFFSET $1",
    };
    char name[8] = "sql-a";
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        name[4] = (char)('a' + i);
        emit(ctx, name, slice_str(texts[i]));
    }
    /* As many tokens as the list has room for, and the last one begs for more. */
    static const char *const ends[] = {"FETCH FIRST", "FROM public."};
    struct buf b = {0};
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
        name[4] = (char)('y' + i);
        for (size_t other = i + 2; other < 64; other++) {
            buf_append_str(&b, other % 2 == 0 ? "1 " : "+ ");
        }
        buf_append_str(&b, ends[i]);
        emit(ctx, name, buf_slice(&b));
        buf_clear(&b);
    }
    buf_deinit(&b);
}
