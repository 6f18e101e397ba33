/* Index entries; see index.h. */
#include "sql/index.h"

#include "base/limits.h"

#include <stdio.h>

bool index_is_checked(const struct table_index *ix, const struct sql_value *columns)
{
    if (!ix->unique) {
        return false;
    }
    for (size_t i = 0; i < ix->count; i++) {
        if (columns[ix->columns[i]].type == SQL_NULL) {
            return false;
        }
    }
    return true;
}

void index_entry_key(const struct table_desc *d, const struct table_index *ix,
                     const struct sql_value *columns, int64_t rowid, struct buf *out)
{
    key_index_prefix(out, d->id, ix->id);
    for (size_t i = 0; i < ix->count; i++) {
        key_encode(out, &columns[ix->columns[i]], ix->collations[i], ix->desc[i]);
    }
    if (index_is_checked(ix, columns)) {
        return;
    }
    if (d->pk != PK_COLUMNS) {
        struct sql_value v = sql_value_int(rowid);
        key_encode(out, &v, COLL_BINARY, false);
        return;
    }
    for (size_t i = 0; i < d->primary.count; i++) {
        key_encode(out, &columns[d->primary.columns[i]], d->primary.collations[i],
                   d->primary.desc[i]);
    }
}

void index_key_too_large(struct sql_error *e, const struct table_desc *d,
                         const struct table_index *ix, size_t bytes)
{
    sql_error_set(e, "54000", "a key of \"%s\"%s%s%s has %zu bytes, the limit is %llu", d->name,
                  ix->id == 0 ? "" : " in index \"", ix->id == 0 ? "" : ix->name,
                  ix->id == 0 ? "" : "\"", bytes, LIMIT_KEY_BYTES);
    snprintf(e->table, sizeof e->table, "%.255s", d->name);
    sql_error_hint(e, "Keys hold the primary key's or the index's columns; use a shorter value, or "
                      "a hash of it, there.");
}

void index_entry_value(const struct table_desc *d, const struct table_index *ix,
                       const struct sql_value *columns, int64_t rowid, struct buf *out)
{
    struct sql_value v[2 * LIMIT_COLUMNS + 1];
    size_t n = 0;
    for (size_t i = 0; i < ix->count; i++) {
        v[n++] = columns[ix->columns[i]];
    }
    if (d->pk != PK_COLUMNS) {
        v[n++] = sql_value_int(rowid);
    } else {
        for (size_t i = 0; i < d->primary.count; i++) {
            v[n++] = columns[d->primary.columns[i]];
        }
    }
    row_encode(out, v, n);
}

span_status index_entry_row_key(const struct table_desc *d, const struct table_index *ix,
                                struct slice entry, struct buf *out)
{
    key_index_prefix(out, d->id, 0);
    struct sql_value v;
    if (d->pk != PK_COLUMNS) {
        span_status st = row_column(entry, ix->count, &v);
        if (st == SPAN_OK && v.type != SQL_INT) {
            st = SPAN_CORRUPT;
        }
        if (st == SPAN_OK) {
            key_encode(out, &v, COLL_BINARY, false);
        }
        return st;
    }
    for (size_t i = 0; i < d->primary.count; i++) {
        span_status st = row_column(entry, ix->count + i, &v);
        if (st != SPAN_OK) {
            return st;
        }
        key_encode(out, &v, d->primary.collations[i], d->primary.desc[i]);
    }
    return SPAN_OK;
}

span_status index_entry_rowid(const struct table_desc *d, const struct table_index *ix,
                              struct slice entry, struct sql_value *out)
{
    (void)d;
    return row_column(entry, ix->count, out);
}

span_status index_entry_columns(const struct table_desc *d, const struct table_index *ix,
                                struct slice entry, struct sql_value *values)
{
    struct sql_value v[2 * LIMIT_COLUMNS + 1];
    size_t pk = d->pk == PK_COLUMNS ? d->primary.count : 1;
    span_status st = row_decode(entry, v, ix->count + pk);
    if (st != SPAN_OK) {
        return st;
    }
    memset(values, 0, d->column_count * sizeof *values);
    for (size_t i = 0; i < ix->count; i++) {
        values[ix->columns[i]] = v[i];
    }
    if (d->pk == PK_ROWID) {
        values[d->pk_column] = v[ix->count];
    } else if (d->pk == PK_COLUMNS) {
        for (size_t i = 0; i < pk; i++) {
            values[d->primary.columns[i]] = v[ix->count + i];
        }
    }
    return SPAN_OK;
}
