/* Index entries. Key: the index's prefix, the indexed columns, and, unless the index is unique and
 * none of them is NULL, the row's primary key. Value: a row (rowenc.h) of the indexed columns
 * followed by the primary key columns or the rowid, so that queries on those columns need no second
 * look-up and the row's key can be made from any entry (keys under NOCASE cannot be read back).
 *
 * Rule G3: a write locks X every index key it adds or removes; here that follows from dml.c reading
 * each of them with KV_LOCK_UPDATE before it writes. */
#ifndef SPAN_SQL_INDEX_H
#define SPAN_SQL_INDEX_H

#include "sql/schema.h"
#include "sql/sqlstate.h"

/* columns: all columns of the row. rowid: for tables whose key is one. */
void index_entry_key(const struct table_desc *d, const struct table_index *ix,
                     const struct sql_value *columns, int64_t rowid, struct buf *out);
void index_entry_value(const struct table_desc *d, const struct table_index *ix,
                       const struct sql_value *columns, int64_t rowid, struct buf *out);
/* Does the index forbid another row with these values? (Not if one of them is NULL.) */
bool index_is_checked(const struct table_index *ix, const struct sql_value *columns);

/* The error for a key of that index beyond LIMIT_KEY_BYTES (54000, with table, index and limit). */
void index_key_too_large(struct sql_error *e, const struct table_desc *d,
                         const struct table_index *ix, size_t bytes);

span_status SPAN_CHECKED index_entry_row_key(const struct table_desc *d,
                                             const struct table_index *ix, struct slice entry,
                                             struct buf *out);
span_status SPAN_CHECKED index_entry_rowid(const struct table_desc *d, const struct table_index *ix,
                                           struct slice entry, struct sql_value *out);
/* Fills values[column] of the columns the entry holds; the others become NULL. values borrow from
 * entry. */
span_status SPAN_CHECKED index_entry_columns(const struct table_desc *d,
                                             const struct table_index *ix, struct slice entry,
                                             struct sql_value *values);

#endif
