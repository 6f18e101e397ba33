/* Schema changes: CREATE and DROP of tables, indexes and views, TRUNCATE, ALTER TABLE .. SPLIT AT.
 *
 * A table's definition is read by SQLite itself: the user's text is run in a scratch database, and
 * what SQLite made of it is read back through its pragmas. DDL is transactional: the descriptor
 * row, the deletion of a span and the new version travel in the session's transaction. An index on
 * a table with rows is built outside explicit transactions: building (DML writes and checks it,
 * nobody reads it), backfill in batches, public. */
#ifndef SPAN_SQL_DDL_H
#define SPAN_SQL_DDL_H

#include "sql/split.h"
#include "sql/sqlstate.h"

struct sql_session;
struct table_desc;
struct table_index;

/* Runs one DDL statement inside the open kv transaction (the caller begins and ends it). False with
 * the session's error. tag: for CommandComplete. notice: text for the client, "" for none. */
bool ddl_run(struct sql_session *s, const struct sql_stmt *st, const char **tag, char *notice,
             size_t notice_size);
/* CREATE INDEX outside explicit transactions: makes its own transactions. */
bool ddl_create_index_online(struct sql_session *s, const struct sql_stmt *st, char *notice,
                             size_t notice_size);
/* ALTER TABLE t SPLIT AT VALUES (..), (..): outside transactions. */
bool ddl_split(struct sql_session *s, const struct sql_stmt *st);
/* Is this ALTER such a split? */
bool ddl_is_split(const struct sql_tokens *t, const struct sql_stmt *st);
/* CREATE TABLE .. AS SELECT: the column definitions' text, or false with the session's error. */
bool ddl_is_create_as(const struct sql_tokens *t, const struct sql_stmt *st);

/* Text that makes main.T, the working set: the user's own DDL, without WITHOUT ROWID, generated
 * columns STORED, the rowid column AUTOINCREMENT, and the unique indexes that were created apart.
 */
bool ddl_shadow_sql(const struct table_desc *d, struct buf *out, struct sql_error *err);
/* Text that makes temp.V for a view. */
bool ddl_view_sql(const struct table_desc *d, struct buf *out);
/* Descriptor from a CREATE TABLE text (name, columns, keys, constraints' indexes). NULL with err.
 */
struct table_desc *ddl_describe(struct sql_session *s, const char *create_sql,
                                struct sql_error *err);
/* Columns of the index that `sql` (its name is `name`) makes on table d. ix is zeroed; deinit it
 * also on false. */
bool ddl_describe_index(struct sql_session *s, const struct table_desc *d, const char *sql,
                        const char *name, struct table_index *ix, struct sql_error *err);

/* After a commit that set s->sweep_due: deletes the keys of what was dropped, in transactions of
 * its own. What it cannot do now it leaves to the next one, with a notice. */
void ddl_sweep(struct sql_session *s);

#endif
