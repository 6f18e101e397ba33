/* Table descriptors: what SQL knows of a table, how it is stored, and the cache of a node.
 *
 * Stored in system table 1 (SYS_TABLE_DESCRIPTORS), one row per name, key = the name in lower case:
 * a table or view with its whole descriptor, or an index name that points to its table (tables,
 * views and indexes share one name space, as in SQLite). A descriptor is immutable once published
 * and carries a version that grows with each DDL statement on the table; the ranges hold the
 * version in force (rule E2), so a cached descriptor is only ever out of date, never wrong: its use
 * is refused with STALE_SCHEMA and it is loaded again. The cache is shared by the sessions of a
 * node. */
#ifndef SPAN_SQL_SCHEMA_H
#define SPAN_SQL_SCHEMA_H

#include "sql/keyenc.h"
#include "sql/kv.h"

#include <stdatomic.h>

#define SYS_TABLE_DESCRIPTORS 1
#define SYS_TABLE_DROPPED     2 /* key spans that nobody uses any more, see sweep.c */
#define COUNTER_TABLE_ID      1 /* kv alloc_ids: table ids; n gives KEY_USER_TABLE_MIN - 1 + n */
#define LIMIT_NAME_BYTES      255
#define LIMIT_TABLE_INDEXES   64

enum desc_kind {
    DESC_TABLE = 1,
    DESC_INDEX_NAME = 2, /* points to its table */
    DESC_VIEW = 3,
};

struct table_column {
    char *name;
    char *decl_type; /* "" when none */
    enum sql_affinity affinity;
    enum sql_collation collation;
    bool notnull;
    bool generated; /* computed; stored like any other, the working set computes it */
    bool has_default;
};

enum index_state {
    INDEX_PUBLIC,
    INDEX_BUILDING, /* written and checked by DML, not read: backfill is on its way */
};

/* An index; the primary key is one with id 0. */
struct table_index {
    uint16_t id;
    char *name; /* for error reports: "t_pkey", "t_a_key", or the user's */
    char *sql;  /* CREATE INDEX text, "" for those from CREATE TABLE */
    bool unique;
    enum index_state state;
    size_t count;
    uint16_t *columns;
    bool *desc;
    enum sql_collation *collations;
};

enum pk_kind {
    PK_ROWID,   /* INTEGER PRIMARY KEY: the column is the rowid */
    PK_HIDDEN,  /* none declared: hidden rowid keys */
    PK_COLUMNS, /* declared, any other */
};

struct table_desc {
    atomic_uint refs;
    enum desc_kind kind;
    uint32_t id;
    uint64_t version;
    char *name;  /* as the user wrote it */
    char *table; /* DESC_INDEX_NAME: its table */
    char *sql;   /* CREATE TABLE or CREATE VIEW as the user wrote it */
    size_t column_count;
    struct table_column *columns;
    enum pk_kind pk;
    uint16_t pk_column;         /* PK_ROWID */
    struct table_index primary; /* PK_ROWID: its one column; PK_HIDDEN: no columns */
    bool conflict_clauses;      /* the DDL has ON CONFLICT in a constraint */
    size_t index_count;
    struct table_index *indexes;
    uint16_t next_index_id;
};

struct table_desc *table_desc_new(void);
struct table_desc *table_desc_ref(struct table_desc *d);
void table_desc_unref(struct table_desc *d); /* NULL is ignored */
struct table_desc *table_desc_copy(const struct table_desc *d);
void table_index_deinit(struct table_index *ix);
void table_desc_encode(const struct table_desc *d, struct buf *out);
span_status SPAN_CHECKED table_desc_decode(struct slice in, struct table_desc **out);

/* Column by name, case-insensitive; -1: none. */
int table_find_column(const struct table_desc *d, const char *name);
struct table_index *table_find_index(struct table_desc *d, const char *name);
/* Constraint name for a SQLite message's column list ("t.a, t.b"); NULL: none. Borrowed from d. */
const char *table_constraint_of(const struct table_desc *d, const char *columns);

/* Keys. row_pk is the row's position: its primary key values, or the rowid. */
void table_row_key(const struct table_desc *d, const struct sql_value *columns, int64_t rowid,
                   struct buf *out);
/* System row that holds the descriptor of a name. */
void schema_name_key(const char *name, struct buf *out);
void schema_lower(const char *name, struct buf *out);

/* The cache of a node. */
struct schema_cache;
struct schema_cache *schema_cache_new(void);
void schema_cache_free(struct schema_cache *c);
/* Grows with every change of the cache; sessions compare it to notice that. */
uint64_t schema_cache_generation(const struct schema_cache *c);
/* A reference, or NULL. */
struct table_desc *schema_cache_get(struct schema_cache *c, const char *name);
/* All of them, a reference each, in an array for the caller to free. Their number. */
size_t schema_cache_all(struct schema_cache *c, struct table_desc ***out);
/* Takes a reference of its own. An older version of the same table id does not replace a newer one.
 */
void schema_cache_put(struct schema_cache *c, struct table_desc *d);
void schema_cache_drop(struct schema_cache *c, const char *name);
/* Largest explicit rowid seen by this node for a table, so that automatic ids lie above it, as
 * SQLite's do. Raises it to `seen` and returns it. */
uint64_t schema_cache_rowid_seen(struct schema_cache *c, uint32_t table_id, uint64_t seen);

/* Descriptor as the open transaction of kv sees it. *out NULL when there is none. */
span_status SPAN_CHECKED schema_load(struct kv *kv, const char *name, enum kv_lock lock,
                                     struct table_desc **out, struct span_error *err);
/* All of them, in name order; the array and the references are the caller's (span_free, unref). */
span_status SPAN_CHECKED schema_load_all(struct kv *kv, struct table_desc ***out, size_t *count,
                                         struct span_error *err);
span_status SPAN_CHECKED schema_store(struct kv *kv, const struct table_desc *d,
                                      struct span_error *err);

#endif
