/* The read-only virtual table: SQLite on one side, rows from anywhere on the other. Its users give
 * rows through struct vtab_source_ops: a gateway session from the ranges, a range leader from its
 * local rows, the inspect extension from a replica's file. It knows nothing of keys: the plan's
 * values go to the source, which turns them into spans. xUpdate is NULL, which is what allows
 * WITHOUT ROWID tables with composite keys; rows are changed by sql/dml.c. */
#ifndef SPAN_SQL_VTAB_VTAB_H
#define SPAN_SQL_VTAB_VTAB_H

#include "base/status.h"
#include "sql/vtab/plan.h"

/* What one xFilter asks for. Values are borrowed until filter returns. */
struct vtab_scan {
    struct vtab_plan plan;
    sqlite3_value *
        *eq; /* [plan.eq_count]; the one at plan.in_at is an IN list for vtab_in_first/next */
    sqlite3_value *lo; /* valid if plan.has_lo */
    sqlite3_value *hi;
};

/* All int results are SQLITE_* codes. On an error the source sets *msg to a sqlite3_mprintf string
 * or leaves it NULL; the session keeps the real error itself. */
struct vtab_source_ops {
    /* The table behind a virtual table's name. *table stays valid until release; shape until then
     * too. */
    int (*attach)(void *ctx, const char *name, void **table, const struct vtab_shape **shape,
                  char **msg);
    void (*release)(void *ctx, void *table);
    int (*open)(void *ctx, void *table, void **cursor);
    void (*close)(void *cursor);
    int (*filter)(void *cursor, const struct vtab_scan *scan, char **msg);
    int (*next)(void *cursor, char **msg);
    bool (*eof)(void *cursor);
    int (*column)(void *cursor, sqlite3_context *out, int column);
    sqlite3_int64 (*rowid)(void *cursor);
};

/* Registers module `name` on db; ops and ctx outlive the connection. */
int vtab_register(sqlite3 *db, const char *name, const struct vtab_source_ops *ops, void *ctx);

#endif
