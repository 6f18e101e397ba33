/* Configurations: membership, majorities, ranks, and their encoding.
 *
 * Format (version 1): u8 version, varint count, then count times (varint node, u8 voter). */
#include "shard/raft/raft_conf.h"

#include "base/invariant.h"

#define CONF_VERSION 1

void raft_conf_init(struct raft_conf *c)
{
    memset(c, 0, sizeof(*c));
}

static size_t conf_find(const struct raft_conf *c, uint32_t node)
{
    for (size_t i = 0; i < c->count; i++) {
        if (c->members[i].node == node) {
            return i;
        }
    }
    return SIZE_MAX;
}

span_status raft_conf_set(struct raft_conf *c, uint32_t node, bool voter)
{
    if (node == 0) {
        return SPAN_INVALID;
    }
    size_t at = conf_find(c, node);
    if (at == SIZE_MAX) {
        if (c->count == LIMIT_REPLICAS) {
            return SPAN_TOO_LARGE;
        }
        at = c->count++;
        c->members[at].node = node;
    }
    c->members[at].voter = voter;
    return SPAN_OK;
}

span_status raft_conf_remove(struct raft_conf *c, uint32_t node)
{
    size_t at = conf_find(c, node);
    if (at == SIZE_MAX) {
        return SPAN_NOT_FOUND;
    }
    for (size_t i = at + 1; i < c->count; i++) {
        c->members[i - 1] = c->members[i];
    }
    c->count--;
    memset(&c->members[c->count], 0, sizeof(c->members[0]));
    return SPAN_OK;
}

bool raft_conf_has(const struct raft_conf *c, uint32_t node)
{
    return conf_find(c, node) != SIZE_MAX;
}

bool raft_conf_is_voter(const struct raft_conf *c, uint32_t node)
{
    size_t at = conf_find(c, node);
    return at != SIZE_MAX && c->members[at].voter;
}

size_t raft_conf_voters(const struct raft_conf *c)
{
    size_t n = 0;
    for (size_t i = 0; i < c->count; i++) {
        n += c->members[i].voter ? 1 : 0;
    }
    return n;
}

size_t raft_conf_quorum(const struct raft_conf *c)
{
    size_t n = raft_conf_voters(c);
    return n == 0 ? 0 : n / 2 + 1;
}

bool raft_conf_eq(const struct raft_conf *a, const struct raft_conf *b)
{
    if (a->count != b->count) {
        return false;
    }
    for (size_t i = 0; i < a->count; i++) {
        if (a->members[i].node != b->members[i].node ||
            a->members[i].voter != b->members[i].voter) {
            return false;
        }
    }
    return true;
}

static size_t conf_voters_missing(const struct raft_conf *from, const struct raft_conf *in)
{
    size_t n = 0;
    for (size_t i = 0; i < from->count; i++) {
        if (from->members[i].voter && !raft_conf_is_voter(in, from->members[i].node)) {
            n++;
        }
    }
    return n;
}

size_t raft_conf_distance(const struct raft_conf *a, const struct raft_conf *b)
{
    return conf_voters_missing(a, b) + conf_voters_missing(b, a);
}

/* Place of a node among the voters; SIZE_MAX when it is none. */
static size_t conf_voter_place(const struct raft_conf *c, uint32_t node)
{
    size_t place = 0;
    for (size_t i = 0; i < c->count; i++) {
        if (!c->members[i].voter) {
            continue;
        }
        if (c->members[i].node == node) {
            return place;
        }
        place++;
    }
    return SIZE_MAX;
}

size_t raft_conf_rank(const struct raft_conf *c, uint32_t node, uint32_t leader)
{
    size_t n = raft_conf_voters(c);
    size_t mine = conf_voter_place(c, node);
    if (mine == SIZE_MAX) {
        return n;
    }
    size_t theirs = conf_voter_place(c, leader);
    if (theirs == SIZE_MAX) {
        return mine;
    }
    return (mine + n - theirs - 1) % n;
}

uint64_t raft_conf_quorum_value(const struct raft_conf *c,
                                uint64_t (*value)(const void *ctx, uint32_t node), const void *ctx)
{
    uint64_t sorted[LIMIT_REPLICAS];
    size_t n = 0;
    for (size_t i = 0; i < c->count; i++) {
        if (!c->members[i].voter) {
            continue;
        }
        uint64_t v = value(ctx, c->members[i].node);
        size_t at = n++;
        for (; at > 0 && sorted[at - 1] < v; at--) {
            sorted[at] = sorted[at - 1];
        }
        sorted[at] = v;
    }
    if (n == 0) {
        return 0;
    }
    return sorted[n / 2];
}

void raft_conf_encode(struct buf *b, const struct raft_conf *c)
{
    REQUIRE(c->count <= LIMIT_REPLICAS);
    enc_u8(b, CONF_VERSION);
    enc_var(b, c->count);
    for (size_t i = 0; i < c->count; i++) {
        enc_var(b, c->members[i].node);
        enc_bool(b, c->members[i].voter);
    }
}

span_status raft_conf_decode(struct slice s, struct raft_conf *out)
{
    struct cursor c = cursor_of(s);
    raft_conf_init(out);
    if (dec_u8(&c) != CONF_VERSION) {
        return SPAN_PROTOCOL;
    }
    size_t n = dec_count(&c, 2);
    if (!cursor_ok(&c) || n > LIMIT_REPLICAS) {
        return SPAN_PROTOCOL;
    }
    for (size_t i = 0; i < n; i++) {
        uint64_t node = dec_var(&c);
        bool voter = dec_bool(&c);
        if (!cursor_ok(&c) || node == 0 || node > UINT32_MAX ||
            raft_conf_has(out, (uint32_t)node)) {
            raft_conf_init(out);
            return SPAN_PROTOCOL;
        }
        out->members[out->count].node = (uint32_t)node;
        out->members[out->count].voter = voter;
        out->count++;
    }
    if (!cursor_done(&c)) {
        raft_conf_init(out);
        return SPAN_PROTOCOL;
    }
    return SPAN_OK;
}
