/* Rows, keys and table descriptors, as they come from peers and from disk. The first byte chooses.
 * A key that decodes is encoded to a key that decodes the same; keys made of values sort as the
 * values do. */
#include "base/alloc.h"
#include "sql/keyenc.h"
#include "sql/rowenc.h"
#include "sql/schema.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    return 0;
}

#define COLUMNS 8

static void row(struct slice in)
{
    struct sql_value all[COLUMNS] = {0};
    struct sql_value one;
    struct buf out = {0};
    if (row_decode(in, all, COLUMNS) != SPAN_OK) {
        for (size_t i = 0; i < COLUMNS; i++) {
            span_status st = row_column(in, i, &one);
            (void)st;
        }
        return;
    }
    for (size_t i = 0; i < COLUMNS; i++) {
        INVARIANT(row_column(in, i, &one) == SPAN_OK && one.type == all[i].type);
    }
    struct sql_value again[COLUMNS];
    row_encode(&out, all, COLUMNS);
    INVARIANT(row_decode(buf_slice(&out), again, COLUMNS) == SPAN_OK);
    for (size_t i = 0; i < COLUMNS; i++) {
        bool is_text = all[i].type == SQL_TEXT || all[i].type == SQL_BLOB;
        INVARIANT(again[i].type == all[i].type);
        INVARIANT(!is_text || slice_eq(again[i].s, all[i].s));
        INVARIANT(all[i].type != SQL_INT || again[i].i == all[i].i);
    }
    buf_deinit(&out);
}

static void key(struct slice in, bool desc)
{
    struct buf scratch = {0};
    struct buf out = {0};
    struct buf end = {0};
    uint32_t table = 0;
    uint16_t index = 0;
    struct slice rest = in;
    if (!key_parse_prefix(in, &table, &index, &rest)) {
        rest = in;
    }
    struct sql_value v;
    while (rest.size != 0 && key_decode(&rest, desc, &v, &scratch)) {
        struct sql_value back;
        struct buf scratch_back = {0};
        buf_clear(&out);
        key_encode(&out, &v, COLL_BINARY, desc);
        struct slice whole = buf_slice(&out);
        INVARIANT(key_decode(&whole, desc, &back, &scratch_back));
        INVARIANT(whole.size == 0 && back.type == v.type);
        INVARIANT(v.type != SQL_INT || back.i == v.i);
        INVARIANT((v.type != SQL_TEXT && v.type != SQL_BLOB) || slice_eq(back.s, v.s));
        key_prefix_end(&end, buf_slice(&out));
        INVARIANT(end.size == 0 || slice_cmp(buf_slice(&out), buf_slice(&end)) < 0);
        buf_clear(&end);
        buf_deinit(&scratch_back);
    }
    buf_deinit(&scratch);
    buf_deinit(&out);
    buf_deinit(&end);
}

static int order_of(const struct sql_value *a, const struct sql_value *b)
{
    return a->i < b->i ? -1 : a->i > b->i;
}

static void sorted(struct slice in)
{
    struct sql_value v[2] = {{.type = SQL_INT}, {.type = SQL_INT}};
    struct buf k[2] = {{0}, {0}};
    if (in.size < 16) {
        return;
    }
    memcpy(&v[0].i, in.data, 8);
    memcpy(&v[1].i, in.data + 8, 8);
    for (int i = 0; i < 2; i++) {
        key_encode(&k[i], &v[i], COLL_BINARY, false);
    }
    int got = slice_cmp(buf_slice(&k[0]), buf_slice(&k[1]));
    int want = order_of(&v[0], &v[1]);
    INVARIANT((got < 0) == (want < 0) && (got > 0) == (want > 0));
    for (int i = 0; i < 2; i++) {
        size_t at = i == 0 ? 0 : in.size / 2;
        v[i] = (struct sql_value){.type = SQL_BLOB, .s = slice_of(in.data + at, in.size / 2)};
        buf_clear(&k[i]);
        key_encode(&k[i], &v[i], COLL_BINARY, false);
    }
    got = slice_cmp(buf_slice(&k[0]), buf_slice(&k[1]));
    want = slice_cmp(v[0].s, v[1].s);
    INVARIANT((got < 0) == (want < 0) && (got > 0) == (want > 0));
    buf_deinit(&k[0]);
    buf_deinit(&k[1]);
}

static void descriptor(struct slice in)
{
    struct table_desc *d = NULL;
    if (table_desc_decode(in, &d) == SPAN_OK) {
        struct buf first = {0};
        struct buf second = {0};
        struct table_desc *again = NULL;
        table_desc_encode(d, &first);
        INVARIANT(table_desc_decode(buf_slice(&first), &again) == SPAN_OK);
        table_desc_encode(again, &second);
        INVARIANT(slice_eq(buf_slice(&first), buf_slice(&second)));
        table_desc_unref(again);
        table_desc_unref(d);
        buf_deinit(&first);
        buf_deinit(&second);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) {
        return 0;
    }
    struct slice rest = slice_of(data + 1, size - 1);
    switch (data[0] % 5) {
    case 0:
        row(rest);
        break;
    case 1:
    case 2:
        key(rest, data[0] % 5 == 2);
        break;
    case 3:
        sorted(rest);
        break;
    default:
        descriptor(rest);
    }
    return 0;
}

void fuzz_seeds(fuzz_emit *emit, void *ctx)
{
    struct sql_value v[5] = {sql_value_int(-5),
                             {.type = SQL_REAL, .r = 1.5},
                             {.type = SQL_TEXT, .s = slice_str("te\0xt")},
                             {.type = SQL_BLOB, .s = slice_of("\0\1\377", 3)},
                             {.type = SQL_NULL}};
    struct buf b = {0};
    buf_append_byte(&b, 0);
    row_encode(&b, v, 5);
    emit(ctx, "row", buf_slice(&b));
    for (uint8_t desc = 0; desc < 2; desc++) {
        buf_clear(&b);
        buf_append_byte(&b, (uint8_t)(1 + desc));
        key_index_prefix(&b, 7, 1);
        for (int i = 0; i < 5; i++) {
            key_encode(&b, &v[i], COLL_BINARY, desc != 0);
        }
        v[0] = sql_value_int(INT64_MAX);
        emit(ctx, desc == 0 ? "key" : "key-desc", buf_slice(&b));
    }
    buf_clear(&b);
    buf_append_byte(&b, 3);
    buf_append_str(&b, "0123456789abcdef0123456789abcdef");
    emit(ctx, "sorted", buf_slice(&b));
    struct table_desc *d = table_desc_new();
    d->name = span_strdup("t");
    d->sql = span_strdup("CREATE TABLE t (id INTEGER PRIMARY KEY)");
    d->id = 7;
    d->version = 1;
    buf_clear(&b);
    buf_append_byte(&b, 4);
    table_desc_encode(d, &b);
    emit(ctx, "descriptor", buf_slice(&b));
    table_desc_unref(d);
    buf_deinit(&b);
}
