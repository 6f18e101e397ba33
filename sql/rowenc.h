/* A SQL value as sql/ passes it about, and the bytes of a stored row.
 *
 * Row format (version 1): u8 version; varint column count; per column one varint (length << 3 |
 * type); then the payloads in column order. Types: 0 NULL, 1 integer (0, 1, 2, 4 or 8 bytes
 * little-endian, sign extended), 2 real (8 bytes, IEEE 754 little-endian), 3 text (UTF-8), 4 blob.
 * A column is found by adding up the lengths before it, so a scan that wants one column decodes one
 * column. A row written before a column was added is shorter: missing columns read as NULL. */
#ifndef SPAN_SQL_ROWENC_H
#define SPAN_SQL_ROWENC_H

#include "base/buf.h"
#include "base/status.h"

#include <sqlite3.h>

enum sql_type {
    SQL_NULL,
    SQL_INT,
    SQL_REAL,
    SQL_TEXT,
    SQL_BLOB,
};

/* Borrows s. */
struct sql_value {
    enum sql_type type;
    int64_t i;
    double r;
    struct slice s;
};

struct sql_value sql_value_of(sqlite3_value *v);
struct sql_value sql_value_int(int64_t i);
int sql_value_bind(sqlite3_stmt *stmt, int at, const struct sql_value *v); /* SQLITE_TRANSIENT */
void sql_value_result(sqlite3_context *ctx, const struct sql_value *v);

/* SQLite's column affinities. */
enum sql_affinity {
    AFF_BLOB,
    AFF_TEXT,
    AFF_NUMERIC,
    AFF_INTEGER,
    AFF_REAL,
};

/* Affinity of a declared type, by SQLite's substring rules ("INT", "CHAR" ...). */
enum sql_affinity sql_affinity_of(const char *decl_type);
/* What a comparison with a column of that affinity does to the other, affinity-less, side: numeric
 * columns turn text that is wholly a number into that number. scratch holds nothing afterwards that
 * the value needs unless type TEXT came out of a number. */
void sql_value_apply_affinity(struct sql_value *v, enum sql_affinity aff, struct buf *scratch);

void row_encode(struct buf *out, const struct sql_value *v, size_t count);
/* Column `at`; NULL beyond the row's columns. CORRUPT for bytes that are no row. v borrows from
 * row. */
span_status SPAN_CHECKED row_column(struct slice row, size_t at, struct sql_value *v);
/* All columns 0 .. count-1. */
span_status SPAN_CHECKED row_decode(struct slice row, struct sql_value *v, size_t count);

#endif
