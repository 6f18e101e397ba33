/* Node pairs: heartbeats that carry the leases and closed timestamps of all ranges, what they say
 * about the other node, and the balance of leaderships.
 *
 *   every LEASE_RENEW_NS:  A -> B  {lease end e, closed c, for each range A leads with B: term,
 * indexes} B -> A  {for each of them: term, promise, match ...}
 *
 * One lease end is common to all ranges of a pair, and each range's term goes along: the promise is
 * renewed for exactly the ranges whose term has not moved on, which is what rule B1 asks of
 * node-pair promises. A range costs some 15 bytes a heartbeat each way. */
#include "base/alloc.h"
#include "base/log.h"
#include "base/planted.h"
#include "shard/range/store_impl.h"

#define PEER_LOST_NS    (500 * MS_NS)
#define PEER_SETTLED_NS (2 * SEC_NS)
#define BUSY_SETTLED_NS (10 * SEC_NS)
#define BALANCE_NS      (200 * MS_NS)

static struct peer *peer_of(struct store *s, node_id node)
{
    for (size_t i = 0; i < s->peer_count; i++) {
        if (s->peers[i].node == node) {
            return &s->peers[i];
        }
    }
    if (s->peer_count == LIMIT_PEERS) {
        return NULL;
    }
    struct peer *p = &s->peers[s->peer_count++];
    *p = (struct peer){.node = node};
    return p;
}

static void heard(struct peer *p, const struct tt_now *now)
{
    if (p->heard_ns + PEER_LOST_NS < now->mono_ns) {
        p->heard_since_ns = now->mono_ns;
    }
    p->heard_ns = now->mono_ns;
}

bool store_node_is_silent(const struct store *s, const struct tt_now *now, node_id node)
{
    for (size_t i = 0; i < s->peer_count; i++) {
        const struct peer *p = &s->peers[i];
        if (p->node == node) {
            return p->heard_ns != 0 && p->heard_ns + PEER_LOST_NS < now->mono_ns;
        }
    }
    return false;
}

static bool peer_is_fit(const struct peer *p, const struct tt_now *now)
{
    return p->heard_ns + PEER_LOST_NS > now->mono_ns && !p->unfit && !p->clock_conflict;
}

static const struct peer *peer_find(const struct store *s, node_id node)
{
    for (size_t i = 0; i < s->peer_count; i++) {
        if (s->peers[i].node == node) {
            return &s->peers[i];
        }
    }
    return NULL;
}

bool store_peer_is_fit(const struct store *s, const struct tt_now *now, node_id node)
{
    const struct peer *p = peer_find(s, node);
    return p != NULL && peer_is_fit(p, now);
}

uint32_t store_peer_replicas(const struct store *s, node_id node)
{
    const struct peer *p = peer_find(s, node);
    return p == NULL ? 0 : p->replicas;
}

bool store_other_is_fit(const struct store *s, const struct tt_now *now)
{
    for (size_t i = 0; i < s->peer_count; i++) {
        if (peer_is_fit(&s->peers[i], now)) {
            return true;
        }
    }
    return false;
}

node_id store_handover_target(const struct store *s, const struct tt_now *now,
                              const struct raft *raft)
{
    for (size_t i = 0; i < s->peer_count; i++) {
        struct raft_peer_info info;
        const struct peer *p = &s->peers[(i + s->heartbeat_seq) % s->peer_count];
        if (peer_is_fit(p, now) && store_node_is_active(s, p->node) &&
            raft_conf_is_voter(raft_conf(raft, NULL), p->node) && raft_peer(raft, p->node, &info) &&
            !info.probing && info.match + 1000 > raft_last_index(raft)) {
            return p->node;
        }
    }
    return raft_transfer_target(raft);
}

/* Rule B8: an interval that can not hold true time together with ours. The message's timestamps are
 * not used; whose clock is out, the clock's own machine decides by majority. */
static bool conflict(const struct store *s, struct peer *p, const struct tt_now *now,
                     const struct tt_interval *sent, const struct tt_interval *asked)
{
    const struct store_io *io = &s->cfg.io;
    if (PLANTED(PEER_CLOCKS_IGNORED)) {
        return false;
    }
    p->clock_conflict =
        io->peer_clock != NULL && !io->peer_clock(io->ctx, now, p->node, sent, asked);
    return p->clock_conflict;
}

static void heartbeat_to(struct store *s, const struct tt_now *now, node_id to,
                         struct heartbeat *hb)
{
    hb->count = 0;
    for (size_t i = 0; i < s->by_key_count; i++) {
        struct replica *r = s->by_key[i];
        struct raft_heartbeat line;
        if (r->broken || !raft_heartbeat_for(r->raft, to, hb->lease_end, now, &line)) {
            continue;
        }
        struct heartbeat_range *h = &hb->ranges[hb->count++];
        *h = (struct heartbeat_range){.range = r->id,
                                      .term = line.term,
                                      .last_index = line.last_index,
                                      .commit = line.commit,
                                      .lease = !tt_is_none(line.lease_end)};
        /* Rule A4: nothing behind the last index proposed will take effect at or below c, because c
         * enters the floor. */
        if (replica_may_serve(r, now) && hb->closed.ns < raft_lease_end(r->raft).ns) {
            r->floor = tt_max(r->floor, hb->closed);
            h->closed = true;
            h->closed_index = PLANTED(CLOSED_AT_COMMIT) ? line.commit : raft_last_index(r->raft);
        }
    }
    msg_encode_heartbeat(store_out(s, to, STORE_CONTROL), hb);
}

void store_heartbeat_now(struct store *s)
{
    s->heartbeat_at_ns = 0;
    s->wants_tick = true;
}

void store_heartbeats(struct store *s, const struct tt_now *now)
{
    if (now->mono_ns < s->heartbeat_at_ns) {
        return;
    }
    s->heartbeat_at_ns = now->mono_ns + LEASE_RENEW_NS;
    struct heartbeat hb = {.from = s->cfg.self,
                           .sent = now->tt,
                           .seq = ++s->heartbeat_seq,
                           .lease_end = tt_add(now->tt.earliest, s->cfg.lease_ns),
                           .closed = now->tt.latest,
                           .unfit = s->unfit,
                           .replicas = (uint32_t)(s->by_key_count + s->embryos.count),
                           .nodes_version = s->nodes.version};
    arena_clear(&s->message_arena);
    hb.ranges = arena_alloc(&s->message_arena, (s->by_key_count + 1) * sizeof *hb.ranges);
    for (size_t i = 0; i < s->cfg.node_count; i++) {
        if (s->cfg.nodes[i] != s->cfg.self) {
            heartbeat_to(s, now, s->cfg.nodes[i], &hb);
        }
    }
}

void store_on_heartbeat(struct store *s, const struct tt_now *now, node_id from, struct slice body)
{
    struct heartbeat hb;
    arena_clear(&s->message_arena);
    struct peer *p = peer_of(s, from);
    if (p == NULL || msg_decode_heartbeat(body, &s->message_arena, &hb) != SPAN_OK ||
        hb.from != from) {
        s->bad_messages++;
        SPAN_LOG(WARN, "dropped a malformed heartbeat", "from=%u", from);
        return;
    }
    heard(p, now);
    p->leads = hb.count;
    p->unfit = hb.unfit;
    p->replicas = hb.replicas;
    p->nodes_version = hb.nodes_version;
    bool bad = conflict(s, p, now, &hb.sent, NULL);
    struct heartbeat_ack ack = {
        .from = s->cfg.self, .sent = now->tt, .echo_sent = hb.sent, .seq = hb.seq};
    ack.ranges = arena_alloc(&s->message_arena, (hb.count + 1) * sizeof *ack.ranges);
    for (size_t i = 0; i < hb.count && !bad; i++) {
        struct heartbeat_ack_range *line = &ack.ranges[ack.count++];
        *line = (struct heartbeat_ack_range){.range = hb.ranges[i].range};
        struct replica *r = store_replica(s, hb.ranges[i].range);
        if (r != NULL) {
            replica_heartbeat(r, now, from, &hb, &hb.ranges[i], line);
        } else {
            store_rebuild_heartbeat(s, now, from, &hb.ranges[i], line);
        }
    }
    /* Also without a line: only a round trip shows a node whose clock is fast that it is (rule B8).
     */
    msg_encode_heartbeat_ack(store_out(s, from, STORE_CONTROL), &ack);
}

void store_on_heartbeat_ack(struct store *s, const struct tt_now *now, node_id from,
                            struct slice body)
{
    struct heartbeat_ack ack;
    arena_clear(&s->message_arena);
    struct peer *p = peer_of(s, from);
    if (p == NULL || msg_decode_heartbeat_ack(body, &s->message_arena, &ack) != SPAN_OK ||
        ack.from != from) {
        s->bad_messages++;
        SPAN_LOG(WARN, "dropped a malformed heartbeat answer", "from=%u", from);
        return;
    }
    heard(p, now);
    bool bad = conflict(s, p, now, &ack.sent, &ack.echo_sent);
    for (size_t i = 0; i < ack.count; i++) {
        const struct heartbeat_ack_range *l = &ack.ranges[i];
        struct replica *r = store_replica(s, l->range);
        if (r == NULL) {
            continue;
        }
        replica_peer_has(r, now, from, l->known);
        if (!l->known) {
            continue;
        }
        if (l->ahead) {
            replica_split_peer_ready(r, from);
        }
        struct raft_event ev = {.type = RAFT_EV_HEARTBEAT_ACK,
                                .from = from,
                                .u.heartbeat_ack = {.term = l->term,
                                                    .promised = bad ? tt_ts_of(0) : l->promised,
                                                    .match = l->match,
                                                    .accepted = l->accepted,
                                                    .last_index = l->last_index,
                                                    .behind = l->behind}};
        replica_raft(r, now, &ev);
    }
}

/* ---- balance ---- */

/* The node that leads fewest, if it has been there for a while and leads at least two fewer than
 * this one. */
static node_id least_loaded(const struct store *s, const struct tt_now *now, size_t mine)
{
    node_id best = 0;
    size_t fewest = SIZE_MAX;
    for (size_t i = 0; i < s->peer_count; i++) {
        const struct peer *p = &s->peers[i];
        bool settled = p->heard_ns + PEER_LOST_NS > now->mono_ns &&
                       p->heard_since_ns + PEER_SETTLED_NS < now->mono_ns;
        if (settled && store_node_is_active(s, p->node) && !p->unfit && !p->clock_conflict &&
            p->leads < fewest) {
            fewest = p->leads;
            best = p->node;
        }
    }
    return best != 0 && fewest + 2 <= mine ? best : 0;
}

void store_balance(struct store *s, const struct tt_now *now)
{
    if (!s->balance || now->mono_ns < s->balance_at_ns) {
        return;
    }
    s->balance_at_ns = now->mono_ns + BALANCE_NS;
    node_id to = least_loaded(s, now, store_leader_count(s));
    for (size_t i = 0; to != 0 && i < s->by_key_count; i++) {
        struct replica *r = s->by_key[(i + s->heartbeat_seq) % s->by_key_count];
        struct raft_peer_info info;
        /* A hand-over costs the transactions that hold locks here; a range that nobody uses goes
         * first. */
        uint64_t settled_ns = r->txns.count == 0 ? PEER_SETTLED_NS / 2 : BUSY_SETTLED_NS;
        if (replica_may_serve(r, now) && r->served_since_ns + settled_ns < now->mono_ns &&
            r->transfer_to == 0 && !replica_is_changing(r) && !replica_member_busy(r) &&
            raft_conf_is_voter(raft_conf(r->raft, NULL), to) && raft_peer(r->raft, to, &info) &&
            !info.probing && info.match + 1000 > raft_last_index(r->raft)) {
            r->transfer_to = to;
            store_touch(s, r);
            return;
        }
    }
}
