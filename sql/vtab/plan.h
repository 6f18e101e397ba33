/* Constraints to key spans: what xBestIndex answers.
 *
 * Pure: from a table's shape (its indexes) and SQLite's list of constraints it picks an index, how
 * many of its columns are pinned by equality (one of them perhaps an IN list), a range on the next
 * column, and whether the order asked for comes out of the scan. The choice travels to xFilter as
 * text (idxStr).
 *
 * Traps of 3.40 that shape it (notes/probes.md 3.2): LIMIT and OFFSET are never consumed, only
 * taken as a hint, because row-value comparisons are offered in part; `omit` is never set, because
 * right-hand sides come without the column's affinity, so SQLite checks every row again; a
 * constraint is used only if its collation is the index column's. */
#ifndef SPAN_SQL_VTAB_PLAN_H
#define SPAN_SQL_VTAB_PLAN_H

#include <sqlite3.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VTAB_EQ_MAX 16

struct vtab_index {
    size_t count;
    const uint16_t *columns;
    const bool *desc;
    const char *const *collations; /* names, [count] */
    bool unique;                   /* all columns pinned by non-NULL values: at most one row */
    uint64_t covers;               /* columns an entry holds, as colUsed bits; primary: all */
    const char *name;              /* for EXPLAIN; NULL: primary key */
};

struct vtab_shape {
    const char *declare; /* CREATE TABLE text for sqlite3_declare_vtab */
    size_t column_count;
    bool has_rowid;     /* index 0 is the rowid: its one column may be -1 as well as rowid_column */
    int rowid_column;   /* INTEGER PRIMARY KEY column, -1: hidden */
    size_t index_count; /* at least 1: the primary key is index 0 (no columns: hidden rowid) */
    const struct vtab_index *indexes;
    const char *const *column_names; /* [column_count], for EXPLAIN */
};

/* The choice. eq values, IN list, lo and hi arrive in xFilter's argv in this order:
 * eq[0..eq_count), lo, hi. */
struct vtab_plan {
    unsigned index;
    unsigned eq_count;
    unsigned
        null_ok; /* bit i: eq[i] is IS NULL or IS: a NULL pins to NULL instead of finding nothing */
    int in_at;   /* which eq is an IN list, -1: none */
    bool has_lo;
    bool lo_incl;
    bool has_hi;
    bool hi_incl;
    bool reverse;
    uint64_t col_used;
    uint64_t hint_rows; /* 0: unknown */
};

/* xBestIndex. SQLITE_OK, SQLITE_NOMEM. */
int vtab_plan_best(const struct vtab_shape *shape, sqlite3_index_info *info);
/* idxStr: the numbers of the plan, then "|" and the choice in words, for EXPLAIN. */
/* The plan of an idxStr made by vtab_plan_best. False: not one. */
bool vtab_plan_parse(const char *idx_str, struct vtab_plan *out);

#endif
