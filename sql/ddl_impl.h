/* What ddl.c, backfill.c and sweep.c share. */
#ifndef SPAN_SQL_DDL_IMPL_H
#define SPAN_SQL_DDL_IMPL_H

#include "sql/ddl.h"
#include "sql/schema.h"

/* A DDL statement's rewritten text, tokenised by itself. */
struct ddl_text {
    struct buf sql;
    struct sql_tokens t;
    struct buf name; /* NUL-terminated after parsing */
    struct buf table;
};

bool ddl_text_init(struct ddl_text *x, struct sql_session *s);
void ddl_text_deinit(struct ddl_text *x);
bool ddl_take_name(struct sql_session *s, const struct sql_tokens *t, size_t *at, struct buf *out);
/* Skips IF [NOT] EXISTS. */
bool ddl_if(const struct sql_tokens *t, size_t *at, bool not_exists);
bool ddl_lock_name(struct sql_session *s, const char *name, struct table_desc **out);
bool ddl_put_desc(struct sql_session *s, struct table_desc *d, bool created);
bool ddl_delete_name(struct sql_session *s, const char *name);
bool ddl_delete_index_span(struct sql_session *s, uint32_t table, uint16_t index);
bool ddl_parse_index(struct sql_session *s, struct ddl_text *x, bool *unique, bool *soft,
                     size_t *open);
bool ddl_add_index(struct sql_session *s, struct ddl_text *x, bool unique, bool soft, size_t open,
                   struct table_desc **out, bool *building, char *notice, size_t notice_size);
/* Builds an index over the rows of a small table in the open transaction, and makes it public. */
bool ddl_fill_in_block(struct sql_session *s, const struct table_desc *d, const char *name);
bool ddl_drop_index_named(struct sql_session *s, const char *name);
/* Runs step in a transaction of its own, again after retryable failures. Not inside a block. */
bool ddl_in_txn(struct sql_session *s, bool (*step)(void *ctx), void *ctx);

/* sweep.c: keys of what the open transaction gives up. */
/* Few enough to be deleted in the transaction itself? */
bool ddl_span_is_small(struct sql_session *s, struct slice start, struct slice end, bool *small);
/* Notes the span for deletion after the commit. Nothing may read or write it from then on. */
bool ddl_sweep_later(struct sql_session *s, struct slice start, struct slice end);
/* Deletes it now if it is small, else later. */
bool ddl_remove_span(struct sql_session *s, struct slice start, struct slice end);

#endif
