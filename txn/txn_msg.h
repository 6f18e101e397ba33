/* Every message between nodes that is not Raft's own: requests of a gateway to a range, answers,
 * the messages of two-phase commit, node-pair heartbeats, questions to a node. A frame's payload is
 * a sequence of messages, each {u32 length of what follows, u8 kind, u8 version, body}. Bodies are
 * encoded by txn_codec.c. Decoded structs borrow from the message bytes; encoders append a whole
 * message (with its length) to a buf.
 *
 * Addressing. A gateway's request names a range id, generation and (when it has locks there) the
 * term that granted them; the node that gets it answers with a refusal that carries what it knows
 * (leader hint, descriptors) when it cannot serve. Messages of 2PC name the *anchor key* (rule C2):
 * any node with a replica that covers the key passes a message on to the leader it knows (`hops`
 * bounds that), so a stale hint costs one hop. */
#ifndef SPAN_TXN_TXN_MSG_H
#define SPAN_TXN_TXN_MSG_H

#include "base/limits.h"
#include "base/status.h"
#include "txn/txn_types.h"

#define MSG_VERSION 1

enum msg_kind {
    MSG_RAFT = 1,  /* u64 range, then shard/raft/raft_msg.h */
    MSG_HEARTBEAT, /* node pair: leases, commit indexes, closed timestamps of many ranges */
    MSG_HEARTBEAT_ACK,
    MSG_SNAPSHOT, /* u64 range, snapshot chunk (bulk link) */
    MSG_SNAPSHOT_ACK,
    MSG_REQUEST,     /* gateway -> range: struct range_request */
    MSG_RESPONSE,    /* range -> gateway: struct range_response */
    MSG_WOUNDED,     /* range -> gateway: struct txn_wounded; its locks at that range are gone */
    MSG_KEEPALIVE,   /* gateway -> node: ids of live transactions with locks there */
    MSG_VOTE,        /* participant -> coordinator's range: struct txn_vote */
    MSG_OUTCOME,     /* coordinator -> participant's range: struct txn_outcome */
    MSG_OUTCOME_ACK, /* participant -> coordinator's range: struct txn_outcome_ack */
    MSG_TXN_QUERY,   /* in-doubt participant -> coordinator's range: struct txn_query */
    MSG_WOUND, /* range -> coordinator's range of a prepared holder: struct txn_query (rule C4) */
    MSG_NODE_REQUEST,  /* gateway -> node: struct node_request (SHOW, settings) */
    MSG_NODE_RESPONSE, /* node -> gateway: struct node_response */
    MSG_PROBE,   /* replica that hears no leader -> every node: u64 range, u64 number: am I out? */
    MSG_GONE,    /* the range's leader -> such a replica: u64 range, the same number: it is */
    MSG_REBUILD, /* member with a damaged file -> leader: u64 range, u64 number for the snapshot */
    MSG_MERGE,   /* between the sides of a merge: u64 range, shard/range/range_merge.c's words */
};

/* -- requests of a gateway to a range
 * ----------------------------------------------------------------------- */

enum range_op {
    OP_READ = 1,   /* gets and scans, with locks or at a timestamp */
    OP_COMMIT1,    /* the whole transaction lies in this range: commit it in one record */
    OP_COORDINATE, /* this range is the coordinator of a 2PC: its own writes and the list of
                      participants */
    OP_PREPARE,    /* this range is a participant */
    OP_VALIDATE,   /* COMMIT of a transaction without writes: locks still held? floor to read_ts,
                      locks go */
    OP_RELEASE,    /* rollback: drop the transaction's locks; answered, harmless twice */
    OP_STATUS, /* SHOW TRANSACTION STATUS of txn (running / committed@ts / aborted, rule C3, E1) */
    OP_SPLIT,  /* split at spans[0].start; new_range is the right half's id */
    OP_TRANSFER, /* hand leadership to new_range (a node id) */
    OP_MEMBERS,  /* change members: new_range = RANGE_MEMBERS(node to add, node to remove) */
    OP_MERGE,    /* take in the neighbour on the right, which must be new_range */
};

/* OP_MEMBERS: either may be 0. With RANGE_MEMBERS_CHECK nothing is changed: the answer says whether
 * the change makes sense as somebody's wish. The change itself is lenient, so that one whose answer
 * was lost may be sent again. */
#define RANGE_MEMBERS(add, remove) ((uint64_t)(add) | ((uint64_t)(remove) << 32))
#define RANGE_MEMBERS_CHECK        (1ULL << 63)

struct schema_use {
    uint32_t table_id;
    uint64_t version;
};

enum read_lock {
    READ_LOCK_NONE = 0,
    READ_LOCK_SHARED, /* S on what was searched */
    READ_LOCK_UPDATE, /* S on a searched span, X on the keys returned; X on a point, present or
                         absent (C6, G3) */
};

struct read_span {
    struct span span;
    bool reverse;
    uint32_t max_rows; /* 0: LIMIT_RESULT_PAGE_ROWS */
};

/* Lock held elsewhere by the transaction and recorded in its prepare record is the range's own
 * knowledge: requests never list locks, the range looks them up in its lock table by txn id. */
struct range_request {
    uint8_t op;
    uint64_t request_id; /* unique per gateway process; echoed */
    node_id gateway;
    uint64_t incarnation; /* of the gateway process */
    range_id range;
    uint64_t generation; /* of the descriptor the gateway used */
    uint64_t term; /* term whose leader granted this transaction's locks here; 0: none here yet.
                      Another term refuses with LOCKS_LOST (rule C1) */
    struct txn_id txn;
    struct txn_id age;    /* wound-wait priority; the id of the first try */
    uint64_t budget_ns;   /* time left until the request's deadline when it was sent (C8, C12) */
    bool may_wait;        /* false: WOULD_WAIT instead of queueing for a lock */
    bool follower_ok;     /* OP_READ at a timestamp: any replica whose safe time has reached it may
                             answer */
    struct tt_ts read_ts; /* OP_READ: 0: current, with locks; else lock-free at this timestamp.
                             OP_VALIDATE: the timestamp t to validate at */
    struct tt_ts
        seen; /* commit ops: newest version timestamp the transaction has examined anywhere (A2) */
    /* OP_READ */
    size_t span_count;
    struct read_span *spans;
    uint8_t lock; /* enum read_lock */
    /* schema versions in force that this request relies on (rule E2) */
    size_t schema_count;
    struct schema_use *schema;
    /* commit ops */
    size_t write_count;
    struct txn_write *writes;
    struct slice anchor; /* this range's anchor key for the transaction: any key of the txn in it */
    struct slice coordinator;   /* OP_PREPARE, OP_STATUS: anchor key of the coordinator */
    range_id coordinator_range; /* hint */
    node_id coordinator_node;   /* hint: where its leader was */
    size_t participant_count;   /* OP_COORDINATE: the others (not itself) */
    struct txn_participant *participants;
    /* admin */
    uint64_t new_range;
};

struct txn_participant {
    struct slice anchor;
    range_id range; /* hint */
    node_id node;   /* hint */
};

/* What a node knows of a range; in refusals and node responses. Higher generations win (rule F4).
 */
struct range_descriptor {
    range_id range;
    uint64_t generation;
    struct slice start;
    struct slice end; /* empty: to the end of the key space */
    size_t member_count;
    node_id members[LIMIT_REPLICAS];
    node_id leader; /* hint, 0 unknown */
};

struct row {
    struct slice key;
    struct slice value;
    uint32_t span; /* index of the read span it answers */
};

enum txn_state {
    TXN_STATE_RUNNING = 1,
    TXN_STATE_COMMITTED,
    TXN_STATE_ABORTED,
    TXN_STATE_EXPIRED,
};

/* status:
 *  OK; NOT_LEADER (leader hint set), STALE_DESCRIPTOR (descriptors set), STALE_SCHEMA, LOCKS_LOST,
 * WOUNDED, CONFLICT (no vote), ABORTED (abort record replicated), DEADLINE, OVERLOADED, CLOCK,
 * UNAVAILABLE, BELOW_HORIZON, IN_FUTURE, WOULD_WAIT, TOO_LARGE, INVALID: all of them say "not
 * proposed" or "aborted for good": 40001 material is safe. UNKNOWN_OUTCOME (commit ops only):
 * proposed, then leadership was lost: ask with the same txn id again (rule C11). */
struct range_response {
    uint64_t request_id;
    uint8_t op;
    uint16_t status; /* span_status */
    range_id range;
    uint64_t generation;
    uint64_t term;  /* of the leader that answered: the lock token */
    node_id leader; /* hint */
    struct tt_ts
        seen; /* reads: newest version timestamp examined, also tombstones and filtered rows */
    struct tt_ts ts;   /* commit ops, status: commit timestamp; follower reads: t_safe */
    uint8_t txn_state; /* OP_STATUS: enum txn_state */
    size_t row_count;
    struct row *rows;
    /* per read span: where the answer stopped when it did not finish. A span absent here is
     * complete. */
    size_t resume_count;
    struct read_resume *resumes;
    size_t descriptor_count;
    struct range_descriptor *descriptors;
    struct slice text; /* detail for people, may be empty */
};

struct read_resume {
    uint32_t span;
    struct slice
        key; /* forward: first key not covered yet; reverse: exclusive upper end of what is left */
};

/* -- between ranges
 * ----------------------------------------------------------------------------------------- */

struct txn_vote {
    struct slice coordinator; /* addressee's anchor key */
    uint8_t hops;
    struct txn_id txn;
    struct slice participant; /* sender's anchor key */
    range_id range;
    node_id node; /* sender: where its leader is */
    bool yes;
    struct tt_ts prepare_ts; /* yes */
    uint16_t status;         /* no: why */
};

struct txn_outcome {
    struct slice participant; /* addressee's anchor key */
    uint8_t hops;
    struct txn_id txn;
    bool commit;
    struct tt_ts ts;
    struct slice coordinator;
    node_id node; /* sender */
};

struct txn_outcome_ack {
    struct slice coordinator;
    uint8_t hops;
    struct txn_id txn;
    struct slice participant;
};

struct txn_query { /* MSG_TXN_QUERY and MSG_WOUND */
    struct slice coordinator;
    uint8_t hops;
    struct txn_id txn;
    struct slice participant; /* who asks; empty in MSG_WOUND */
    node_id node;
    struct txn_id by; /* MSG_WOUND: age of the older transaction that waits */
};

struct txn_wounded {
    uint64_t incarnation; /* gateway's */
    range_id range;
    struct txn_id txn;
    uint16_t status; /* WOUNDED or LOCKS_LOST */
};

struct keepalive {
    node_id gateway;
    uint64_t incarnation;
    size_t count;
    struct txn_id *txns;
};

/* -- node pair
 * ---------------------------------------------------------------------------------------------- */

struct heartbeat_range {
    range_id range;
    uint64_t term;
    uint64_t last_index; /* last entry sent to this member */
    uint64_t commit;
    bool lease;            /* the message's lease_end is asked for this range */
    bool closed;           /* the message's closed timestamp holds for this range ... */
    uint64_t closed_index; /* ... once this index is applied: the last one proposed (rule A4) */
};

/* One message per node pair every LEASE_RENEW_NS: the lease end e (B2) and closed timestamp are
 * common to all ranges, the (range, term) list is what makes a renewal count only for ranges whose
 * term has not moved on (B1). */
struct heartbeat {
    node_id from;
    struct tt_interval sent; /* sender's interval at sending (B8) */
    uint64_t seq;
    struct tt_ts lease_end;
    struct tt_ts closed;
    bool unfit;             /* the sender's disk is too slow to lead (H10) */
    uint32_t replicas;      /* it holds */
    uint64_t nodes_version; /* of the node table it has in force */
    size_t count;
    struct heartbeat_range *ranges;
};

struct heartbeat_ack_range {
    range_id range;
    bool known;    /* false: no such replica here, the rest is zero */
    uint64_t term; /* the member's own */
    struct tt_ts promised;
    uint64_t match;
    uint64_t accepted;
    uint64_t last_index;
    bool behind;
    bool ahead; /* the right side of the split to come is built (engine_split_ahead) */
};

struct heartbeat_ack {
    node_id from;
    struct tt_interval sent;
    struct tt_interval echo_sent; /* the heartbeat's own, for the round-trip check of B8 */
    uint64_t seq;
    size_t count;
    struct heartbeat_ack_range *ranges;
};

/* -- questions to a node
 * ------------------------------------------------------------------------------------ */

enum node_op {
    NODE_OP_DESCRIPTORS = 1, /* all range descriptors this node hosts -> descriptors */
    NODE_OP_SHOW,            /* arg: enum kv_show number -> rows of text cells */
    NODE_OP_SET,             /* text: "name=value": apply a cluster setting on this node */
    NODE_OP_TRUE_TIME,       /* clocks */
};

struct node_request {
    uint8_t op;
    uint64_t request_id;
    node_id gateway;
    uint32_t arg;
    struct slice text;
};

struct node_response {
    uint64_t request_id;
    node_id node;
    uint16_t status;
    struct slice text; /* error text */
    size_t descriptor_count;
    struct range_descriptor *descriptors;
    uint32_t columns; /* cells = columns * rows, each a slice; data NULL for SQL NULL */
    size_t cell_count;
    struct slice *cells;
};

#endif
