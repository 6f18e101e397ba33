/* The directed schedules; see sim_script.h. */
#include "tests/sim/sim_script.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "shard/raft/raft_internal.h"
#include "shard/range/store_impl.h"

#define RANGE 2 /* all user tables until it is split */

/* ---- looking ---- */

static struct replica *replica_of(struct sim_world *w, node_id node, range_id range)
{
    return cluster_alive(w->c, node) ? store_replica(cluster_store(w->c, node), range) : NULL;
}

static const struct raft *raft_of(struct sim_world *w, node_id node, range_id range)
{
    const struct replica *r = replica_of(w, node, range);
    return r == NULL ? NULL : r->raft;
}

static bool serves(struct sim_world *w, node_id node, range_id range)
{
    const struct replica *r = replica_of(w, node, range);
    struct tt_now now = cluster_clock(w->c, node);
    return r != NULL && r->raft != NULL && replica_may_serve(r, &now);
}

static node_id server_of(struct sim_world *w, range_id range)
{
    for (node_id i = 1; i <= cluster_node_count(w->c); i++) {
        if (serves(w, i, range)) {
            return i;
        }
    }
    return 0;
}

static bool votes_in(struct sim_world *w, node_id at, range_id range, node_id node, bool committed)
{
    const struct raft *r = raft_of(w, at, range);
    return r != NULL &&
           raft_conf_is_voter(committed ? raft_committed_conf(r, NULL) : raft_conf(r, NULL), node);
}

/* ---- waiting ---- */

/* What a script waits for: a condition over some nodes. */
struct wanted {
    struct sim_world *w;
    node_id a;
    node_id b;
    range_id range;
    uint64_t n;
    bool (*is)(const struct wanted *x);
};

static bool wanted_cond(void *ctx)
{
    const struct wanted *x = ctx;
    return x->is(x);
}

static bool await(struct wanted *x, uint64_t limit_ns)
{
    return cluster_run_until(x->w->c, wanted_cond, x, limit_ns);
}

static bool is_served(const struct wanted *x)
{
    return x->a == 0 ? server_of(x->w, x->range) != 0 : serves(x->w, x->a, x->range);
}

static node_id await_server(struct sim_world *w, range_id range)
{
    struct wanted x = {.w = w, .range = range, .is = is_served};
    (void)await(&x, 5 * SEC_NS);
    return server_of(w, range);
}

/* ---- asking ---- */

/* Until a is (b) or is not a voter of the range everywhere where it is served. */
static void change_members(struct sim_world *w, range_id range, node_id add, node_id remove)
{
    for (int tries = 0; tries < 50 && !world_failed(w); tries++) {
        node_id leader = await_server(w, range);
        if (leader == 0) {
            continue;
        }
        bool added = add == 0 || votes_in(w, leader, range, add, true);
        bool removed = remove == 0 || !votes_in(w, leader, range, remove, true);
        if (added && removed) {
            return;
        }
        world_move(w, leader, range, add, remove);
        (void)cluster_run_until(w->c, world_admin_idle, w, 2 * SEC_NS);
        cluster_run_for(w->c, 20 * MS_NS);
    }
}

static void hand_over(struct sim_world *w, range_id range, node_id to)
{
    for (int tries = 0; tries < 50 && !world_failed(w) && !serves(w, to, range); tries++) {
        node_id leader = await_server(w, range);
        if (leader != 0 && leader != to) {
            world_transfer(w, leader, range, to);
            (void)cluster_run_until(w->c, world_admin_idle, w, 2 * SEC_NS);
        }
        struct wanted x = {.w = w, .a = to, .range = range, .is = is_served};
        (void)await(&x, 500 * MS_NS);
    }
}

/* ---- cutting ---- */

/* Nodes in the mask a do not hear those in b, nor those them. */
static void cut_between(struct sim_world *w, unsigned a, unsigned b)
{
    struct sim_net *net = cluster_net(w->c);
    cluster_say(w->c, "script: cuts %x from %x", a, b);
    for (node_id i = 1; i <= cluster_node_count(w->c); i++) {
        for (node_id k = 1; k <= cluster_node_count(w->c); k++) {
            if ((a >> i & 1) != 0 && (b >> k & 1) != 0 && i != k) {
                net->cut[i][k] = net->cut[k][i] = true;
            }
        }
    }
}

static unsigned all_nodes(const struct sim_world *w)
{
    return (2U << cluster_node_count(w->c)) - 2;
}

static void mend(struct sim_world *w)
{
    struct sim_net *net = cluster_net(w->c);
    memset(net->cut, 0, sizeof net->cut);
    memset(net->late_ns, 0, sizeof net->late_ns);
}

static void stop_for(struct sim_world *w, node_id node, uint64_t min_ns, uint64_t max_ns)
{
    uint64_t ns = rng_between(cluster_rng(w->c), min_ns, max_ns);
    cluster_say(w->c, "script: node %u is stopped for %llu ms", node,
                (unsigned long long)(ns / MS_NS));
    cluster_pause(w->c, node, ns);
}

/* ---- B1 ---- */

static bool has_sent(const struct wanted *x)
{
    return cluster_store(x->w->c, x->a)->heartbeat_seq != x->n;
}

/* To just after the node has sent its heartbeats. */
static void await_heartbeat(struct sim_world *w, node_id node)
{
    struct wanted x = {
        .w = w, .a = node, .n = cluster_store(w->c, node)->heartbeat_seq, .is = has_sent};
    (void)await(&x, SEC_NS);
}

/* The leader A of an idle range is stopped; answers to its heartbeats wait at its door. B votes for
 * C. A goes on; it hears B, who follows C by now, and not C. */
static void idle_leader_pauses(struct sim_world *w)
{
    node_id a = await_server(w, RANGE);
    node_id b = 1 + (a + 1) % 3; /* the one after A stands first (rule I4) */
    if (a == 0) {
        return;
    }
    await_heartbeat(w, a);
    stop_for(w, a, 400 * MS_NS, 900 * MS_NS);
    cluster_run_for(w->c, 30 * MS_NS);
    cut_between(w, 1U << a, all_nodes(w) & ~(1U << a) & ~(1U << b));
    cluster_run_for(w->c, 1500 * MS_NS);
    mend(w);
}

/* ---- B4 ---- */

/* A leads {A, B, C}; D and E join while it does. {A, B} and {C, D, E} lose each other, but what the
 * others said last comes so late that A does not miss them (rule B7). Its lease must not rest on
 * {A, B}. */
static void lease_outlives_members(struct sim_world *w)
{
    change_members(w, RANGE, 0, 4);
    change_members(w, RANGE, 0, 5);
    node_id a = 1 + (node_id)rng_below(cluster_rng(w->c), 3);
    hand_over(w, RANGE, 1 + a % 3);
    hand_over(w, RANGE, a); /* its term begins with three */
    change_members(w, RANGE, 4, 0);
    change_members(w, RANGE, 5, 0);
    if (!serves(w, a, RANGE)) {
        return;
    }
    unsigned side = 1U << a | 1U << (1 + a % 3);
    unsigned other = all_nodes(w) & ~side;
    uint64_t late_ns = rng_between(cluster_rng(w->c), 150 * MS_NS, 240 * MS_NS);
    await_heartbeat(w, a);
    for (node_id i = 1; i <= 5; i++) {
        cluster_net(w->c)->late_ns[i][a] = (other >> i & 1) != 0 ? late_ns : 0;
    }
    cluster_run_for(w->c, 5 * MS_NS);
    cut_between(w, side, other);
    cluster_run_for(w->c, 1200 * MS_NS);
    mend(w);
}

static const struct sim_script scripts[] = {
    {"pause", "directed: the leader of an idle range is stopped", 3, idle_leader_pauses, true},
    {"grow", "directed: members join while a lease runs", 5, lease_outlives_members, false},
};

const struct sim_script *sim_script_get(size_t i)
{
    return i < sizeof scripts / sizeof scripts[0] ? &scripts[i] : NULL;
}

const struct sim_script *sim_script_find(const char *scenario)
{
    for (size_t i = 0; sim_script_get(i) != NULL; i++) {
        if (strcmp(scripts[i].name, scenario) == 0) {
            return &scripts[i];
        }
    }
    return NULL;
}
