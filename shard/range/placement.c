/* Where replicas go. Each leader decides for its own ranges, from the node table and from what the
 * heartbeats say of the other nodes, so that moving replicas needs nothing of range 1 but the table
 * itself (rule I1); every decision is one change of members (replica_member.c) that stands alone: a
 * leader that comes in the middle of one looks at what there is and goes on.
 *
 *   a learner nobody waits for          -> made a voter, or removed if its node is not to have it
 *   a voter on a node that leaves       -> an active node instead, or nothing if there are enough
 *   too few or too many voters          -> one more, one less
 *   a member holds 2 more than a node
 *   without a replica of the range      -> moved there
 *
 * One change at a time for each leading node, so that snapshots do not crowd out the clients. A
 * node that is merely down keeps its replicas: it comes back with its log. Who wants it replaced
 * says so (`spanlite node decommission`).
 *
 * The other half: replicas that hear no leader ask whether they are still in. */
#include "base/alloc.h"
#include "base/log.h"
#include "shard/range/store_impl.h"

#define PLACEMENT_NS    (500 * MS_NS)
#define PROBE_ROUND_NS  (200 * MS_NS)
#define PROBE_AFTER_NS  (3 * SEC_NS)  /* nothing heard of a leader */
#define PROBE_SOON_NS   (400 * MS_NS) /* the same, of one that saw its own removal */
#define PROBE_AGAIN_NS  (2 * SEC_NS)
#define BALANCE_SLOT_MS 2000

/* ---- the node table ---- */

void store_set_nodes(struct store *s, const struct tt_now *now, const struct store_nodes *nodes)
{
    if (nodes->version <= s->nodes.version) {
        return;
    }
    (void)now;
    s->nodes = *nodes;
    s->cfg.node_count = 0;
    for (size_t i = 0; i < nodes->count; i++) {
        s->cfg.nodes[s->cfg.node_count++] = nodes->nodes[i].node;
    }
    SPAN_LOG(INFO, "node table", "version=%llu nodes=%zu", (unsigned long long)nodes->version,
             nodes->count);
}

uint64_t store_nodes_version(const struct store *s)
{
    return s->nodes.version;
}

uint64_t store_nodes_version_heard(const struct store *s)
{
    uint64_t v = 0;
    for (size_t i = 0; i < s->peer_count; i++) {
        v = s->peers[i].nodes_version > v ? s->peers[i].nodes_version : v;
    }
    return v;
}

static const struct store_node *table_node(const struct store *s, node_id node)
{
    for (size_t i = 0; i < s->nodes.count; i++) {
        if (s->nodes.nodes[i].node == node) {
            return &s->nodes.nodes[i];
        }
    }
    return NULL;
}

/* Before there is a table, the nodes of the configuration are all active. */
bool store_node_is_active(const struct store *s, node_id node)
{
    const struct store_node *n = table_node(s, node);
    if (s->nodes.version > 0) {
        return n != NULL && n->state == STORE_NODE_ACTIVE;
    }
    for (size_t i = 0; i < s->cfg.node_count; i++) {
        if (s->cfg.nodes[i] == node) {
            return true;
        }
    }
    return false;
}

/* Its replicas are to go. */
static bool node_leaves(const struct store *s, node_id node)
{
    const struct store_node *n = table_node(s, node);
    return s->nodes.version > 0 && (n == NULL || n->state == STORE_NODE_LEAVING);
}

/* May get replicas. */
static bool node_takes(const struct store *s, const struct tt_now *now, node_id node)
{
    return store_node_is_active(s, node) &&
           (node == s->cfg.self || store_peer_is_fit(s, now, node));
}

static uint32_t replicas_of(const struct store *s, node_id node)
{
    return node == s->cfg.self ? (uint32_t)(s->by_key_count + s->embryos.count)
                               : store_peer_replicas(s, node);
}

/* ---- decisions ---- */

/* The node with the fewest replicas that has none of this range; 0: none. */
static node_id candidate(const struct store *s, const struct tt_now *now,
                         const struct raft_conf *conf)
{
    node_id best = 0;
    for (size_t i = 0; i < s->cfg.node_count; i++) {
        node_id n = s->cfg.nodes[i];
        if (!raft_conf_has(conf, n) && node_takes(s, now, n) &&
            (best == 0 || replicas_of(s, n) < replicas_of(s, best))) {
            best = n;
        }
    }
    return best;
}

/* The voter to give up first: on a node that leaves, then one not heard, then the fullest; this
 * node last among equals. */
static node_id spare(const struct store *s, const struct tt_now *now, const struct raft_conf *conf)
{
    node_id best = 0;
    uint64_t best_rank = 0;
    for (size_t i = 0; i < conf->count; i++) {
        node_id n = conf->members[i].node;
        if (!conf->members[i].voter) {
            continue;
        }
        bool self = n == s->cfg.self;
        uint64_t rank = (node_leaves(s, n) ? 1ULL << 60 : 0) |
                        (!self && !store_peer_is_fit(s, now, n) ? 1ULL << 50 : 0) |
                        (uint64_t)replicas_of(s, n) * 2 | (self ? 0 : 1);
        if (best == 0 || rank > best_rank) {
            best = n;
            best_rank = rank;
        }
    }
    return best;
}

/* As many as there are to be; 0: nobody said. */
static size_t replicas_set(const struct store *s)
{
    return s->nodes.version == 0 ? s->cfg.replicas : s->nodes.replicas;
}

/* A member lost is replaced also in a cluster whose nodes were never changed and which has no table
 * therefore: it is to have what it was begun with. */
size_t store_replicas_wanted(const struct store *s, const struct raft_conf *conf)
{
    size_t set = replicas_set(s);
    if (set == 0) {
        return raft_conf_voters(conf);
    }
    size_t active = s->nodes.version == 0 ? s->cfg.node_count : 0;
    for (size_t i = 0; i < s->nodes.count; i++) {
        active += s->nodes.nodes[i].state != STORE_NODE_LEAVING ? 1 : 0;
    }
    size_t want = set < active ? set : active;
    want = want > LIMIT_REPLICAS ? LIMIT_REPLICAS : want;
    return want < 1 ? 1 : want;
}

bool store_range_is_short(const struct store *s, const struct tt_now *now, const struct replica *r)
{
    const struct raft_conf *conf = raft_conf(r->raft, NULL);
    size_t set = replicas_set(s);
    size_t want = set == 0 ? raft_conf_voters(conf) : set;
    size_t well = 0;
    for (size_t i = 0; i < conf->count; i++) {
        node_id n = conf->members[i].node;
        well +=
            conf->members[i].voter && (n == s->cfg.self || store_peer_is_fit(s, now, n)) ? 1 : 0;
    }
    return r->leading && well < want;
}

size_t store_short_count(const struct store *s, const struct tt_now *now)
{
    size_t n = 0;
    for (size_t i = 0; i < s->by_key_count; i++) {
        n += store_range_is_short(s, now, s->by_key[i]) ? 1 : 0;
    }
    return n;
}

/* What is to change in this range. False: nothing. */
static bool decide(const struct store *s, const struct tt_now *now, const struct raft_conf *conf,
                   bool balance, node_id *add, node_id *remove)
{
    *add = 0;
    *remove = 0;
    size_t voters = raft_conf_voters(conf);
    size_t want = store_replicas_wanted(s, conf);
    node_id goes = 0;
    for (size_t i = 0; i < conf->count; i++) {
        node_id n = conf->members[i].node;
        if (!conf->members[i].voter) {
            /* left over by a change that did not end: it is the new member, if one is wanted */
            bool use = node_takes(s, now, n) && voters <= want;
            *(use ? add : remove) = n;
            return true;
        }
        if (node_leaves(s, n) && (goes == 0 || n != s->cfg.self)) {
            goes = n;
        }
    }
    node_id to = candidate(s, now, conf);
    if (voters > want) {
        *remove = goes != 0 ? goes : spare(s, now, conf);
        return true;
    }
    if (goes != 0 && to != 0) {
        *add = to;
        *remove = goes;
        return true;
    }
    if (voters < want && to != 0) {
        *add = to;
        return true;
    }
    if (!balance || to == 0 || voters != want) {
        return false;
    }
    node_id from = spare(s, now, conf);
    if (from == 0 || replicas_of(s, from) < replicas_of(s, to) + 2 ||
        (from != s->cfg.self && !store_peer_is_fit(s, now, from))) {
        return false; /* a member that is down keeps its place */
    }
    *add = to;
    *remove = from;
    return true;
}

void store_placement(struct store *s, const struct tt_now *now)
{
    if (now->mono_ns < s->placement_at_ns) {
        return;
    }
    s->placement_at_ns = now->mono_ns + PLACEMENT_NS;
    if (s->hands_over) {
        return;
    }
    for (size_t i = 0; i < s->by_key_count; i++) {
        if (s->by_key[i]->leading && replica_member_busy(s->by_key[i])) {
            return;
        }
    }
    /* Nodes take turns at balancing: counts are a heartbeat old, and two that move at once would
     * overshoot. */
    size_t slot = now->mono_ns / MS_NS / BALANCE_SLOT_MS % (s->cfg.node_count + 1);
    bool balance = s->balance && slot < s->cfg.node_count && s->cfg.nodes[slot] == s->cfg.self;
    for (size_t i = 0; i < s->by_key_count; i++) {
        struct replica *r = s->by_key[(i + s->heartbeat_seq) % s->by_key_count];
        node_id add;
        node_id remove;
        if (!r->leading || r->broken || !replica_may_serve(r, now) ||
            r->served_since_ns + SEC_NS > now->mono_ns ||
            !decide(s, now, raft_conf(r->raft, NULL), balance, &add, &remove)) {
            continue;
        }
        if (replica_member_start(r, now, add, remove)) {
            return;
        }
    }
}

/* ---- replicas without a leader ---- */

void store_probe(struct store *s, range_id id, uint64_t number)
{
    for (size_t i = 0; i < s->cfg.node_count; i++) {
        if (s->cfg.nodes[i] != s->cfg.self) {
            struct buf *b = store_scratch(s);
            enc_u64(b, number);
            msg_encode_range_bytes(store_out(s, s->cfg.nodes[i], STORE_CONTROL), MSG_PROBE, id,
                                   buf_slice(b));
        }
    }
}

void store_probes(struct store *s, const struct tt_now *now)
{
    if (now->mono_ns < s->probe_at_ns) {
        return;
    }
    s->probe_at_ns = now->mono_ns + PROBE_ROUND_NS;
    for (size_t i = 0; i < s->by_key_count; i++) {
        struct replica *r = s->by_key[i];
        uint64_t patience = r->maybe_out ? PROBE_SOON_NS : PROBE_AFTER_NS;
        if (!r->leading && !r->out && r->heard_ns + patience <= now->mono_ns &&
            (r->probe == 0 || r->probe + PROBE_AGAIN_NS <= now->mono_ns)) {
            r->probe = now->mono_ns | 1;
            store_probe(s, r->id, r->probe);
        }
    }
}
