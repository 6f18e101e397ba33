/* SHOW: the store's tables (ranges, nodes, clocks, transactions, locks), the schema, and session
 * variables. */
#ifndef SPAN_SQL_SHOW_H
#define SPAN_SQL_SHOW_H

#include "sql/schema.h"
#include "sql/split.h"

struct sql_session;

/* Fills *out (the caller deinits it, also after false). Keys in start_key and end_key become
 * readable. False with the session's error. */
bool show_run(struct sql_session *s, const struct sql_stmt *st, struct kv_table *out);
/* Column names and types without asking the store, for Describe. */
bool show_describe(struct sql_session *s, const struct sql_stmt *st, struct kv_table *out);
/* "/acct/42", "/acct@by_owner/'x'", "/system/1"; hex where nothing is known. all may be NULL. */
void show_key(struct slice key, struct table_desc *const *all, size_t count, struct buf *out);

#endif
