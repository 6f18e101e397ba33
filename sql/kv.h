/* The key-value store as SQL sees it: ordered keys, transactions, snapshot reads. sql/ calls it
 * through this table of functions; coordinator/kv_session.c implements it over the ranges,
 * tests/lib/kv_mem.c in memory for SQL's own tests. Calls block the calling session thread; one
 * thread at a time per struct kv (except kv_ops.cancel).
 *
 * Keys. Everything of a table lives under KEY_TABLE_PREFIX (0x01) + big-endian u32 table id +
 * big-endian u16 index id (0: the rows by primary key) + the encoded columns (sql/keyenc.h). Table
 * ids below KEY_USER_TABLE_MIN are the system's and lie in range 1, which holds nothing else; user
 * tables start in range 2. A first byte of 0x00 is the range-local key space, which kv owns.
 *
 * Transactions. begin .. commit/rollback; reads see the transaction's own buffered writes; writes
 * are buffered at the gateway until commit. A read-write transaction locks what it reads. A
 * read-only one reads at one timestamp without locks. After any RETRY-kind status from a read-write
 * transaction the transaction is gone at the ranges: the caller rolls back and reports 40001 (or
 * retries by itself, keeping the age). UNKNOWN_OUTCOME comes from commit only (rule C11). */
#ifndef SPAN_SQL_KV_H
#define SPAN_SQL_KV_H

#include "base/buf.h"
#include "base/status.h"
#include "truetime/truetime.h"

#define KEY_TABLE_PREFIX   0x01
#define KEY_USER_TABLE_MIN 1024

enum kv_lock {
    KV_LOCK_NONE,   /* not in a read-write transaction, or rows whose staleness cannot matter */
    KV_LOCK_SHARED, /* what was searched and returned is locked S until the transaction ends */
    KV_LOCK_UPDATE, /* searched span S, returned rows (or the key of a get, present or absent) X:
                       rule C6 */
};

enum kv_read_mode {
    KV_READ_STRONG,        /* at the gateway's latest, chosen at the first read */
    KV_READ_AT,            /* exactly at `at` */
    KV_READ_MAX_STALENESS, /* the newest timestamp not older than `staleness_ns` that needs no
                              waiting */
};

struct kv_txn_options {
    bool read_only;
    enum kv_read_mode mode;
    struct tt_ts at;
    uint64_t staleness_ns;
    bool autocommit; /* one statement: nobody can ask for its id (E1); a strong single read needs no
                        begin state */
};

struct kv_mark { /* a savepoint's place in the write buffer */
    size_t n;
};

/* Text table, for SHOW. Cells are NUL-terminated strings or NULL for SQL NULL; owned by the table.
 */
struct kv_table {
    size_t columns;
    size_t rows;
    char **names;    /* [columns] */
    unsigned *types; /* [columns]: PostgreSQL type OIDs: 25 text, 20 int8, 16 bool, 701 float8 */
    char **cells;    /* [rows * columns] */
    char *missing; /* "2, 3": nodes that did not answer, what they know is not in it; NULL: none */
};

enum kv_show {
    KV_SHOW_RANGES,
    KV_SHOW_NODES,
    KV_SHOW_CLOCKS,
    KV_SHOW_TRANSACTIONS,
    KV_SHOW_LOCKS,
    KV_SHOW_CLUSTER_SETTINGS,
};

enum kv_txn_outcome {
    KV_TXN_RUNNING,
    KV_TXN_COMMITTED,
    KV_TXN_ABORTED,
    KV_TXN_EXPIRED, /* too long ago: unknown (rule C3) */
};

struct kv;
struct kv_scan;

struct kv_ops {
    span_status (*begin)(struct kv *kv, const struct kv_txn_options *opt, struct span_error *err);
    /* *found false and value empty when absent. value is owned by the caller (cleared first). */
    span_status (*get)(struct kv *kv, struct slice key, enum kv_lock lock, bool *found,
                       struct buf *value, struct span_error *err);
    /* Many keys at once, in parallel over ranges. found[i]/values[i] (n of them, initialised by the
     * caller). */
    span_status (*get_many)(struct kv *kv, const struct slice *keys, size_t n, enum kv_lock lock,
                            bool *found, struct buf *values, struct span_error *err);
    /* Rows of [start, end) in key order (or descending), own writes merged in. end empty: to the
     * end of the key space. hint_rows: how many rows the caller will probably take (0: all); never
     * a limit. */
    span_status (*scan_open)(struct kv *kv, struct slice start, struct slice end, bool reverse,
                             enum kv_lock lock, size_t hint_rows, struct kv_scan **out,
                             struct span_error *err);
    /* NOT_FOUND at the end. key and value are borrowed until the next call on this scan. */
    span_status (*scan_next)(struct kv_scan *s, struct slice *key, struct slice *value,
                             struct span_error *err);
    void (*scan_close)(struct kv_scan *s);
    /* Buffered; copied. The key should have been read with KV_LOCK_UPDATE before (keys that were
     * not are locked X at commit, where a conflict costs the transaction). */
    span_status (*put)(struct kv *kv, struct slice key, struct slice value, struct span_error *err);
    span_status (*del)(struct kv *kv, struct slice key, struct span_error *err);
    struct kv_mark (*mark)(struct kv *kv);
    void (*rollback_to)(
        struct kv *kv,
        struct kv_mark mark); /* undoes buffered writes after the mark; keeps locks */
    span_status (*commit)(struct kv *kv, struct tt_ts *commit_ts, struct span_error *err);
    void (*rollback)(
        struct kv *kv); /* also after a failed statement; harmless without a transaction */

    /* Schema (rule E2). Every later read, write and commit of the open transaction (or the next
     * autocommit one) that touches table_id's keys carries `version`; a range where another version
     * is in force refuses with STALE_SCHEMA. */
    void (*use_table)(struct kv *kv, uint32_t table_id, uint64_t version);
    /* DDL: at commit, version becomes the one in force for table_id in every range that covers the
     * table's keys (0: the table is gone), exclusively against every transaction that used another.
     */
    span_status (*put_schema_version)(struct kv *kv, uint32_t table_id, uint64_t version,
                                      struct span_error *err);
    /* DDL: deletes every key of [start, end) in the transaction (DROP, TRUNCATE), in pages. */
    span_status (*delete_span)(struct kv *kv, struct slice start, struct slice end,
                               struct span_error *err);

    /* `count` consecutive numbers never given before for (counter), drawn in a transaction of its
     * own, in blocks; gaps are normal. Starts at 1. seen_max (0: none): the block lies above it
     * (explicit rowids). */
    span_status (*alloc_ids)(struct kv *kv, uint32_t counter, uint64_t count, uint64_t seen_max,
                             uint64_t *first, struct span_error *err);

    /* What the answer gate must wait for before any answer of this session leaves (rule D0): commit
     * timestamp reported and everything examined since the last call of clear_not_before. */
    struct tt_ts (*not_before)(struct kv *kv);
    void (*clear_not_before)(struct kv *kv);
    /* Text id ("…@…") of the open transaction once its coordinator is fixed; "" before (rule E1).
     * Borrowed until the next call. */
    const char *(*txn_id)(struct kv *kv);
    bool (*in_txn)(struct kv *kv);
    /* The timestamp that reads of the open read-only transaction use; none before the first read.
     */
    struct tt_ts (*read_ts)(struct kv *kv);
    struct tt_ts (*now_latest)(struct kv *kv);

    /* Statement deadline in monotonic ns (0: none) and cancellation (any thread): blocked calls
     * return soon, with CANCELED, DEADLINE (waited for a lock) or UNAVAILABLE (no leader answered).
     */
    void (*set_deadline)(struct kv *kv, uint64_t mono_ns);
    /* How long one read may wait for locks of others, in ns (0: until the deadline): DEADLINE. */
    void (*set_lock_timeout)(struct kv *kv, uint64_t ns);
    void (*cancel)(struct kv *kv);
    void (*clear_cancel)(struct kv *kv);

    /* Administration, outside any transaction. */
    span_status (*split_at)(struct kv *kv, struct slice key,
                            struct span_error *err); /* OK if already a boundary */
    span_status (*transfer_leader)(struct kv *kv, uint64_t range, uint32_t node,
                                   struct span_error *err);
    /* Adds a replica on a node, removes one, or both; 0: none. OK if it is so already. */
    span_status (*move_replica)(struct kv *kv, uint64_t range, uint32_t add, uint32_t remove,
                                struct span_error *err);
    /* Makes two neighbours one, whichever is named first. */
    span_status (*merge_ranges)(struct kv *kv, uint64_t left, uint64_t right,
                                struct span_error *err);
    span_status (*show)(struct kv *kv, enum kv_show what, struct kv_table *out,
                        struct span_error *err);
    span_status (*txn_status)(struct kv *kv, const char *id, enum kv_txn_outcome *out,
                              struct tt_ts *ts, struct span_error *err);
    span_status (*set_cluster)(struct kv *kv, const char *name, const char *value,
                               struct span_error *err);
    void (*free)(struct kv *kv);
};

struct kv { /* embedded first in the implementation */
    const struct kv_ops *ops;
};

void kv_table_deinit(struct kv_table *t); /* in sql/kv_table.c, as is: */
void kv_table_init(struct kv_table *t, size_t columns, const char *const *names,
                   const unsigned *types);
void kv_table_add_row(struct kv_table *t, const char *const *cells); /* copies */

#endif
