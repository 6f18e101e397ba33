/* Encoding of the messages of txn_msg.h, of transaction ids, and of the replicated log commands and
 * records of the transaction protocol (versioned).
 *
 * Encoders append one whole message {u32 length, u8 kind, u8 version, body} to `out`. Decoders get
 * the body, fill the struct with borrowed slices, and take the arrays they need from `arena`, which
 * the caller clears when it is done with the struct. SPAN_PROTOCOL for anything malformed; never
 * reads past the input, never allocates by an unchecked count. */
#ifndef SPAN_TXN_TXN_CODEC_H
#define SPAN_TXN_TXN_CODEC_H

#include "base/codec.h"
#include "txn/txn_msg.h"

/* Bump allocator for decoded arrays. A zeroed one is empty. */
struct arena {
    struct arena_block *head;
};

void *arena_alloc(struct arena *a, size_t size); /* zeroed, aligned to 8 */
void arena_clear(struct arena *a);               /* keeps one block for reuse */
void arena_deinit(struct arena *a);

/* Splits a frame payload: *at is advanced. OK and the message, NOT_FOUND at the end, PROTOCOL when
 * malformed. */
SPAN_CHECKED span_status msg_next(struct slice frame, size_t *at, uint8_t *kind,
                                  struct slice *body);

void msg_encode_request(struct buf *out, const struct range_request *m);
void msg_encode_response(struct buf *out, const struct range_response *m);
void msg_encode_vote(struct buf *out, const struct txn_vote *m);
void msg_encode_outcome(struct buf *out, const struct txn_outcome *m);
void msg_encode_outcome_ack(struct buf *out, const struct txn_outcome_ack *m);
void msg_encode_query(struct buf *out, uint8_t kind,
                      const struct txn_query *m); /* MSG_TXN_QUERY or MSG_WOUND */
void msg_encode_wounded(struct buf *out, const struct txn_wounded *m);
void msg_encode_keepalive(struct buf *out, const struct keepalive *m);
void msg_encode_heartbeat(struct buf *out, const struct heartbeat *m);
void msg_encode_heartbeat_ack(struct buf *out, const struct heartbeat_ack *m);
void msg_encode_node_request(struct buf *out, const struct node_request *m);
void msg_encode_node_response(struct buf *out, const struct node_response *m);
/* A message whose body is made elsewhere (Raft, snapshots): u64 range, then the bytes. */
void msg_encode_range_bytes(struct buf *out, uint8_t kind, range_id range, struct slice bytes);

SPAN_CHECKED span_status msg_decode_request(struct slice body, struct arena *a,
                                            struct range_request *m);
SPAN_CHECKED span_status msg_decode_response(struct slice body, struct arena *a,
                                             struct range_response *m);
SPAN_CHECKED span_status msg_decode_vote(struct slice body, struct txn_vote *m);
SPAN_CHECKED span_status msg_decode_outcome(struct slice body, struct txn_outcome *m);
SPAN_CHECKED span_status msg_decode_outcome_ack(struct slice body, struct txn_outcome_ack *m);
SPAN_CHECKED span_status msg_decode_query(struct slice body, struct txn_query *m);
SPAN_CHECKED span_status msg_decode_wounded(struct slice body, struct txn_wounded *m);
SPAN_CHECKED span_status msg_decode_keepalive(struct slice body, struct arena *a,
                                              struct keepalive *m);
SPAN_CHECKED span_status msg_decode_heartbeat(struct slice body, struct arena *a,
                                              struct heartbeat *m);
SPAN_CHECKED span_status msg_decode_heartbeat_ack(struct slice body, struct arena *a,
                                                  struct heartbeat_ack *m);
SPAN_CHECKED span_status msg_decode_node_request(struct slice body, struct node_request *m);
SPAN_CHECKED span_status msg_decode_node_response(struct slice body, struct arena *a,
                                                  struct node_response *m);
SPAN_CHECKED span_status msg_decode_range_bytes(struct slice body, range_id *range,
                                                struct slice *bytes);

/* -- replicated log commands (payload of a Raft entry; the entry type says which)
 * ---------------------------- */

enum command {
    CMD_OPEN = 16, /* first entry of a leader's term: floor (rule B6) */
    CMD_COMMIT1,   /* one-range commit */
    CMD_PREPARE,
    CMD_DECISION, /* coordinator: commit or abort, own writes, participants */
    CMD_OUTCOME,  /* participant: how a prepared transaction ended */
    CMD_RESOLVED, /* coordinator: transactions whose participants have all acknowledged */
    CMD_MAINTAIN, /* watermark W (C3) and version-GC horizon (H8) */
    CMD_SPLIT,
    CMD_SPLIT_AHEAD, /* struct cmd_split: such a split will come; changes nothing */
    CMD_FREEZE,      /* the right side of a merge: nothing changes it any more, or it goes on */
    CMD_MERGE,       /* the left side of a merge: takes the frozen right side in, or never will */
};

struct cmd_open {
    struct tt_ts floor;
};

struct cmd_commit { /* CMD_COMMIT1 */
    struct txn_id txn;
    struct tt_ts ts;
    size_t write_count;
    struct txn_write *writes;
};

struct cmd_lock {
    struct span span;
    uint8_t mode;
};

struct cmd_prepare { /* also the stored record of a prepared transaction */
    struct txn_id txn;
    struct txn_id age;
    struct tt_ts prepare_ts;
    struct slice anchor;      /* own */
    struct slice coordinator; /* its anchor */
    node_id coordinator_node; /* hint */
    size_t write_count;
    struct txn_write *writes;
    size_t lock_count; /* every lock held, write keys included (rule C10) */
    struct cmd_lock *locks;
};

struct cmd_decision {
    struct txn_id txn;
    bool commit;
    struct tt_ts ts;
    struct slice anchor; /* the coordinator's */
    size_t write_count;
    struct txn_write *writes;
    size_t participant_count;
    struct txn_participant *participants;
};

struct cmd_outcome {
    struct txn_id txn;
    bool commit;
    struct tt_ts ts;
};

struct cmd_resolved {
    size_t count;
    struct txn_id *txns;
};

struct cmd_maintain {
    struct tt_ts watermark; /* W */
    struct tt_ts horizon;
};

struct cmd_split {
    struct slice key;
    range_id right;
    uint64_t generation; /* of both halves afterwards */
    struct tt_ts floor;  /* >= the left's lease end: the right half's first floor (F1) */
};

struct cmd_freeze {
    bool undo; /* the merge will never be: the range goes on */
    range_id left;
    uint64_t token;          /* the left side's generation when it began */
    struct slice left_start; /* finds the left side, whatever it is called by then */
};

struct cmd_merge {
    bool undo; /* the merge of this token will never be */
    range_id right;
    uint64_t token;        /* the left side's generation: with any other this entry is void */
    uint64_t generation;   /* of the left side afterwards */
    uint64_t freeze_index; /* the right side's state at this entry of its log, which every member */
    uint64_t freeze_term;  /* holds durably */
    struct tt_ts floor;    /* at or above all that either side gave out, read at or closed */
};

void cmd_encode_open(struct buf *out, const struct cmd_open *c);
void cmd_encode_commit(struct buf *out, const struct cmd_commit *c);
void cmd_encode_prepare(struct buf *out, const struct cmd_prepare *c);
void cmd_encode_decision(struct buf *out, const struct cmd_decision *c);
void cmd_encode_outcome(struct buf *out, const struct cmd_outcome *c);
void cmd_encode_resolved(struct buf *out, const struct cmd_resolved *c);
void cmd_encode_maintain(struct buf *out, const struct cmd_maintain *c);
void cmd_encode_split(struct buf *out, const struct cmd_split *c);
void cmd_encode_freeze(struct buf *out, const struct cmd_freeze *c);
void cmd_encode_merge(struct buf *out, const struct cmd_merge *c);

SPAN_CHECKED span_status cmd_decode_open(struct slice in, struct cmd_open *c);
SPAN_CHECKED span_status cmd_decode_commit(struct slice in, struct arena *a, struct cmd_commit *c);
SPAN_CHECKED span_status cmd_decode_prepare(struct slice in, struct arena *a,
                                            struct cmd_prepare *c);
SPAN_CHECKED span_status cmd_decode_decision(struct slice in, struct arena *a,
                                             struct cmd_decision *c);
SPAN_CHECKED span_status cmd_decode_outcome(struct slice in, struct cmd_outcome *c);
SPAN_CHECKED span_status cmd_decode_resolved(struct slice in, struct arena *a,
                                             struct cmd_resolved *c);
SPAN_CHECKED span_status cmd_decode_maintain(struct slice in, struct cmd_maintain *c);
SPAN_CHECKED span_status cmd_decode_split(struct slice in, struct cmd_split *c);
SPAN_CHECKED span_status cmd_decode_freeze(struct slice in, struct cmd_freeze *c);
SPAN_CHECKED span_status cmd_decode_merge(struct slice in, struct cmd_merge *c);

/* The timestamp of a CMD_COMMIT1, CMD_PREPARE or CMD_DECISION without decoding the rest; none when
 * malformed or an abort. */
struct tt_ts cmd_peek_ts(uint8_t type, struct slice in);

void enc_txn_id(struct buf *b, const struct txn_id *id);
struct txn_id dec_txn_id(struct cursor *c);
/* "<hex begin>-<node>-<hex seq>" and back. */
void txn_id_format(const struct txn_id *id, char out[48]);
SPAN_CHECKED bool txn_id_parse(const char *text, struct txn_id *out);

void enc_descriptor(struct buf *b, const struct range_descriptor *d);
void dec_descriptor(struct cursor *c, struct range_descriptor *d);

#endif
