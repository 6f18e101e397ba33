/* Types on the wire: their stated sizes, and the conversion between PostgreSQL's text and binary
 * formats where that is plain (pg_msg.h lists them). The session speaks text only; drivers that
 * insist on binary for numbers (psycopg 3 parameters, JDBC after the fifth use) are served from
 * here. */
#include "base/invariant.h"
#include "sql/pgwire/pg_msg.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

int16_t pg_type_size(uint32_t oid)
{
    switch (oid) {
    case PG_OID_BOOL:
        return 1;
    case PG_OID_INT2:
        return 2;
    case PG_OID_INT4:
    case PG_OID_OID:
    case PG_OID_FLOAT4:
    case PG_OID_DATE:
        return 4;
    case PG_OID_INT8:
    case PG_OID_FLOAT8:
    case PG_OID_TIMESTAMP:
    case PG_OID_TIMESTAMPTZ:
        return 8;
    case PG_OID_UUID:
        return 16;
    case PG_OID_UNKNOWN_LITERAL:
        return -2;
    default:
        return -1;
    }
}

static bool is_text_like(uint32_t oid)
{
    return oid == PG_OID_TEXT || oid == PG_OID_VARCHAR || oid == PG_OID_BPCHAR ||
           oid == PG_OID_JSON || oid == PG_OID_UNKNOWN || oid == PG_OID_UNKNOWN_LITERAL;
}

/* Width of an integer type in bytes; 0: it is none. */
static size_t int_width(uint32_t oid)
{
    switch (oid) {
    case PG_OID_INT2:
        return 2;
    case PG_OID_INT4:
    case PG_OID_OID:
        return 4;
    case PG_OID_INT8:
        return 8;
    default:
        return 0;
    }
}

static size_t float_width(uint32_t oid)
{
    return oid == PG_OID_FLOAT8 ? 8 : oid == PG_OID_FLOAT4 ? 4 : 0;
}

bool pg_binary_supported(uint32_t oid)
{
    return is_text_like(oid) || int_width(oid) != 0 || float_width(oid) != 0 ||
           oid == PG_OID_BOOL || oid == PG_OID_BYTEA;
}

static void put_be(struct buf *out, uint64_t v, size_t width)
{
    uint8_t *p = buf_grow(out, width);
    for (size_t i = 0; i < width; i++) {
        p[i] = (uint8_t)(v >> (8 * (width - 1 - i)));
    }
}

static uint64_t get_be(struct slice s)
{
    uint64_t v = 0;
    for (size_t i = 0; i < s.size; i++) {
        v = v << 8 | s.data[i];
    }
    return v;
}

/* A number's text as a C string; false when it cannot be one. */
static bool number_text(struct slice text, char out[64])
{
    if (text.size == 0 || text.size >= 64) {
        return false;
    }
    memcpy(out, text.data, text.size);
    out[text.size] = '\0';
    return strlen(out) == text.size;
}

static span_status int_to_binary(uint32_t oid, struct slice text, struct buf *out)
{
    char tmp[64];
    char *rest = NULL;
    size_t width = int_width(oid);
    if (!number_text(text, tmp)) {
        return SPAN_INVALID;
    }
    errno = 0;
    int64_t v = strtoll(tmp, &rest, 10);
    if (errno != 0 || rest == tmp || *rest != '\0') {
        return SPAN_INVALID;
    }
    int64_t top = width == 8 ? INT64_MAX : ((int64_t)1 << (8 * width - 1)) - 1;
    int64_t low = -top - 1;
    if (oid == PG_OID_OID) {
        top = UINT32_MAX;
        low = 0;
    }
    if (v > top || v < low) {
        return SPAN_INVALID;
    }
    put_be(out, (uint64_t)v, width);
    return SPAN_OK;
}

static span_status float_to_binary(uint32_t oid, struct slice text, struct buf *out)
{
    char tmp[64];
    char *rest = NULL;
    if (!number_text(text, tmp)) {
        return SPAN_INVALID;
    }
    double v = strtod(tmp, &rest);
    if (rest == tmp || *rest != '\0') {
        return SPAN_INVALID;
    }
    if (float_width(oid) == 4) {
        float f = (float)v;
        uint32_t bits;
        memcpy(&bits, &f, sizeof(bits));
        put_be(out, bits, 4);
    } else {
        uint64_t bits;
        memcpy(&bits, &v, sizeof(bits));
        put_be(out, bits, 8);
    }
    return SPAN_OK;
}

static int hex_digit(uint8_t c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    if (c >= 'a' && c <= 'f') {
        return c - 'a' + 10;
    }
    if (c >= 'A' && c <= 'F') {
        return c - 'A' + 10;
    }
    return -1;
}

/* bytea's text is \x and hexadecimal digits (the only output form we use). */
static span_status bytea_to_binary(struct slice text, struct buf *out)
{
    if (text.size < 2 || text.size % 2 != 0 || text.data[0] != '\\' || text.data[1] != 'x') {
        return SPAN_INVALID;
    }
    for (size_t i = 2; i < text.size; i += 2) {
        int high = hex_digit(text.data[i]);
        int low = hex_digit(text.data[i + 1]);
        if (high < 0 || low < 0) {
            return SPAN_INVALID;
        }
        buf_append_byte(out, (uint8_t)(high << 4 | low));
    }
    return SPAN_OK;
}

static span_status bool_to_binary(struct slice text, struct buf *out)
{
    char c = text.size == 0 ? '\0' : (char)text.data[0];
    if (c == 't' || (c == '1' && text.size == 1)) {
        buf_append_byte(out, 1);
        return SPAN_OK;
    }
    if (c == 'f' || (c == '0' && text.size == 1)) {
        buf_append_byte(out, 0);
        return SPAN_OK;
    }
    return SPAN_INVALID;
}

span_status pg_text_to_binary(uint32_t oid, struct slice text, struct buf *out)
{
    if (is_text_like(oid)) {
        buf_append_slice(out, text);
        return SPAN_OK;
    }
    if (int_width(oid) != 0) {
        return int_to_binary(oid, text, out);
    }
    if (float_width(oid) != 0) {
        return float_to_binary(oid, text, out);
    }
    if (oid == PG_OID_BYTEA) {
        return bytea_to_binary(text, out);
    }
    return oid == PG_OID_BOOL ? bool_to_binary(text, out) : SPAN_UNSUPPORTED;
}

static span_status int_to_text(uint32_t oid, struct slice bin, struct buf *out)
{
    size_t width = int_width(oid);
    if (bin.size != width) {
        return SPAN_INVALID;
    }
    uint64_t raw = get_be(bin);
    int64_t v = (int64_t)raw;
    if (oid == PG_OID_INT2) {
        v = (int16_t)(uint16_t)raw;
    } else if (oid == PG_OID_INT4) {
        v = (int32_t)(uint32_t)raw;
    }
    buf_printf(out, "%" PRId64, v);
    return SPAN_OK;
}

static span_status float_to_text(uint32_t oid, struct slice bin, struct buf *out)
{
    if (bin.size != float_width(oid)) {
        return SPAN_INVALID;
    }
    uint64_t raw = get_be(bin);
    double v = 0;
    int digits = 17;
    if (bin.size == 4) {
        uint32_t bits = (uint32_t)raw;
        float f;
        memcpy(&f, &bits, sizeof(f));
        v = (double)f;
        digits = 9;
    } else {
        memcpy(&v, &raw, sizeof(v));
    }
    char text[64];
    /* The shortest text that reads back as the same number. */
    for (int d = digits - 2; d <= digits; d++) {
        (void)snprintf(text, sizeof(text), "%.*g", d, v);
        double back = strtod(text, NULL);
        if (bin.size == 4 ? (float)back == (float)v : back == v) {
            break;
        }
    }
    buf_append_str(out, text);
    return SPAN_OK;
}

span_status pg_binary_to_text(uint32_t oid, struct slice bin, struct buf *out)
{
    if (is_text_like(oid)) {
        buf_append_slice(out, bin);
        return SPAN_OK;
    }
    if (int_width(oid) != 0) {
        return int_to_text(oid, bin, out);
    }
    if (float_width(oid) != 0) {
        return float_to_text(oid, bin, out);
    }
    if (oid == PG_OID_BYTEA) {
        buf_append_str(out, "\\x");
        for (size_t i = 0; i < bin.size; i++) {
            buf_printf(out, "%02x", bin.data[i]);
        }
        return SPAN_OK;
    }
    if (oid == PG_OID_BOOL) {
        if (bin.size != 1 || bin.data[0] > 1) {
            return SPAN_INVALID;
        }
        buf_append_byte(out, bin.data[0] == 1 ? 't' : 'f');
        return SPAN_OK;
    }
    return SPAN_UNSUPPORTED;
}
