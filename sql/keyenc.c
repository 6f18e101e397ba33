/* Order-preserving keys; the format is described in keyenc.h. */
#include "sql/keyenc.h"

#include "sql/kv.h"

#include <math.h>
#include <strings.h>

#define TAG_NULL   0x05
#define TAG_NUMBER 0x10
#define TAG_TEXT   0x20
#define TAG_BLOB   0x30
#define EXACT_MAX  9007199254740992.0 /* 2^53: above it integers and doubles part */

bool sql_collation_of(const char *name, enum sql_collation *out)
{
    if (name == NULL || name[0] == '\0' || strcasecmp(name, "BINARY") == 0) {
        *out = COLL_BINARY;
    } else if (strcasecmp(name, "NOCASE") == 0) {
        *out = COLL_NOCASE;
    } else if (strcasecmp(name, "RTRIM") == 0) {
        *out = COLL_RTRIM;
    } else {
        return false;
    }
    return true;
}

const char *sql_collation_name(enum sql_collation c)
{
    switch (c) {
    case COLL_NOCASE:
        return "NOCASE";
    case COLL_RTRIM:
        return "RTRIM";
    case COLL_BINARY:
        break;
    }
    return "BINARY";
}

static void put_be32(struct buf *out, uint32_t v)
{
    uint8_t *p = buf_grow(out, 4);
    p[0] = (uint8_t)(v >> 24);
    p[1] = (uint8_t)(v >> 16);
    p[2] = (uint8_t)(v >> 8);
    p[3] = (uint8_t)v;
}

void key_index_prefix(struct buf *out, uint32_t table_id, uint16_t index_id)
{
    buf_append_byte(out, KEY_TABLE_PREFIX);
    put_be32(out, table_id);
    buf_append_byte(out, (uint8_t)(index_id >> 8));
    buf_append_byte(out, (uint8_t)index_id);
}

void key_table_start(struct buf *out, uint32_t table_id)
{
    buf_append_byte(out, KEY_TABLE_PREFIX);
    put_be32(out, table_id);
}

void key_table_end(struct buf *out, uint32_t table_id)
{
    if (table_id == UINT32_MAX) {
        buf_append_byte(out, KEY_TABLE_PREFIX + 1);
        return;
    }
    key_table_start(out, table_id + 1);
}

bool key_parse_prefix(struct slice key, uint32_t *table_id, uint16_t *index_id, struct slice *rest)
{
    if (key.size < 5 || key.data[0] != KEY_TABLE_PREFIX) {
        return false;
    }
    *table_id = (uint32_t)key.data[1] << 24 | (uint32_t)key.data[2] << 16 |
                (uint32_t)key.data[3] << 8 | key.data[4];
    *index_id = 0;
    *rest = slice_of(key.data + key.size, 0);
    if (key.size >= KEY_INDEX_PREFIX_BYTES) {
        *index_id = (uint16_t)((unsigned)key.data[5] << 8 | key.data[6]);
        *rest = slice_of(key.data + KEY_INDEX_PREFIX_BYTES, key.size - KEY_INDEX_PREFIX_BYTES);
    }
    return true;
}

static void put_double(struct buf *out, double d)
{
    if (d == 0.0) {
        d = 0.0; /* -0.0 and 0.0 are one value */
    }
    uint64_t bits = 0;
    memcpy(&bits, &d, 8);
    if (d == 0.0) {
        bits = 0;
    }
    bits = (bits >> 63) != 0 ? ~bits : bits | (uint64_t)1 << 63;
    uint8_t *p = buf_grow(out, 8);
    for (int i = 7; i >= 0; i--, bits >>= 8) {
        p[i] = (uint8_t)bits;
    }
}

static void put_number(struct buf *out, const struct sql_value *v)
{
    double d = v->r;
    uint16_t residue = 0;
    if (v->type == SQL_INT) {
        d = (double)v->i;
        if (d >= 9223372036854775808.0 || (int64_t)d > v->i) {
            d = nextafter(d, -INFINITY);
        }
        residue = (uint16_t)((uint64_t)v->i - (uint64_t)(int64_t)d);
    }
    put_double(out, d);
    if (fabs(d) >= EXACT_MAX) {
        buf_append_byte(out, (uint8_t)(residue >> 8));
        buf_append_byte(out, (uint8_t)residue);
    }
}

static void put_escaped(struct buf *out, struct slice s)
{
    for (size_t i = 0; i < s.size;) {
        const uint8_t *z = memchr(s.data + i, 0, s.size - i);
        size_t n = z == NULL ? s.size - i : (size_t)(z - (s.data + i));
        buf_append(out, s.data + i, n);
        i += n;
        if (z != NULL) {
            buf_append_byte(out, 0);
            buf_append_byte(out, 0xff);
            i++;
        }
    }
    buf_append_byte(out, 0);
    buf_append_byte(out, 1);
}

static void put_nocase(struct buf *out, struct slice s)
{
    size_t i = 0;
    for (; i < s.size && s.data[i] != 0; i++) {
        uint8_t c = s.data[i];
        buf_append_byte(out, c >= 'A' && c <= 'Z' ? (uint8_t)(c + 32) : c);
    }
    if (i < s.size) { /* SQLite stops at a NUL and then compares lengths */
        buf_append_byte(out, 0);
        buf_append_byte(out, 0xff);
        put_be32(out, (uint32_t)s.size);
        return;
    }
    buf_append_byte(out, 0);
    buf_append_byte(out, 1);
}

void key_encode(struct buf *out, const struct sql_value *v, enum sql_collation coll, bool desc)
{
    size_t at = out->size;
    struct slice s = v->s;
    switch (v->type) {
    case SQL_NULL:
        buf_append_byte(out, TAG_NULL);
        break;
    case SQL_INT:
    case SQL_REAL:
        buf_append_byte(out, TAG_NUMBER);
        put_number(out, v);
        break;
    case SQL_TEXT:
        buf_append_byte(out, TAG_TEXT);
        if (coll == COLL_NOCASE) {
            put_nocase(out, s);
            break;
        }
        while (coll == COLL_RTRIM && s.size > 0 && s.data[s.size - 1] == ' ') {
            s.size--;
        }
        put_escaped(out, s);
        break;
    case SQL_BLOB:
        buf_append_byte(out, TAG_BLOB);
        put_escaped(out, s);
        break;
    }
    for (size_t i = at; desc && i < out->size; i++) {
        out->data[i] = (uint8_t)~out->data[i];
    }
}

static bool take_bytes(struct slice *in, uint8_t flip, struct sql_value *v, struct buf *scratch)
{
    size_t at = scratch->size;
    buf_reserve(scratch, 1); /* an empty text points somewhere too */
    for (size_t i = 0; i < in->size; i++) {
        uint8_t c = in->data[i] ^ flip;
        if (c != 0) {
            buf_append_byte(scratch, c);
            continue;
        }
        if (i + 1 >= in->size) {
            return false;
        }
        uint8_t n = in->data[i + 1] ^ flip;
        if (n == 1) {
            in->data += i + 2;
            in->size -= i + 2;
            v->s = slice_of(scratch->data + at, scratch->size - at);
            return true;
        }
        if (n != 0xff) {
            return false;
        }
        buf_append_byte(scratch, 0);
        i++;
    }
    return false;
}

static bool take_number(struct slice *in, uint8_t flip, struct sql_value *v)
{
    if (in->size < 8) {
        return false;
    }
    uint64_t bits = 0;
    for (size_t i = 0; i < 8; i++) {
        bits = bits << 8 | (in->data[i] ^ flip);
    }
    bits = (bits >> 63) != 0 ? bits ^ (uint64_t)1 << 63 : ~bits;
    memcpy(&v->r, &bits, 8);
    in->data += 8;
    in->size -= 8;
    v->type = SQL_REAL;
    if (isnan(v->r)) {
        return false; /* SQLite has none: a NULL */
    }
    if (fabs(v->r) < EXACT_MAX) {
        if (floor(v->r) >= v->r) {
            *v = sql_value_int((int64_t)v->r);
        }
        return true;
    }
    if (in->size < 2) {
        return false;
    }
    unsigned residue = (unsigned)(in->data[0] ^ flip) << 8 | (in->data[1] ^ flip);
    in->data += 2;
    in->size -= 2;
    bool is_int = v->r >= -9223372036854775808.0 && v->r < 9223372036854775808.0;
    /* Up to the next double, or it would be another one's encoding (and could overflow). */
    if (residue != 0 && (!is_int || residue >= nextafter(v->r, INFINITY) - v->r)) {
        return false;
    }
    if (is_int) {
        *v = sql_value_int((int64_t)((uint64_t)(int64_t)v->r + residue));
    }
    return true;
}

bool key_decode(struct slice *in, bool desc, struct sql_value *v, struct buf *scratch)
{
    memset(v, 0, sizeof *v);
    if (in->size == 0) {
        return false;
    }
    uint8_t flip = desc ? 0xff : 0;
    uint8_t tag = in->data[0] ^ flip;
    in->data++;
    in->size--;
    switch (tag) {
    case TAG_NULL:
        return true;
    case TAG_NUMBER:
        return take_number(in, flip, v);
    case TAG_TEXT:
        v->type = SQL_TEXT;
        return take_bytes(in, flip, v, scratch);
    case TAG_BLOB:
        v->type = SQL_BLOB;
        return take_bytes(in, flip, v, scratch);
    default:
        return false;
    }
}

void key_prefix_end(struct buf *out, struct slice k)
{
    while (k.size > 0 && k.data[k.size - 1] == 0xff) {
        k.size--;
    }
    if (k.size == 0) {
        return; /* empty: to the end of the key space */
    }
    buf_append_slice(out, k);
    out->data[out->size - 1]++;
}
