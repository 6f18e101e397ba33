/* Vocabulary of the transaction protocol: ids, ages, spans, lock modes. No code, no I/O. */
#ifndef SPAN_TXN_TXN_TYPES_H
#define SPAN_TXN_TXN_TYPES_H

#include "base/buf.h"
#include "truetime/truetime.h"

typedef uint32_t node_id;  /* 1 .. LIMIT_PEERS; 0: none */
typedef uint64_t range_id; /* 1: system range; 0: none */

/* Identifies a transaction for ever. begin is the gateway's `latest` at BEGIN (rule C3: the id
 * carries its begin timestamp); node and seq make it unique (seq starts at random when a gateway
 * starts). */
struct txn_id {
    uint64_t begin_ns;
    uint32_t node;
    uint32_t seq;
};

/* Age for wound-wait (rule C7): the id of the first try; a retry keeps it. Smaller is older. */
static inline int txn_id_cmp(const struct txn_id *a, const struct txn_id *b)
{
    if (a->begin_ns != b->begin_ns) {
        return a->begin_ns < b->begin_ns ? -1 : 1;
    }
    if (a->node != b->node) {
        return a->node < b->node ? -1 : 1;
    }
    return a->seq == b->seq ? 0 : a->seq < b->seq ? -1 : 1;
}

static inline bool txn_id_eq(const struct txn_id *a, const struct txn_id *b)
{
    return txn_id_cmp(a, b) == 0;
}

static inline bool txn_id_is_none(const struct txn_id *a)
{
    return a->begin_ns == 0;
}

/* [start, end). end empty: a point when `point`, else to the end of the key space. */
struct span {
    struct slice start;
    struct slice end;
    bool point; /* exactly the key `start` */
};

enum lock_mode {
    LOCK_SHARED = 1,
    LOCK_EXCLUSIVE = 2,
};

/* A buffered write. Keys whose first byte is 0x00 are range-local (schema versions): they belong to
 * whichever range the request names. */
struct txn_write {
    struct slice key;
    struct slice value; /* ignored for a tombstone */
    bool tombstone;
};

/* What a write takes of LIMIT_TXN_RANGE_BYTES. */
static inline size_t txn_write_bytes(const struct txn_write *w)
{
    return w->key.size + w->value.size + 16;
}

/* Range-local key under which a range holds the schema version in force for a table (rule E2):
 * value u64, little-endian; absent or 0: the table is not there. A DDL transaction writes it in
 * every range that covers the table; every other one locks it S. */
#define SCHEMA_KEY_BYTES 6

static inline struct slice schema_key(uint8_t out[SCHEMA_KEY_BYTES], uint32_t table_id)
{
    out[0] = 0;
    out[1] = 's';
    for (int i = 0; i < 4; i++) {
        out[2 + i] = (uint8_t)(table_id >> (8 * i));
    }
    return slice_of(out, SCHEMA_KEY_BYTES);
}

#endif
