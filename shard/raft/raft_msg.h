/* Log entries and the messages of one range's Raft group, with their encoding.
 *
 * Range id, sender and receiver travel outside (the node's envelope). Heartbeats are not here: they
 * are coalesced per node pair by the owner, who carries a struct raft_heartbeat per range (raft.h).
 *
 * Payloads are blobs with a reference count, so that an entry is copied once, when it comes out of
 * a frame or a proposal, and then shared by log, WAL submission and messages. The count is plain: a
 * blob belongs to one thread (the range's worker); another thread gets the bytes, not the blob. */
#ifndef SPAN_SHARD_RAFT_RAFT_MSG_H
#define SPAN_SHARD_RAFT_RAFT_MSG_H

#include "base/buf.h"
#include "base/codec.h"
#include "base/limits.h"
#include "base/status.h"
#include "truetime/truetime.h"

typedef uint64_t raft_term;
typedef uint64_t raft_index; /* 1 is the first entry; 0: before the log */

struct raft_blob {
    uint32_t refs;
    uint32_t size;
    uint8_t data[];
};

/* A copy of s, with one reference, owned by the caller. */
struct raft_blob *raft_blob_new(struct slice s);
struct raft_blob *
raft_blob_ref(struct raft_blob *b);        /* one more reference; returns b; NULL stays NULL */
void raft_blob_unref(struct raft_blob *b); /* frees at zero; NULL is ignored */
struct slice raft_blob_slice(const struct raft_blob *b); /* borrowed; empty for NULL */

/* Types of entries: everything but these two belongs to the owner, who gives it a meaning. */
enum {
    RAFT_ENTRY_NONE = 0,    /* never in a log */
    RAFT_ENTRY_CONF = 0xff, /* payload: raft_conf_encode */
};

struct raft_entry {
    raft_index index;
    raft_term term;
    uint8_t type;
    struct raft_blob *payload; /* NULL: empty */
};

enum raft_msg_type {
    RAFT_MSG_APPEND = 1,
    RAFT_MSG_APPEND_ACK = 2,
    RAFT_MSG_VOTE = 3,
    RAFT_MSG_VOTE_ACK = 4,
    RAFT_MSG_TIMEOUT_NOW = 5,
};

/* Leader to follower. Without entries it is a probe. */
struct raft_append {
    raft_index prev_index;
    raft_term prev_term;
    raft_index commit;
    struct tt_ts
        lease_end; /* rule B2: <= sender's earliest + lease length; 0: asks for no promise */
    const struct raft_entry *entries;
    size_t entry_count;
};

enum raft_refusal {
    RAFT_ACK_OK = 0,
    RAFT_ACK_TERM = 1,     /* the append's term is old; the message's term is the newer one */
    RAFT_ACK_MISMATCH = 2, /* no entry (prev_index, prev_term): see hint */
    RAFT_ACK_CLOCK = 3, /* rule A7: an entry's timestamp is too far ahead of the follower's clock */
};

struct raft_append_ack {
    enum raft_refusal refusal;
    raft_index match;    /* entries up to here agree with the leader's log and are durable */
    raft_index accepted; /* entries up to here agree, durable or not; >= match */
    struct tt_ts
        promised; /* rule B2: greatest lease end promised to the leader of this term; 0: none */
    raft_index prev_index; /* MISMATCH, CLOCK: the append's prev_index */
    raft_index hint_index; /* MISMATCH: no entry above this one can agree with the leader's ... */
    raft_term hint_term;   /* ... and the term of that entry here */
};

/* term: the term the candidate stands in (for a pre-vote: would stand in). */
struct raft_vote {
    bool pre;
    raft_index last_index;
    raft_term last_term;
    bool has_release; /* rule B5: the leader of term-1 released its lease to this candidate ... */
    struct tt_ts release; /* ... with this as its floor */
};

struct raft_vote_ack {
    bool pre;
    bool granted;
    raft_term vote_term;   /* the term of the request; the message's term is the voter's own */
    struct tt_ts promised; /* granted: greatest lease end this voter ever promised (rule A1) */
    uint64_t wait_ns; /* refused only for a running promise: about how long it still runs; else 0 */
};

/* Leader to transfer target: stand at once in term+1 (rule B5). */
struct raft_timeout_now {
    struct tt_ts release;
};

struct raft_msg {
    enum raft_msg_type type;
    uint32_t to; /* in messages to send; 0 in decoded ones */
    raft_term term;

    union {
        struct raft_append append;
        struct raft_append_ack append_ack;
        struct raft_vote vote;
        struct raft_vote_ack vote_ack;
        struct raft_timeout_now timeout_now;
    } u;
    struct raft_entry *owned_entries; /* what decoding allocated, for raft_msg_deinit */
};

/* Appends the encoded message to b. */
void raft_msg_encode(struct buf *b, const struct raft_msg *m);
/* Decodes exactly the bytes of s into *out, which must be deinited afterwards (also safe after an
 * error). Entries are copied out of s. PROTOCOL for anything malformed or beyond the limits. */
span_status raft_msg_decode(struct slice s, struct raft_msg *out) SPAN_CHECKED;
void raft_msg_deinit(struct raft_msg *m);

const char *raft_msg_type_name(enum raft_msg_type type);

#endif
