/* Every maximum of the system, with its reason. Reaching one is a clear, named error. */
#ifndef SPAN_BASE_LIMITS_H
#define SPAN_BASE_LIMITS_H

#define KIB    (1024ULL)
#define MIB    (1024ULL * 1024ULL)
#define MS_NS  (1000000ULL)
#define SEC_NS (1000000000ULL)

/* data */
#define LIMIT_KEY_BYTES         (4 * KIB)  /* an index key fits a SQLite page */
#define LIMIT_ROW_BYTES         (1 * MIB)  /* a row fits one log entry */
#define LIMIT_STATEMENT_BYTES   (1 * MIB)  /* SQLite's own parser limit is of that order */
#define LIMIT_TXN_WRITE_BYTES   (64 * MIB) /* a transaction's buffered writes at its gateway */
#define LIMIT_TXN_RANGE_BYTES   (LIMIT_ENTRY_BYTES - 64 * KIB) /* those in one range: one entry */
#define LIMIT_TXN_RANGES        256                            /* participants of one 2PC */
#define LIMIT_TXN_LOCKS         100000 /* above it a transaction's locks merge into spans (G5) */
#define LIMIT_COLUMNS           200
#define LIMIT_RESULT_PAGE_ROWS  1000 /* one scan request's answer */
#define LIMIT_RESULT_PAGE_BYTES (256 * KIB)

/* network */
#define LIMIT_FRAME_BYTES (16 * MIB) /* peer frame; beyond it the link is dropped */
#define LIMIT_MSG_BYTES   (4 * MIB)  /* one message inside a frame */
#define LIMIT_OUTBOX_BYTES                                                                         \
    (64 * MIB) /* queued towards one peer; beyond it messages are dropped                          \
                */
#define LIMIT_PEERS            64
#define LIMIT_PG_STARTUP_BYTES 10000 /* before authentication, as PostgreSQL */
#define LIMIT_SESSIONS         1000  /* client connections per node, then 53300 */

/* consensus */
#define LIMIT_ENTRY_BYTES      (3 * MIB)  /* one log entry; fits a message */
#define LIMIT_REPLICAS         7          /* members of one range */
#define LIMIT_RANGES           10000      /* replicas a node opens */
#define RANGE_MERGE_BYTES      (8 * MIB)  /* of the right side: copied while both stand still */
#define RANGE_SPLIT_BYTES      (64 * MIB) /* a range's file, then it is split; a setting */
#define LIMIT_APPEND_BYTES     (1 * MIB)  /* entries in one append message */
#define LIMIT_INFLIGHT_APPENDS 64         /* pipelined append messages per follower and range */

/* time */
#define LEASE_NS_DEFAULT   (250 * MS_NS) /* I4: a killed leader is replaced in about 300 ms */
#define LEASE_NS_MAX       (1000 * MS_NS) /* B3: a restarted replica waits this long before it votes */
#define LEASE_RENEW_NS     (50 * MS_NS)
#define STAND_SPREAD_NS    (10 * MS_NS) /* I4: per rank, after the promise ran out */
#define EPSILON_NS_DEFAULT (1 * MS_NS)
#define EPSILON_NS_MAX     (25 * MS_NS)  /* lease >= 10 x epsilon_max (B10) */
#define SKEW_NS_MAX        (100 * MS_NS) /* A7: >= 2 x the largest epsilon a node may serve with */
#define TXN_AGE_NS_MAX                                                                             \
    (300 * SEC_NS) /* C3: commit-phase messages of older transactions are refused */
#define TXN_IDLE_NS_DEFAULT (60 * SEC_NS) /* an idle open transaction is rolled back */
#define VERSION_WINDOW_NS   (3600 * SEC_NS)
#define ASK_AFTER_NS        (200 * MS_NS) /* C8: an in-doubt participant asks, then doubling */
#define ASK_AGAIN_NS        (60 * MS_NS)  /* then again, growing by half to a second */
#define GATEWAY_LOST_NS     (5 * SEC_NS)  /* C8: locks of a silent session are dropped */
#define GATEWAY_CHECK_NS    (500 * MS_NS) /* ... and of a silent node, at the next look */

/* storage */
#define WAL_SEGMENT_BYTES (64 * MIB)
#define FLUSH_BYTES       (8 * MIB) /* memory table size that starts a flush */

#endif
