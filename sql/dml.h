/* INSERT, UPDATE and DELETE through the working set (DESIGN 9).
 *
 * main.T is a real, empty table with the user's own constraints. The rows an UPDATE or DELETE may
 * touch are fetched into it by a SELECT on the locking twin of temp.T (rule C6); the user's
 * statement runs on main.T, where SQLite enforces everything; the preupdate hook captures the row
 * changes. Then every new primary or unique key among them is looked up (rule G1: of UPDATE too):
 * if another row has it, the statement fails with 23505, or, where a conflict clause decides, those
 * rows are loaded and the statement runs again, with the same random seed, `now` and allocated ids
 * (rule G2), at most 8 times. Only then the changes go to the transaction's write buffer, index
 * entries with them. An error before leaves the write buffer as it was. */
#ifndef SPAN_SQL_DML_H
#define SPAN_SQL_DML_H

#include "sql/session_impl.h"

#define DML_RUNS_MAX 8

/* Runs the plan in the open kv transaction. bind sets the parameters of a prepared statement.
 * returning (may be NULL if the plan has none) collects rendered rows. False with s->err. */
bool dml_run(struct sql_session *s, struct plan *p, bool (*bind)(void *ctx, sqlite3_stmt *st),
             void *ctx, struct row_set *returning, uint64_t *changes);
/* An INSERT of the gateway's own, without parameters. */
bool dml_run_text(struct sql_session *s, const char *sql);
/* Prepares p->run and p->prefetch from the rewritten statement. False with s->err. */
bool dml_prepare_plan(struct sql_session *s, struct plan *p, const struct sql_stmt *st);
/* Called by SQLite for each row change while s->capture is set. */
void dml_preupdate(void *ctx, sqlite3 *db, int op, const char *zdb, const char *table,
                   sqlite3_int64 key1, sqlite3_int64 key2);

#endif
