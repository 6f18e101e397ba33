/* Results on their way to the client: PostgreSQL's text format, type OIDs, and rows kept in memory.
 */
#include "base/alloc.h"
#include "base/limits.h"
#include "base/planted.h"
#include "sql/session_impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

uint32_t pg_oid_of_decl(const char *decl)
{
    if (decl == NULL || decl[0] == '\0') {
        return PG_OID_UNKNOWN;
    }
    if (strncasecmp(decl, "BOOL", 4) == 0) {
        return PG_OID_BOOL;
    }
    if (strncasecmp(decl, "NUMERIC", 7) == 0 || strncasecmp(decl, "DECIMAL", 7) == 0) {
        return PG_OID_NUMERIC;
    }
    if (strncasecmp(decl, "BYTEA", 5) == 0) {
        return PG_OID_BYTEA;
    }
    if (strncasecmp(decl, "JSON", 4) == 0 || strncasecmp(decl, "DATE", 4) == 0 ||
        strncasecmp(decl, "TIME", 4) == 0 || strncasecmp(decl, "UUID", 4) == 0) {
        return PG_OID_TEXT; /* stored and checked as text: no more is promised */
    }
    switch (sql_affinity_of(decl)) {
    case AFF_INTEGER:
        return PG_OID_INT8;
    case AFF_TEXT:
        return PG_OID_TEXT;
    case AFF_REAL:
        return PG_OID_FLOAT8;
    case AFF_BLOB:
        return PG_OID_BYTEA;
    case AFF_NUMERIC:
        break;
    }
    return PG_OID_NUMERIC;
}

/* The shortest text that reads back as the same number, as PostgreSQL prints float8. */
static void render_real(double r, struct buf *out)
{
    char text[40];
    if (isinf(r)) {
        buf_append_str(out, r > 0 ? "Infinity" : "-Infinity");
        return;
    }
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, r);
        double back = strtod(text, NULL);
        if (memcmp(&back, &r, sizeof r) == 0) {
            break;
        }
    }
    buf_append_str(out, text);
}

static void render_int(int64_t i, struct buf *out)
{
    char text[24];
    size_t at = sizeof text;
    uint64_t u = i < 0 ? (uint64_t)0 - (uint64_t)i : (uint64_t)i;
    do {
        text[--at] = (char)('0' + u % 10);
        u /= 10;
    } while (u > 0);
    if (i < 0) {
        text[--at] = '-';
    }
    buf_append(out, text + at, sizeof text - at);
}

bool render_value(sqlite3_value *v, uint32_t oid, struct buf *out)
{
    static const char hex[] = "0123456789abcdef";
    switch (sqlite3_value_type(v)) {
    case SQLITE_INTEGER: {
        int64_t i = sqlite3_value_int64(v);
        if (oid == PG_OID_BOOL && (i == 0 || i == 1)) {
            buf_append_byte(out, i == 1 ? 't' : 'f');
        } else {
            render_int(i, out);
        }
        return true;
    }
    case SQLITE_FLOAT:
        render_real(sqlite3_value_double(v), out);
        return true;
    case SQLITE_TEXT:
        buf_append(out, sqlite3_value_text(v), (size_t)sqlite3_value_bytes(v));
        return true;
    case SQLITE_BLOB: {
        const uint8_t *p = sqlite3_value_blob(v);
        size_t n = (size_t)sqlite3_value_bytes(v);
        buf_append_str(out, "\\x");
        for (size_t i = 0; i < n; i++) {
            buf_append_byte(out, (uint8_t)hex[p[i] >> 4]);
            buf_append_byte(out, (uint8_t)hex[p[i] & 15]);
        }
        return true;
    }
    default:
        return false;
    }
}

void row_set_init(struct row_set *r, size_t columns)
{
    memset(r, 0, sizeof *r);
    r->columns = columns;
}

void row_set_deinit(struct row_set *r)
{
    buf_deinit(&r->data);
    r->rows = 0;
}

void row_set_add(struct row_set *r, const struct pg_value *v, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t size = v[i].is_null ? UINT32_MAX : (uint32_t)v[i].text.size;
        buf_append(&r->data, &size, sizeof size);
        if (!v[i].is_null) {
            buf_append_slice(&r->data, v[i].text);
        }
    }
    r->rows++;
}

span_status row_set_send(const struct row_set *r, size_t *at, size_t max,
                         const struct pg_sink *sink, size_t *sent)
{
    struct pg_value v[2 * LIMIT_COLUMNS];
    *sent = 0;
    while (*at < r->data.size && (max == 0 || *sent < max)) {
        for (size_t i = 0; i < r->columns; i++) {
            uint32_t size = 0;
            memcpy(&size, r->data.data + *at, sizeof size);
            *at += sizeof size;
            v[i].is_null = size == UINT32_MAX;
            v[i].text = slice_of(r->data.data + *at, v[i].is_null ? 0 : size);
            *at += v[i].text.size;
        }
        span_status st = pg_sink_data_row(sink, v, r->columns);
        if (st != SPAN_OK) {
            return st;
        }
        (*sent)++;
    }
    return SPAN_OK;
}

void session_gate(struct sql_session *s)
{
    uint64_t ns = s->kv->ops->not_before(s->kv).ns;
    if (ns > s->gated && s->sink != NULL) {
        s->gated = ns;
        pg_sink_gate(s->sink, ns);
    }
}

void session_gate_failure(struct sql_session *s)
{
    if (!PLANTED(ERROR_NOT_GATED)) {
        session_gate(s);
    }
}
