/* Row bytes and SQL values; the format is described in rowenc.h. */
#include "sql/rowenc.h"

#include "base/alloc.h"
#include "base/codec.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ROW_VERSION 1

struct sql_value sql_value_of(sqlite3_value *v)
{
    struct sql_value o = {0};
    switch (sqlite3_value_type(v)) {
    case SQLITE_INTEGER:
        o.type = SQL_INT;
        o.i = sqlite3_value_int64(v);
        break;
    case SQLITE_FLOAT:
        o.type = SQL_REAL;
        o.r = sqlite3_value_double(v);
        break;
    case SQLITE_TEXT:
        o.type = SQL_TEXT;
        o.s.data = sqlite3_value_text(v);
        o.s.size = (size_t)sqlite3_value_bytes(v);
        break;
    case SQLITE_BLOB:
        o.type = SQL_BLOB;
        o.s.data = sqlite3_value_blob(v);
        o.s.size = (size_t)sqlite3_value_bytes(v);
        break;
    default:
        o.type = SQL_NULL;
        break;
    }
    return o;
}

struct sql_value sql_value_int(int64_t i)
{
    return (struct sql_value){.type = SQL_INT, .i = i};
}

int sql_value_bind(sqlite3_stmt *stmt, int at, const struct sql_value *v)
{
    switch (v->type) {
    case SQL_INT:
        return sqlite3_bind_int64(stmt, at, v->i);
    case SQL_REAL:
        return sqlite3_bind_double(stmt, at, v->r);
    case SQL_TEXT:
        return sqlite3_bind_text64(stmt, at, v->s.size > 0 ? (const char *)v->s.data : "",
                                   v->s.size, SQLITE_TRANSIENT, SQLITE_UTF8);
    case SQL_BLOB:
        if (v->s.size == 0) {
            return sqlite3_bind_zeroblob(stmt, at, 0);
        }
        return sqlite3_bind_blob64(stmt, at, v->s.data, v->s.size, SQLITE_TRANSIENT);
    case SQL_NULL:
        break;
    }
    return sqlite3_bind_null(stmt, at);
}

void sql_value_result(sqlite3_context *ctx, const struct sql_value *v)
{
    switch (v->type) {
    case SQL_INT:
        sqlite3_result_int64(ctx, v->i);
        return;
    case SQL_REAL:
        sqlite3_result_double(ctx, v->r);
        return;
    case SQL_TEXT:
        sqlite3_result_text64(ctx, v->s.size > 0 ? (const char *)v->s.data : "", v->s.size,
                              SQLITE_TRANSIENT, SQLITE_UTF8);
        return;
    case SQL_BLOB:
        if (v->s.size == 0) {
            sqlite3_result_zeroblob(ctx, 0);
        } else {
            sqlite3_result_blob64(ctx, v->s.data, v->s.size, SQLITE_TRANSIENT);
        }
        return;
    case SQL_NULL:
        break;
    }
    sqlite3_result_null(ctx);
}

enum sql_affinity sql_affinity_of(const char *t)
{
    if (t == NULL || t[0] == '\0') {
        return AFF_BLOB;
    }
    if (strcasestr(t, "INT") != NULL) {
        return AFF_INTEGER;
    }
    if (strcasestr(t, "CHAR") != NULL || strcasestr(t, "CLOB") != NULL ||
        strcasestr(t, "TEXT") != NULL) {
        return AFF_TEXT;
    }
    if (strcasestr(t, "BLOB") != NULL) {
        return AFF_BLOB;
    }
    if (strcasestr(t, "REAL") != NULL || strcasestr(t, "FLOA") != NULL ||
        strcasestr(t, "DOUB") != NULL) {
        return AFF_REAL;
    }
    return AFF_NUMERIC;
}

static bool is_space(unsigned char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Text that is wholly a number by SQLite's rules (leading and trailing spaces allowed, no hex, no
 * "inf"). */
static bool text_to_number(struct slice s, struct sql_value *out)
{
    size_t a = 0;
    size_t b = s.size;
    while (a < b && is_space(s.data[a])) {
        a++;
    }
    while (b > a && is_space(s.data[b - 1])) {
        b--;
    }
    if (a == b || b - a > 400) {
        return false;
    }
    bool digits = false;
    bool real = false;
    size_t p = a;
    if (s.data[p] == '+' || s.data[p] == '-') {
        p++;
    }
    for (; p < b && s.data[p] >= '0' && s.data[p] <= '9'; p++) {
        digits = true;
    }
    if (p < b && s.data[p] == '.') {
        real = true;
        for (p++; p < b && s.data[p] >= '0' && s.data[p] <= '9'; p++) {
            digits = true;
        }
    }
    if (digits && p < b && (s.data[p] == 'e' || s.data[p] == 'E')) {
        real = true;
        p++;
        if (p < b && (s.data[p] == '+' || s.data[p] == '-')) {
            p++;
        }
        bool exp = false;
        for (; p < b && s.data[p] >= '0' && s.data[p] <= '9'; p++) {
            exp = true;
        }
        digits = exp;
    }
    if (!digits || p != b) {
        return false;
    }
    char text[408];
    memcpy(text, s.data + a, b - a);
    text[b - a] = '\0';
    if (!real) {
        errno = 0;
        long long i = strtoll(text, NULL, 10);
        if (errno == 0) {
            *out = sql_value_int(i);
            return true;
        }
    }
    *out = (struct sql_value){.type = SQL_REAL, .r = strtod(text, NULL)};
    return true;
}

void sql_value_apply_affinity(struct sql_value *v, enum sql_affinity aff, struct buf *scratch)
{
    (void)scratch;
    if (aff == AFF_BLOB || aff == AFF_TEXT || v->type != SQL_TEXT) {
        return;
    }
    struct sql_value n = {0};
    if (text_to_number(v->s, &n)) {
        *v = n;
    }
}

static size_t int_width(int64_t i)
{
    if (i == 0) {
        return 0;
    }
    if (i >= INT8_MIN && i <= INT8_MAX) {
        return 1;
    }
    if (i >= INT16_MIN && i <= INT16_MAX) {
        return 2;
    }
    return i >= INT32_MIN && i <= INT32_MAX ? 4 : 8;
}

static size_t value_width(const struct sql_value *v)
{
    switch (v->type) {
    case SQL_INT:
        return int_width(v->i);
    case SQL_REAL:
        return 8;
    case SQL_TEXT:
    case SQL_BLOB:
        return v->s.size;
    case SQL_NULL:
        break;
    }
    return 0;
}

void row_encode(struct buf *out, const struct sql_value *v, size_t count)
{
    enc_u8(out, ROW_VERSION);
    enc_var(out, count);
    for (size_t i = 0; i < count; i++) {
        enc_var(out, (uint64_t)value_width(&v[i]) << 3 | (uint64_t)v[i].type);
    }
    for (size_t i = 0; i < count; i++) {
        uint64_t bits = 0;
        switch (v[i].type) {
        case SQL_INT:
            bits = (uint64_t)v[i].i;
            for (size_t n = int_width(v[i].i); n > 0; n--, bits >>= 8) {
                buf_append_byte(out, (uint8_t)bits);
            }
            break;
        case SQL_REAL:
            memcpy(&bits, &v[i].r, 8);
            enc_u64(out, bits);
            break;
        case SQL_TEXT:
        case SQL_BLOB:
            buf_append_slice(out, v[i].s);
            break;
        case SQL_NULL:
            break;
        }
    }
}

static bool value_from(unsigned type, struct slice p, struct sql_value *v)
{
    memset(v, 0, sizeof *v);
    v->type = (enum sql_type)type;
    switch (type) {
    case SQL_NULL:
        return p.size == 0;
    case SQL_INT: {
        if (p.size > 8) {
            return false;
        }
        uint64_t bits = 0;
        for (size_t i = 0; i < p.size; i++) {
            bits |= (uint64_t)p.data[i] << (8 * i);
        }
        if (p.size > 0 && p.size < 8 && (p.data[p.size - 1] & 0x80) != 0) {
            bits |= ~(uint64_t)0 << (8 * p.size);
        }
        v->i = (int64_t)bits;
        return true;
    }
    case SQL_REAL: {
        if (p.size != 8) {
            return false;
        }
        uint64_t bits = 0;
        for (size_t i = 0; i < 8; i++) {
            bits |= (uint64_t)p.data[i] << (8 * i);
        }
        memcpy(&v->r, &bits, 8);
        return true;
    }
    case SQL_TEXT:
    case SQL_BLOB:
        v->s = p;
        return true;
    default:
        return false;
    }
}

span_status row_column(struct slice row, size_t at, struct sql_value *v)
{
    memset(v, 0, sizeof *v);
    struct cursor c = cursor_of(row);
    if (dec_u8(&c) != ROW_VERSION) {
        return SPAN_CORRUPT;
    }
    size_t count = dec_count(&c, 1);
    if (!cursor_ok(&c)) {
        return SPAN_CORRUPT;
    }
    if (at >= count) {
        return SPAN_OK;
    }
    size_t before = 0;
    uint64_t mine = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t h = dec_var(&c);
        if ((h >> 3) > row.size) {
            return SPAN_CORRUPT;
        }
        if (i < at) {
            before += (size_t)(h >> 3);
        } else if (i == at) {
            mine = h;
        }
    }
    dec_raw(&c, before);
    struct slice p = dec_raw(&c, (size_t)(mine >> 3));
    if (!cursor_ok(&c) || !value_from((unsigned)(mine & 7), p, v)) {
        return SPAN_CORRUPT;
    }
    return SPAN_OK;
}

span_status row_decode(struct slice row, struct sql_value *v, size_t count)
{
    struct cursor h = cursor_of(row);
    if (dec_u8(&h) != ROW_VERSION) {
        return SPAN_CORRUPT;
    }
    size_t have = dec_count(&h, 1);
    struct cursor p = h;
    for (size_t i = 0; i < have; i++) {
        if ((dec_var(&p) >> 3) > row.size) {
            return SPAN_CORRUPT; /* also of a column that is not asked for, as row_column */
        }
    }
    if (!cursor_ok(&p)) {
        return SPAN_CORRUPT;
    }
    for (size_t i = 0; i < count; i++) {
        memset(&v[i], 0, sizeof v[i]);
        if (i < have) {
            uint64_t x = dec_var(&h);
            struct slice s = dec_raw(&p, (size_t)(x >> 3));
            if (!cursor_ok(&p) || !value_from((unsigned)(x & 7), s, &v[i])) {
                return SPAN_CORRUPT;
            }
        }
    }
    return SPAN_OK;
}
