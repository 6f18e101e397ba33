/* Key encoding against SQLite's own ORDER BY, and back. */
#include "base/rng.h"
#include "sql/keyenc.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>

#define VALUES 120
#define ROUNDS 30

struct item {
    struct sql_value v;
    struct buf bytes; /* of text and blob */
    struct buf key;
    unsigned rank; /* place in SQLite's order, equal values share it */
};

static void random_bytes(struct rng *r, struct buf *out, bool text)
{
    static const char alphabet[] = "aAbBzZ  \x01~0159.-";
    size_t n = rng_below(r, 8);
    for (size_t i = 0; i < n; i++) {
        uint64_t x = rng_below(r, 20);
        if (x == 0 && !text) {
            buf_append_byte(out, 0);
        } else if (x == 1) {
            buf_append(out, "\xc3\xa9", 2);
        } else if (x == 2 && !text) {
            buf_append_byte(out, 0xff);
        } else {
            buf_append_byte(out, (uint8_t)alphabet[rng_below(r, sizeof alphabet - 1)]);
        }
    }
    (void)buf_cstr(out);
}

static void random_value(struct rng *r, struct item *it)
{
    static const double reals[] = {0.0,
                                   -0.0,
                                   1.5,
                                   -1.5,
                                   1e300,
                                   -1e300,
                                   9007199254740992.0,
                                   9007199254740994.0,
                                   -9007199254740992.0,
                                   9223372036854775808.0,
                                   -9223372036854775808.0,
                                   4611686018427387904.0,
                                   5e-324,
                                   -5e-324,
                                   1.0 / 3.0,
                                   HUGE_VAL,
                                   -HUGE_VAL};
    memset(it, 0, sizeof *it);
    switch (rng_below(r, 8)) {
    case 0:
        return;
    case 1:
        it->v = sql_value_int((int64_t)rng_u64(r));
        return;
    case 2:
        it->v = sql_value_int((int64_t)rng_between(r, 0, 40) - 20);
        return;
    case 3:
        it->v =
            sql_value_int((int64_t)((1ULL << rng_between(r, 50, 62)) + rng_between(r, 0, 4) - 2));
        it->v.i = rng_below(r, 2) == 0 ? -it->v.i : it->v.i;
        return;
    case 4:
        it->v.type = SQL_REAL;
        it->v.r = reals[rng_below(r, sizeof reals / sizeof reals[0])];
        return;
    case 5:
        it->v.type = SQL_REAL;
        it->v.r = (rng_double(r) - 0.5) * 40.0;
        return;
    case 6:
        random_bytes(r, &it->bytes, true);
        it->v.type = SQL_TEXT;
        break;
    default:
        random_bytes(r, &it->bytes, false);
        it->v.type = SQL_BLOB;
        break;
    }
    it->v.s = buf_slice(&it->bytes);
}

/* Ranks by SQLite: dense_rank over ORDER BY v under the collation. */
static void rank_by_sqlite(sqlite3 *db, struct item *items, enum sql_collation coll, bool desc)
{
    char sql[256];
    sqlite3_stmt *st = NULL;
    sqlite3_exec(db, "DELETE FROM t", NULL, NULL, NULL);
    cr_assert_eq(sqlite3_prepare_v2(db, "INSERT INTO t VALUES(?1, ?2)", -1, &st, NULL), SQLITE_OK);
    for (int i = 0; i < VALUES; i++) {
        sqlite3_bind_int(st, 1, i);
        sql_value_bind(st, 2, &items[i].v);
        cr_assert_eq(sqlite3_step(st), SQLITE_DONE);
        sqlite3_reset(st);
    }
    sqlite3_finalize(st);
    snprintf(sql, sizeof sql, "SELECT i, dense_rank() OVER (ORDER BY v COLLATE %s %s) FROM t",
             sql_collation_name(coll), desc ? "DESC" : "");
    cr_assert_eq(sqlite3_prepare_v2(db, sql, -1, &st, NULL), SQLITE_OK);
    while (sqlite3_step(st) == SQLITE_ROW) {
        items[sqlite3_column_int(st, 0)].rank = (unsigned)sqlite3_column_int(st, 1);
    }
    sqlite3_finalize(st);
}

static int sign(int x)
{
    return (x > 0) - (x < 0);
}

static void check_pairs(const struct item *items, uint64_t seed, enum sql_collation coll, bool desc)
{
    for (int a = 0; a < VALUES; a++) {
        for (int b = 0; b < VALUES; b++) {
            int ours = sign(slice_cmp(buf_slice(&items[a].key), buf_slice(&items[b].key)));
            int theirs = (items[a].rank > items[b].rank) - (items[a].rank < items[b].rank);
            cr_assert_eq(
                ours, theirs,
                "seed %llu coll %s desc %d: values %d (%lld %g '%s') and %d (%lld %g '%s')",
                (unsigned long long)seed, sql_collation_name(coll), desc, a,
                (long long)items[a].v.i, items[a].v.r, (const char *)items[a].bytes.data, b,
                (long long)items[b].v.i, items[b].v.r, (const char *)items[b].bytes.data);
        }
    }
}

Test(keyenc, byte_order_is_sqlites_order_for_all_types_collations_and_directions)
{
    static struct item items[VALUES];
    sqlite3 *db = NULL;
    sqlite3_open(":memory:", &db);
    sqlite3_exec(db, "CREATE TABLE t(i, v)", NULL, NULL, NULL);
    for (uint64_t seed = 1; seed <= ROUNDS; seed++) {
        struct rng r;
        rng_init(&r, seed);
        enum sql_collation coll = (enum sql_collation)(seed % 3);
        bool desc = seed % 2 == 0;
        for (int i = 0; i < VALUES; i++) {
            random_value(&r, &items[i]);
            key_encode(&items[i].key, &items[i].v, coll, desc);
        }
        rank_by_sqlite(db, items, coll, desc);
        check_pairs(items, seed, coll, desc);
        for (int i = 0; i < VALUES; i++) {
            buf_deinit(&items[i].bytes);
            buf_deinit(&items[i].key);
        }
    }
    sqlite3_close(db);
}

Test(keyenc, a_number_text_or_blob_comes_back_as_it_was)
{
    struct rng r;
    rng_init(&r, 7);
    for (int n = 0; n < 5000; n++) {
        struct item it;
        struct buf key = {0};
        struct buf scratch = {0};
        struct sql_value v;
        bool desc = n % 2 == 0;
        random_value(&r, &it);
        key_encode(&key, &it.v, COLL_BINARY, desc);
        key_encode(&key, &it.v, COLL_BINARY,
                   desc); /* a second one behind it: neither runs into the other */
        struct slice in = buf_slice(&key);
        for (int k = 0; k < 2; k++) {
            buf_clear(&scratch);
            cr_assert(key_decode(&in, desc, &v, &scratch));
            bool numbers = it.v.type == SQL_INT || it.v.type == SQL_REAL;
            if (numbers) {
                bool same = it.v.type == SQL_INT
                                ? v.type == SQL_INT && v.i == it.v.i
                                : (v.type == SQL_INT ? (double)v.i : v.r) <= it.v.r &&
                                      (v.type == SQL_INT ? (double)v.i : v.r) >= it.v.r;
                cr_assert(same, "%lld %g came back as %lld %g", (long long)it.v.i, it.v.r,
                          (long long)v.i, v.r);
            } else {
                cr_assert_eq(v.type, it.v.type);
                cr_assert(slice_eq(v.s, it.v.s));
            }
        }
        cr_assert_eq(in.size, 0);
        buf_deinit(&it.bytes);
        buf_deinit(&key);
        buf_deinit(&scratch);
    }
}

Test(keyenc, equal_numbers_of_two_types_are_one_key)
{
    struct buf a = {0};
    struct buf b = {0};
    struct sql_value i = sql_value_int(5);
    struct sql_value d = {.type = SQL_REAL, .r = 5.0};
    key_encode(&a, &i, COLL_BINARY, false);
    key_encode(&b, &d, COLL_BINARY, false);
    cr_assert(slice_eq(buf_slice(&a), buf_slice(&b)));
    buf_deinit(&a);
    buf_deinit(&b);
}

Test(keyenc, cut_or_damaged_keys_are_refused_and_never_read_beyond)
{
    struct rng r;
    rng_init(&r, 3);
    for (int n = 0; n < 3000; n++) {
        struct item it;
        struct buf key = {0};
        struct buf scratch = {0};
        struct sql_value v;
        random_value(&r, &it);
        key_encode(&key, &it.v, (enum sql_collation)(n % 3), false);
        if (key.size > 1) {
            struct slice in = slice_of(key.data, rng_below(&r, key.size));
            cr_assert_not(key_decode(&in, false, &v, &scratch));
        }
        key.data[rng_below(&r, key.size)] ^= (uint8_t)(1U << rng_below(&r, 8));
        struct slice in = buf_slice(&key);
        (void)key_decode(&in, false, &v, &scratch);
        buf_deinit(&it.bytes);
        buf_deinit(&key);
        buf_deinit(&scratch);
    }
}

Test(keyenc, prefix_end_is_above_every_key_with_the_prefix)
{
    struct buf end = {0};
    key_prefix_end(&end, slice_of("\x01\xff\xff", 3));
    cr_assert(slice_eq(buf_slice(&end), slice_of("\x02", 1)));
    buf_clear(&end);
    key_prefix_end(&end, slice_of("\xff\xff", 2));
    cr_assert_eq(end.size, 0);
    buf_deinit(&end);
}

Test(keyenc, prefixes_name_table_and_index)
{
    struct buf k = {0};
    uint32_t table = 0;
    uint16_t index = 0;
    struct slice rest;
    key_index_prefix(&k, 70000, 3);
    buf_append_byte(&k, 9);
    cr_assert(key_parse_prefix(buf_slice(&k), &table, &index, &rest));
    cr_assert_eq(table, 70000);
    cr_assert_eq(index, 3);
    cr_assert_eq(rest.size, 1);
    cr_assert_not(
        key_parse_prefix(slice_of("\x00\x01\x02\x03\x04\x05\x06", 7), &table, &index, &rest));
    buf_deinit(&k);
}

/* Found by tests/fuzz: not a number, and a residue that belongs to the next double. */
Test(keyenc, numbers_that_nothing_encodes_to_are_refused)
{
    static const uint8_t nan[] = {0x10, 0xff, 0xf8, 0, 0, 0, 0, 0, 0};
    static const uint8_t overflow[] = {0x10, 0xc3, 0xdf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 4, 0};
    static const uint8_t infinite[] = {0x10, 0xff, 0xf0, 0, 0, 0, 0, 0, 0, 0, 1};
    static const uint8_t highest[] = {0x10, 0xc3, 0xdf, 0xff, 0xff, 0xff,
                                      0xff, 0xff, 0xff, 3,    0xff};
    struct slice bad[] = {slice_of(nan, sizeof nan), slice_of(overflow, sizeof overflow),
                          slice_of(infinite, sizeof infinite)};
    struct slice good = slice_of(highest, sizeof highest);
    struct sql_value v;
    struct buf scratch = {0};
    for (size_t i = 0; i < 3; i++) {
        cr_assert_not(key_decode(&bad[i], false, &v, &scratch), "%zu", i);
    }
    cr_assert(key_decode(&good, false, &v, &scratch));
    cr_assert_eq(v.i, INT64_MAX);
    buf_deinit(&scratch);
}
