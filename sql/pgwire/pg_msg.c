/* Framing, decoding and encoding of protocol-version-3 messages: see pg_msg.h. The decoders walk a
 * bounded big-endian reader whose error is sticky, so each reads all its fields and checks once,
 * and a body with bytes left over is as malformed as a short one. */
#include "sql/pgwire/pg_msg.h"

#include "base/invariant.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

/* Reader: like base/codec.h's cursor, but big-endian and with NUL-terminated strings. */
struct reader {
    const uint8_t *p;
    const uint8_t *end;
    bool bad;
};

static struct reader reader_of(struct slice s)
{
    return (struct reader){s.data, s.size == 0 ? s.data : s.data + s.size, false};
}

static size_t reader_left(const struct reader *r)
{
    return r->end == r->p ? 0 : (size_t)(r->end - r->p);
}

static struct slice read_raw(struct reader *r, size_t n)
{
    if (r->bad || reader_left(r) < n) {
        r->bad = true;
        return slice_of("", 0);
    }
    struct slice s = slice_of(r->p, n);
    if (n != 0) {
        r->p += n;
    }
    return s;
}

uint32_t pg_be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | (uint32_t)p[3];
}

static uint8_t read_u8(struct reader *r)
{
    struct slice s = read_raw(r, 1);
    return r->bad ? 0 : s.data[0];
}

static uint16_t read_u16(struct reader *r)
{
    struct slice s = read_raw(r, 2);
    if (r->bad) {
        return 0;
    }
    return (uint16_t)(s.data[0] << 8 | s.data[1]);
}

static uint32_t read_u32(struct reader *r)
{
    struct slice s = read_raw(r, 4);
    return r->bad ? 0 : pg_be32(s.data);
}

/* The string without its NUL (which is there, behind it). */
static struct slice read_str(struct reader *r)
{
    size_t left = reader_left(r);
    const uint8_t *nul = r->bad || left == 0 ? NULL : memchr(r->p, 0, left);
    if (nul == NULL) {
        r->bad = true;
        return slice_of("", 0);
    }
    struct slice s = slice_of(r->p, (size_t)(nul - r->p));
    r->p = nul + 1;
    return s;
}

static span_status reader_done(const struct reader *r)
{
    return r->bad || reader_left(r) != 0 ? SPAN_PROTOCOL : SPAN_OK;
}

bool pg_front_is_type(uint8_t type)
{
    return type != 0 && strchr("BCDEFHPQSXdcfp", type) != NULL;
}

span_status pg_frame_decode(struct slice in, struct pg_frame *out)
{
    *out = (struct pg_frame){0};
    if (in.size == 0) {
        return SPAN_OK;
    }
    out->type = in.data[0];
    if (!pg_front_is_type(out->type)) {
        return SPAN_PROTOCOL;
    }
    if (in.size < PG_MSG_HEADER) {
        return SPAN_OK;
    }
    uint32_t length = pg_be32(in.data + 1);
    if (length < 4 || length > PG_MSG_LENGTH_MAX) {
        return SPAN_PROTOCOL;
    }
    out->total = (size_t)length + 1;
    out->whole = in.size >= out->total;
    if (out->whole) {
        out->body = slice_of(in.data + PG_MSG_HEADER, out->total - PG_MSG_HEADER);
    }
    return SPAN_OK;
}

span_status pg_special_decode(struct slice in, size_t max, struct pg_frame *out)
{
    *out = (struct pg_frame){0};
    if (in.size < PG_SPECIAL_HEADER) {
        return SPAN_OK;
    }
    uint32_t length = pg_be32(in.data);
    if (length < 8 || length > max) {
        return SPAN_PROTOCOL;
    }
    out->total = length;
    out->whole = in.size >= out->total;
    if (out->whole) {
        out->body = slice_of(in.data + PG_SPECIAL_HEADER, out->total - PG_SPECIAL_HEADER);
    }
    return SPAN_OK;
}

span_status pg_parse_decode(struct slice body, struct pg_parse *out)
{
    struct reader r = reader_of(body);
    out->name = read_str(&r);
    out->sql = read_str(&r);
    out->oid_count = read_u16(&r);
    out->oids = read_raw(&r, out->oid_count * 4);
    return reader_done(&r);
}

uint32_t pg_oid_at(const struct pg_parse *p, size_t i)
{
    REQUIRE(i < p->oid_count);
    return pg_be32(p->oids.data + 4 * i);
}

struct pg_value pg_param_next(struct slice *params)
{
    struct reader r = reader_of(*params);
    uint32_t length = read_u32(&r);
    struct pg_value v = {.text = slice_of("", 0), .is_null = length == UINT32_MAX};
    if (!v.is_null) {
        v.text = read_raw(&r, length);
    }
    REQUIRE(!r.bad);
    *params = slice_of(r.p, reader_left(&r));
    return v;
}

span_status pg_bind_decode(struct slice body, struct pg_bind *out)
{
    struct reader r = reader_of(body);
    out->portal = read_str(&r);
    out->stmt = read_str(&r);
    out->param_format_count = read_u16(&r);
    out->param_formats = read_raw(&r, out->param_format_count * 2);
    out->param_count = read_u16(&r);
    const uint8_t *first = r.p;
    for (size_t i = 0; i < out->param_count && !r.bad; i++) {
        uint32_t length = read_u32(&r);
        if (length != UINT32_MAX) {
            (void)read_raw(&r, length);
        }
    }
    out->params = r.bad ? slice_of("", 0) : slice_of(first, (size_t)(r.p - first));
    out->result_format_count = read_u16(&r);
    out->result_formats = read_raw(&r, out->result_format_count * 2);
    /* "None, one for all, or one for each": any other number of parameter formats is malformed. */
    if (out->param_format_count > 1 && out->param_format_count != out->param_count) {
        return SPAN_PROTOCOL;
    }
    return reader_done(&r);
}

uint16_t pg_format_at(struct slice formats, size_t count, size_t i)
{
    if (count == 0) {
        return 0;
    }
    size_t at = count == 1 ? 0 : i;
    REQUIRE(at < count);
    return (uint16_t)(formats.data[2 * at] << 8 | formats.data[2 * at + 1]);
}

span_status pg_describe_decode(struct slice body, struct pg_describe *out)
{
    struct reader r = reader_of(body);
    out->kind = read_u8(&r);
    out->name = read_str(&r);
    if (out->kind != 'S' && out->kind != 'P') {
        return SPAN_PROTOCOL;
    }
    return reader_done(&r);
}

span_status pg_execute_decode(struct slice body, struct pg_execute *out)
{
    struct reader r = reader_of(body);
    out->portal = read_str(&r);
    uint32_t rows = read_u32(&r);
    out->max_rows = rows > INT32_MAX ? 0 : rows;
    return reader_done(&r);
}

span_status pg_query_decode(struct slice body, struct slice *sql)
{
    struct reader r = reader_of(body);
    *sql = read_str(&r);
    return reader_done(&r);
}

span_status pg_empty_decode(struct slice body)
{
    return body.size == 0 ? SPAN_OK : SPAN_PROTOCOL;
}

span_status pg_startup_decode(struct slice pairs, struct pg_startup_pair *out, size_t max,
                              size_t *count)
{
    struct reader r = reader_of(pairs);
    *count = 0;
    for (;;) {
        struct slice name = read_str(&r);
        if (r.bad) {
            return SPAN_PROTOCOL;
        }
        if (name.size == 0) {
            break; /* the terminator: one NUL */
        }
        struct slice value = read_str(&r);
        if (r.bad || *count == max) {
            return SPAN_PROTOCOL;
        }
        out[*count].name = (const char *)name.data;
        out[*count].value = (const char *)value.data;
        (*count)++;
    }
    return reader_done(&r);
}

/* Encoding: begin() leaves room for the length, end() fills it in. */

static void store_be32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 24);
    p[1] = (uint8_t)(v >> 16);
    p[2] = (uint8_t)(v >> 8);
    p[3] = (uint8_t)v;
}

static void put_u16(struct buf *out, uint16_t v)
{
    uint8_t *p = buf_grow(out, 2);
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static void put_u32(struct buf *out, uint32_t v)
{
    store_be32(buf_grow(out, 4), v);
}

static void put_str(struct buf *out, const char *s)
{
    buf_append(out, s, strlen(s) + 1);
}

static size_t begin(struct buf *out, char type)
{
    uint8_t *p = buf_grow(out, PG_MSG_HEADER);
    p[0] = (uint8_t)type;
    return out->size - 4;
}

static void end(struct buf *out, size_t at)
{
    store_be32(out->data + at, (uint32_t)(out->size - at));
}

void pg_put_auth_ok(struct buf *out)
{
    size_t at = begin(out, 'R');
    put_u32(out, 0);
    end(out, at);
}

void pg_put_negotiate(struct buf *out, uint32_t version, const char *const *names, size_t count)
{
    size_t at = begin(out, 'v');
    put_u32(out, version);
    put_u32(out, (uint32_t)count);
    for (size_t i = 0; i < count; i++) {
        put_str(out, names[i]);
    }
    end(out, at);
}

void pg_put_parameter_status(struct buf *out, const char *name, const char *value)
{
    size_t at = begin(out, 'S');
    put_str(out, name);
    put_str(out, value);
    end(out, at);
}

void pg_put_backend_key(struct buf *out, uint32_t pid, uint32_t key)
{
    size_t at = begin(out, 'K');
    put_u32(out, pid);
    put_u32(out, key);
    end(out, at);
}

void pg_put_ready(struct buf *out, char txn_status)
{
    size_t at = begin(out, 'Z');
    buf_append_byte(out, (uint8_t)txn_status);
    end(out, at);
}

void pg_put_row_description(struct buf *out, const struct pg_column *cols, const uint16_t *formats,
                            size_t count)
{
    size_t at = begin(out, 'T');
    put_u16(out, (uint16_t)count);
    for (size_t i = 0; i < count; i++) {
        put_str(out, cols[i].name);
        put_u32(out, cols[i].table_oid);
        put_u16(out, (uint16_t)cols[i].attnum);
        put_u32(out, cols[i].type_oid);
        put_u16(out, (uint16_t)pg_type_size(cols[i].type_oid));
        put_u32(out, UINT32_MAX); /* type modifier: -1, none */
        put_u16(out, formats == NULL ? 0 : formats[i]);
    }
    end(out, at);
}

void pg_put_data_row(struct buf *out, const struct pg_value *values, size_t count)
{
    size_t need = PG_MSG_HEADER + 2;
    for (size_t i = 0; i < count; i++) {
        need += 4 + (values[i].is_null ? 0 : values[i].text.size);
    }
    uint8_t *p = buf_grow(out, need);
    *p++ = 'D';
    store_be32(p, (uint32_t)(need - 1));
    p += 4;
    *p++ = (uint8_t)(count >> 8);
    *p++ = (uint8_t)count;
    for (size_t i = 0; i < count; i++) {
        if (values[i].is_null) {
            store_be32(p, UINT32_MAX);
            p += 4;
            continue;
        }
        store_be32(p, (uint32_t)values[i].text.size);
        p += 4;
        if (values[i].text.size != 0) {
            memcpy(p, values[i].text.data, values[i].text.size);
            p += values[i].text.size;
        }
    }
}

void pg_put_command_complete(struct buf *out, const char *tag)
{
    size_t at = begin(out, 'C');
    put_str(out, tag);
    end(out, at);
}

void pg_put_parameter_description(struct buf *out, const uint32_t *oids, size_t count)
{
    size_t at = begin(out, 't');
    put_u16(out, (uint16_t)count);
    for (size_t i = 0; i < count; i++) {
        put_u32(out, oids[i]);
    }
    end(out, at);
}

static void put_field(struct buf *out, char field, const char *value)
{
    if (value != NULL && value[0] != '\0') {
        buf_append_byte(out, (uint8_t)field);
        put_str(out, value);
    }
}

static void put_fields(struct buf *out, char type, const struct pg_error *e)
{
    size_t at = begin(out, type);
    put_field(out, 'S', e->severity);
    put_field(out, 'V', e->severity);
    put_field(out, 'C', e->sqlstate);
    put_field(out, 'M', e->message == NULL || e->message[0] == '\0' ? "error" : e->message);
    put_field(out, 'D', e->detail);
    put_field(out, 'H', e->hint);
    if (e->position != 0) {
        char text[16];
        (void)snprintf(text, sizeof(text), "%u", e->position);
        put_field(out, 'P', text);
    }
    put_field(out, 's', e->schema);
    put_field(out, 't', e->table);
    put_field(out, 'c', e->column);
    put_field(out, 'n', e->constraint);
    buf_append_byte(out, 0);
    end(out, at);
}

void pg_put_error(struct buf *out, const struct pg_error *e)
{
    put_fields(out, 'E', e);
}

void pg_put_notice(struct buf *out, const struct pg_error *e)
{
    put_fields(out, 'N', e);
}

void pg_put_simple(struct buf *out, char type)
{
    end(out, begin(out, type));
}
