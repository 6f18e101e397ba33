/* Row bytes: every value comes back, column by column and all at once; damage is noticed or
 * harmless. */
#include "base/rng.h"
#include "sql/rowenc.h"

#include <criterion/criterion.h>
#include <stdlib.h>

#define COLUMNS 12

static void random_value(struct rng *r, struct sql_value *v, uint8_t *bytes)
{
    memset(v, 0, sizeof *v);
    v->type = (enum sql_type)rng_below(r, 5);
    switch (v->type) {
    case SQL_INT:
        v->i = (int64_t)(rng_u64(r) >> rng_below(r, 64));
        v->i = rng_below(r, 2) == 0 ? v->i : -v->i;
        break;
    case SQL_REAL:
        v->r = rng_double(r) * 1e6 - 5e5;
        break;
    case SQL_TEXT:
    case SQL_BLOB:
        for (int i = 0; i < 200; i++) {
            bytes[i] = (uint8_t)rng_u64(r);
        }
        v->s = slice_of(bytes, rng_below(r, 200));
        break;
    case SQL_NULL:
        break;
    }
}

static void assert_same(const struct sql_value *a, const struct sql_value *b)
{
    cr_assert_eq(a->type, b->type);
    cr_assert_eq(a->i, b->i);
    cr_assert_eq(memcmp(&a->r, &b->r, sizeof a->r), 0);
    cr_assert(slice_eq(a->s, b->s));
}

Test(rowenc, every_value_comes_back)
{
    struct rng r;
    rng_init(&r, 11);
    for (int n = 0; n < 2000; n++) {
        struct sql_value v[COLUMNS];
        struct sql_value back[COLUMNS + 2];
        uint8_t bytes[COLUMNS][200];
        struct buf row = {0};
        for (int i = 0; i < COLUMNS; i++) {
            random_value(&r, &v[i], bytes[i]);
        }
        row_encode(&row, v, COLUMNS);
        cr_assert_eq(row_decode(buf_slice(&row), back, COLUMNS + 2), SPAN_OK);
        for (size_t i = 0; i < COLUMNS; i++) {
            struct sql_value one;
            assert_same(&v[i], &back[i]);
            cr_assert_eq(row_column(buf_slice(&row), i, &one), SPAN_OK);
            assert_same(&v[i], &one);
        }
        cr_assert_eq(back[COLUMNS].type, SQL_NULL, "a column the row does not have is NULL");
        buf_deinit(&row);
    }
}

Test(rowenc, damaged_rows_never_read_beyond_their_bytes)
{
    struct rng r;
    rng_init(&r, 5);
    for (int n = 0; n < 5000; n++) {
        struct sql_value v[4];
        struct sql_value back[4];
        uint8_t bytes[4][200];
        struct buf row = {0};
        for (int i = 0; i < 4; i++) {
            random_value(&r, &v[i], bytes[i]);
        }
        row_encode(&row, v, 4);
        size_t keep = rng_below(&r, row.size + 1);
        uint8_t *copy = malloc(keep + 1); /* exact size: a sanitizer sees one byte too far */
        memcpy(copy, row.data, keep);
        if (keep > 0) {
            copy[rng_below(&r, keep)] ^= (uint8_t)(1U << rng_below(&r, 8));
        }
        span_status st = row_decode(slice_of(copy, keep), back, 4);
        cr_assert(st == SPAN_OK || st == SPAN_CORRUPT);
        st = row_column(slice_of(copy, keep), rng_below(&r, 5), &back[0]);
        cr_assert(st == SPAN_OK || st == SPAN_CORRUPT);
        free(copy);
        buf_deinit(&row);
    }
    struct sql_value one;
    cr_assert_eq(row_column(slice_of("\x02\x00", 2), 0, &one), SPAN_CORRUPT, "unknown version");
    cr_assert_eq(row_column(slice_of("", 0), 0, &one), SPAN_CORRUPT);
}

struct affinity_case {
    const char *text;
    enum sql_type type;
    int64_t i;
    double r;
};

Test(rowenc, numeric_affinity_follows_sqlites_rules_for_text)
{
    static const struct affinity_case cases[] = {
        {"5", SQL_INT, 5, 0},        {" -12 ", SQL_INT, -12, 0},
        {"1e2", SQL_REAL, 0, 100.0}, {"1.5", SQL_REAL, 0, 1.5},
        {"0x10", SQL_TEXT, 0, 0},    {"5a", SQL_TEXT, 0, 0},
        {"", SQL_TEXT, 0, 0},        {".", SQL_TEXT, 0, 0},
        {"inf", SQL_TEXT, 0, 0},     {"9223372036854775808", SQL_REAL, 0, 9223372036854775808.0},
    };
    for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
        struct sql_value v = {.type = SQL_TEXT, .s = slice_str(cases[k].text)};
        sql_value_apply_affinity(&v, AFF_INTEGER, NULL);
        cr_assert_eq(v.type, cases[k].type, "'%s'", cases[k].text);
        if (v.type == SQL_INT) {
            cr_assert_eq(v.i, cases[k].i);
        } else if (v.type == SQL_REAL) {
            cr_assert_float_eq(v.r, cases[k].r, 0.0);
        }
    }
}
