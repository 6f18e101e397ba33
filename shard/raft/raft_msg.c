/* Encoding of raft messages.
 *
 * Format (version 1): u8 version, u8 type, varint term, then by type (integers as varints unless
 * said, timestamps as u64, booleans as one byte):
 *   APPEND       prev_index, prev_term, commit, lease_end, count, entries
 *   APPEND_ACK   u8 refusal, match, accepted, promised, prev_index, hint_index, hint_term
 *   VOTE         pre, last_index, last_term, has_release, release
 *   VOTE_ACK     pre, granted, vote_term, promised, wait_ns
 *   TIMEOUT_NOW  release
 * An entry is (its term minus the one before it, prev_term at first), u8 type, payload with its
 * length. Its index is not sent: entries follow prev_index without a gap. */
#include "shard/raft/raft_msg.h"

#include "base/alloc.h"
#include "base/invariant.h"

#define MSG_VERSION 1
/* An encoded entry is at least: term step, type, payload length. */
#define ENTRY_BYTES_MIN 3
/* As many entries as raft_flush puts into one append (raft.h). */
#define ENTRIES_MAX 4096

struct raft_blob *raft_blob_new(struct slice s)
{
    REQUIRE(s.size <= UINT32_MAX);
    struct raft_blob *b = (struct raft_blob *)span_malloc(sizeof(*b) + s.size);
    b->refs = 1;
    b->size = (uint32_t)s.size;
    if (s.size > 0) {
        memcpy(b->data, s.data, s.size);
    }
    return b;
}

struct raft_blob *raft_blob_ref(struct raft_blob *b)
{
    if (b != NULL) {
        INVARIANT(b->refs > 0);
        INVARIANT(b->refs < UINT32_MAX);
        b->refs++;
    }
    return b;
}

void raft_blob_unref(struct raft_blob *b)
{
    if (b == NULL) {
        return;
    }
    INVARIANT(b->refs > 0);
    b->refs--;
    if (b->refs == 0) {
        span_free(b);
    }
}

struct slice raft_blob_slice(const struct raft_blob *b)
{
    return b == NULL ? slice_of(NULL, 0) : slice_of(b->data, b->size);
}

const char *raft_msg_type_name(enum raft_msg_type type)
{
    switch (type) {
    case RAFT_MSG_APPEND:
        return "append";
    case RAFT_MSG_APPEND_ACK:
        return "append-ack";
    case RAFT_MSG_VOTE:
        return "vote";
    case RAFT_MSG_VOTE_ACK:
        return "vote-ack";
    case RAFT_MSG_TIMEOUT_NOW:
        return "timeout-now";
    }
    return "unknown";
}

static void encode_append(struct buf *b, const struct raft_append *a)
{
    enc_var(b, a->prev_index);
    enc_var(b, a->prev_term);
    enc_var(b, a->commit);
    enc_u64(b, a->lease_end.ns);
    enc_var(b, a->entry_count);
    raft_term before = a->prev_term;
    for (size_t i = 0; i < a->entry_count; i++) {
        const struct raft_entry *e = &a->entries[i];
        REQUIRE(e->index == a->prev_index + 1 + i);
        REQUIRE(e->term >= before);
        enc_var(b, e->term - before);
        enc_u8(b, e->type);
        enc_bytes(b, raft_blob_slice(e->payload));
        before = e->term;
    }
}

static void encode_append_ack(struct buf *b, const struct raft_append_ack *a)
{
    enc_u8(b, (uint8_t)a->refusal);
    enc_var(b, a->match);
    enc_var(b, a->accepted);
    enc_u64(b, a->promised.ns);
    enc_var(b, a->prev_index);
    enc_var(b, a->hint_index);
    enc_var(b, a->hint_term);
}

void raft_msg_encode(struct buf *b, const struct raft_msg *m)
{
    enc_u8(b, MSG_VERSION);
    enc_u8(b, (uint8_t)m->type);
    enc_var(b, m->term);
    switch (m->type) {
    case RAFT_MSG_APPEND:
        encode_append(b, &m->u.append);
        break;
    case RAFT_MSG_APPEND_ACK:
        encode_append_ack(b, &m->u.append_ack);
        break;
    case RAFT_MSG_VOTE:
        enc_bool(b, m->u.vote.pre);
        enc_var(b, m->u.vote.last_index);
        enc_var(b, m->u.vote.last_term);
        enc_bool(b, m->u.vote.has_release);
        enc_u64(b, m->u.vote.release.ns);
        break;
    case RAFT_MSG_VOTE_ACK:
        enc_bool(b, m->u.vote_ack.pre);
        enc_bool(b, m->u.vote_ack.granted);
        enc_var(b, m->u.vote_ack.vote_term);
        enc_u64(b, m->u.vote_ack.promised.ns);
        enc_var(b, m->u.vote_ack.wait_ns);
        break;
    case RAFT_MSG_TIMEOUT_NOW:
        enc_u64(b, m->u.timeout_now.release.ns);
        break;
    }
}

/* Entries allocated so far hang on out->owned_entries with out->u.append.entry_count of them, so
 * that raft_msg_deinit frees a half-decoded message too. */
static void decode_append(struct cursor *c, struct raft_msg *out)
{
    struct raft_append *a = &out->u.append;
    a->prev_index = dec_var(c);
    a->prev_term = dec_var(c);
    a->commit = dec_var(c);
    a->lease_end = tt_ts_of(dec_u64(c));
    size_t n = dec_count(c, ENTRY_BYTES_MIN);
    if (!cursor_ok(c) || n == 0) {
        return;
    }
    if (n > ENTRIES_MAX || a->prev_index > UINT64_MAX - n) {
        c->bad = true;
        return;
    }
    out->owned_entries = (struct raft_entry *)span_calloc(n, sizeof(struct raft_entry));
    a->entries = out->owned_entries;
    raft_term term = a->prev_term;
    for (size_t i = 0; i < n; i++) {
        uint64_t step = dec_var(c);
        uint8_t type = dec_u8(c);
        struct slice payload = dec_bytes(c);
        if (!cursor_ok(c) || payload.size > LIMIT_ENTRY_BYTES || type == RAFT_ENTRY_NONE ||
            step > out->term || term > out->term - step) {
            c->bad = true;
            return;
        }
        term += step;
        struct raft_entry *e = &out->owned_entries[i];
        e->index = a->prev_index + 1 + i;
        e->term = term;
        e->type = type;
        e->payload = payload.size == 0 ? NULL : raft_blob_new(payload);
        a->entry_count = i + 1;
    }
}

static void decode_append_ack(struct cursor *c, struct raft_append_ack *a)
{
    uint8_t refusal = dec_u8(c);
    if (refusal > RAFT_ACK_CLOCK) {
        c->bad = true;
        return;
    }
    a->refusal = (enum raft_refusal)refusal;
    a->match = dec_var(c);
    a->accepted = dec_var(c);
    a->promised = tt_ts_of(dec_u64(c));
    a->prev_index = dec_var(c);
    a->hint_index = dec_var(c);
    a->hint_term = dec_var(c);
    if (a->match > a->accepted) {
        c->bad = true;
    }
}

static void decode_vote(struct cursor *c, struct raft_vote *v)
{
    v->pre = dec_bool(c);
    v->last_index = dec_var(c);
    v->last_term = dec_var(c);
    v->has_release = dec_bool(c);
    v->release = tt_ts_of(dec_u64(c));
}

static void decode_vote_ack(struct cursor *c, struct raft_vote_ack *v)
{
    v->pre = dec_bool(c);
    v->granted = dec_bool(c);
    v->vote_term = dec_var(c);
    v->promised = tt_ts_of(dec_u64(c));
    v->wait_ns = dec_var(c);
}

span_status raft_msg_decode(struct slice s, struct raft_msg *out)
{
    memset(out, 0, sizeof(*out));
    struct cursor c = cursor_of(s);
    if (dec_u8(&c) != MSG_VERSION) {
        return SPAN_PROTOCOL;
    }
    uint8_t type = dec_u8(&c);
    out->term = dec_var(&c);
    if (!cursor_ok(&c) || (out->term == 0 && type != RAFT_MSG_VOTE_ACK)) {
        return SPAN_PROTOCOL; /* only a voter may never have been in a term */
    }
    switch (type) {
    case RAFT_MSG_APPEND:
        out->type = RAFT_MSG_APPEND;
        decode_append(&c, out);
        break;
    case RAFT_MSG_APPEND_ACK:
        out->type = RAFT_MSG_APPEND_ACK;
        decode_append_ack(&c, &out->u.append_ack);
        break;
    case RAFT_MSG_VOTE:
        out->type = RAFT_MSG_VOTE;
        decode_vote(&c, &out->u.vote);
        break;
    case RAFT_MSG_VOTE_ACK:
        out->type = RAFT_MSG_VOTE_ACK;
        decode_vote_ack(&c, &out->u.vote_ack);
        break;
    case RAFT_MSG_TIMEOUT_NOW:
        out->type = RAFT_MSG_TIMEOUT_NOW;
        out->u.timeout_now.release = tt_ts_of(dec_u64(&c));
        break;
    default:
        return SPAN_PROTOCOL;
    }
    if (!cursor_done(&c)) {
        raft_msg_deinit(out);
        return SPAN_PROTOCOL;
    }
    return SPAN_OK;
}

void raft_msg_deinit(struct raft_msg *m)
{
    if (m->owned_entries != NULL) {
        for (size_t i = 0; i < m->u.append.entry_count; i++) {
            raft_blob_unref(m->owned_entries[i].payload);
        }
        span_free(m->owned_entries);
    }
    memset(m, 0, sizeof(*m));
}
