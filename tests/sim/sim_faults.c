/* What goes wrong, and what an administrator does, at random moments of a run; see sim_world.h. A
 * majority stays up except for crashes of all at once, whose nodes come back by themselves: the
 * clients must get on again whatever was drawn. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "tests/sim/sim_world.h"

/* ---- administration ---- */

struct admin {
    struct gateway_op op;
    struct sim_world *w;
    struct buf key;
};

static void admin_done(struct gateway_op *op)
{
    struct admin *a = op->owner;
    struct sim_world *w = a->w;
    cluster_say(w->c, "admin %d: %s", (int)op->kind, op->status == SPAN_OK ? "ok" : op->err.text);
    if (op->status == SPAN_OK) {
        w->splits += op->kind == GATEWAY_SPLIT ? 1 : 0;
        cluster_count(w->c, op->kind == GATEWAY_SPLIT      ? TALLY_SPLITS
                            : op->kind == GATEWAY_MERGE    ? TALLY_MERGES
                            : op->kind == GATEWAY_TRANSFER ? TALLY_TRANSFERS
                                                           : TALLY_MOVES);
    }
    w->admin_busy--;
    buf_deinit(&a->key);
    span_free(a);
}

node_id sim_any_alive(struct sim_world *w)
{
    node_id n;
    do {
        n = 1 + (node_id)rng_below(cluster_rng(w->c), cluster_node_count(w->c));
    } while (!cluster_alive(w->c, n));
    return n;
}

range_id sim_any_range(struct sim_world *w)
{
    struct arena a = {0};
    struct range_descriptor *all;
    size_t count = store_descriptors(cluster_store(w->c, sim_any_alive(w)), &a, &all);
    range_id r = count == 0 ? 1 : all[rng_below(cluster_rng(w->c), count)].range;
    arena_deinit(&a);
    return r;
}

static struct admin *admin_new(struct sim_world *w, enum gateway_op_kind kind)
{
    struct admin *a = SPAN_NEW(struct admin);
    a->w = w;
    a->op.kind = kind;
    a->op.owner = a;
    a->op.done = admin_done;
    w->admin_busy++;
    return a;
}

void world_split_at_random(struct sim_world *w)
{
    struct admin *a = admin_new(w, GATEWAY_SPLIT);
    if (rng_below(cluster_rng(w->c), 4) == 0) {
        bool journal = rng_below(cluster_rng(w->c), 2) == 0;
        sim_table_key(&a->key, journal ? TABLE_JOURNAL : TABLE_REQUESTS);
        sim_be32(&a->key, (uint32_t)rng_below(cluster_rng(w->c), 256));
    } else if (rng_below(cluster_rng(w->c), 4) == 0) {
        sim_list_key(&a->key, w->list_base + (unsigned)rng_below(cluster_rng(w->c), w->lists));
    } else {
        sim_account_key(&a->key, (unsigned)rng_below(cluster_rng(w->c), w->cells));
    }
    a->op.u.split.key = buf_slice(&a->key);
    cluster_op(w->c, sim_any_alive(w), &a->op);
}

/* Two ranges that are neighbours as far as some node knows. */
static void merge_at_random(struct sim_world *w)
{
    struct arena a = {0};
    struct range_descriptor *all;
    node_id node = sim_any_alive(w);
    size_t count = store_descriptors(cluster_store(w->c, node), &a, &all);
    size_t at = count < 3 ? 0 : 1 + rng_below(cluster_rng(w->c), count - 2);
    if (at != 0 && slice_eq(all[at].end, all[at + 1].start)) {
        struct admin *m = admin_new(w, GATEWAY_MERGE);
        m->op.u.merge.left = all[at].range;
        m->op.u.merge.right = all[at + 1].range;
        cluster_op(w->c, node, &m->op);
    }
    arena_deinit(&a);
}

static void transfer_at_random(struct sim_world *w)
{
    struct admin *a = admin_new(w, GATEWAY_TRANSFER);
    a->op.u.transfer.range = sim_any_range(w);
    a->op.u.transfer.node = 1 + (node_id)rng_below(cluster_rng(w->c), cluster_node_count(w->c));
    cluster_op(w->c, sim_any_alive(w), &a->op);
}

static void member_at_random(struct sim_world *w)
{
    struct rng *r = cluster_rng(w->c);
    struct admin *a = admin_new(w, GATEWAY_MOVE);
    uint64_t how = rng_below(r, 3);
    a->op.u.move.range = sim_any_range(w);
    if (how != 0) {
        a->op.u.move.add = 1 + (node_id)rng_below(r, cluster_node_count(w->c));
    }
    if (how != 1) {
        a->op.u.move.remove = 1 + (node_id)rng_below(r, cluster_node_count(w->c));
    }
    if (w->rotten != 0) { /* of two members a damaged one could not be rebuilt: one node may go */
        node_id guest = w->rotten % (node_id)cluster_node_count(w->c) + 1;
        a->op.u.move.add = how == 0 ? 0 : guest;
        a->op.u.move.remove = how == 0 ? guest : 0;
    }
    cluster_op(w->c, sim_any_alive(w), &a->op);
}

void world_move(struct sim_world *w, node_id at, range_id range, node_id add, node_id remove)
{
    struct admin *a = admin_new(w, GATEWAY_MOVE);
    a->op.u.move.range = range;
    a->op.u.move.add = add;
    a->op.u.move.remove = remove;
    cluster_op(w->c, at, &a->op);
}

void world_transfer(struct sim_world *w, node_id at, range_id range, node_id to)
{
    struct admin *a = admin_new(w, GATEWAY_TRANSFER);
    a->op.u.transfer.range = range;
    a->op.u.transfer.node = to;
    cluster_op(w->c, at, &a->op);
}

/* ---- nodes ---- */

static size_t alive_count(struct sim_world *w)
{
    size_t n = 0;
    for (node_id i = 1; i <= cluster_node_count(w->c); i++) {
        n += cluster_alive(w->c, i) ? 1 : 0;
    }
    return n;
}

static bool can_lose_one(struct sim_world *w)
{
    return alive_count(w) > cluster_node_count(w->c) / 2 + 1;
}

/* At any moment: n is drawn so that small numbers, where things begin, are as likely as all the
 * others. */
static void death(struct sim_world *w, node_id node)
{
    struct rng *r = cluster_rng(w->c);
    static const uint64_t most[] = {
        [SIM_DEATH_ALLOC] = 4096, [SIM_DEATH_LOG] = 32, [SIM_DEATH_FILES] = 64};
    enum sim_death where = (enum sim_death)rng_below(r, 3);
    uint64_t n = rng_below(r, 1 + rng_below(r, most[where]));
    bool power = where != SIM_DEATH_ALLOC && rng_below(r, 4) != 0;
    cluster_arm(w->c, node, where, n, power ? SIM_CRASH_POWER : SIM_CRASH_KILL);
}

static void restart_cb(void *ctx)
{
    struct restart *r = ctx;
    if (r->w->stopping || cluster_alive(r->w->c, r->node) || cluster_lost(r->w->c, r->node)) {
        return;
    }
    if (rng_below(cluster_rng(r->w->c), 8) == 0) {
        death(r->w, r->node);
    }
    if (cluster_restart(r->w->c, r->node) || cluster_lost(r->w->c, r->node)) {
        r->w = NULL; /* nobody is waited for */
    } else {
        cluster_at(r->w->c, cluster_now(r->w->c) + 100 * MS_NS, restart_cb, r);
    }
}

/* Also for a node that stopped by itself. */
static void restart_later(struct sim_world *w, node_id node)
{
    struct rng *r = cluster_rng(w->c);
    w->restarts[node] = (struct restart){w, node};
    uint64_t after_ns = rng_below(r, rng_below(r, 2) == 0 ? 30 * MS_NS : 1500 * MS_NS);
    cluster_at(w->c, cluster_now(w->c) + after_ns, restart_cb, &w->restarts[node]);
}

static void crash(struct sim_world *w, node_id node, enum sim_crash how)
{
    cluster_crash(w->c, node, how);
    restart_later(w, node);
}

static void crash_all(struct sim_world *w, enum sim_crash how)
{
    cluster_count(w->c, TALLY_CRASHES_OF_ALL);
    for (node_id i = 1; i <= cluster_node_count(w->c); i++) {
        if (cluster_alive(w->c, i)) {
            crash(w, i, how);
        }
    }
}

/* A killed node whose log is damaged while it is down: it must notice, or need none of it. One node
 * of a run, so that a majority is left whatever it decides. */
static void flip_cb(void *ctx)
{
    struct sim_world *w = ctx;
    if (w->stopping || w->flipped || !can_lose_one(w)) {
        return;
    }
    for (node_id n = 1; n <= cluster_node_count(w->c); n++) {
        if (cluster_alive(w->c, n) && sim_disk_has_old_log(cluster_disk(w->c, n))) {
            w->flipped = true;
            cluster_crash(w->c, n, SIM_CRASH_KILL);
            bool done = cluster_flip(w->c, n);
            cluster_say(w->c, "node %u: %s", n, done ? "a bit flips" : "nothing to flip");
            restart_later(w, n);
            return;
        }
    }
    cluster_at(w->c, cluster_now(w->c) + 20 * MS_NS, flip_cb, w); /* a flush has just let it go */
}

/* Always of the same node, so that a majority has sound files whatever else is going on. */
static void rot(struct sim_world *w)
{
    struct rng *r = cluster_rng(w->c);
    struct buf key = {0};
    size_t flips = 0;
    sim_table_key(&key, TABLE_ACCOUNTS);
    for (uint64_t n = 1 + rng_below(r, 4); n > 0; n--) {
        flips += cluster_rot(w->c, w->rotten, buf_slice(&key), key.size + 4) ? 1 : 0;
    }
    cluster_say(w->c, "node %u: %zu bits of its rows flip", w->rotten, flips);
    w->rots += flips;
    buf_deinit(&key);
}

/* ---- network and disks ---- */

static void heal_cuts_cb(void *ctx)
{
    struct sim_world *w = ctx;
    struct sim_net *net = cluster_net(w->c);
    memset(net->cut, 0, sizeof net->cut);
}

static void cut(struct sim_world *w)
{
    struct rng *r = cluster_rng(w->c);
    struct sim_net *net = cluster_net(w->c);
    node_id a = 1 + (node_id)rng_below(r, cluster_node_count(w->c));
    uint64_t how = rng_below(r, 4);

    static const enum sim_tally kinds[] = {TALLY_CUTS_WHOLE, TALLY_CUTS_IN, TALLY_CUTS_OUT,
                                           TALLY_CUTS_PARTIAL};

    cluster_count(w->c, kinds[how]);
    cluster_say(w->c, "cut node %u, how %d", a, (int)how);
    for (node_id b = 1; b <= cluster_node_count(w->c); b++) {
        if (b == a || (how == 3 && rng_below(r, 2) == 0)) {
            continue;
        }
        net->cut[a][b] = net->cut[a][b] || how != 1;
        net->cut[b][a] = net->cut[b][a] || how != 2;
    }
    cluster_at(w->c, cluster_now(w->c) + rng_below(r, 1200 * MS_NS), heal_cuts_cb, w);
}

static void stall(struct sim_world *w)
{
    struct rng *r = cluster_rng(w->c);
    node_id n = sim_any_alive(w);
    uint64_t ns = rng_below(r, 900 * MS_NS);
    cluster_count(w->c, TALLY_STALLS);
    cluster_say(w->c, "node %u: syncs stall for %llu ms", n, (unsigned long long)(ns / MS_NS));
    cluster_disk(w->c, n)->stall_until_ns = cluster_now(w->c) + ns;
}

static void sync_error(struct sim_world *w)
{
    struct rng *r = cluster_rng(w->c);
    node_id n = sim_any_alive(w);
    bool log = rng_below(r, 2) == 0;
    uint64_t skip = rng_below(r, 5);
    uint64_t count = 1 + rng_below(r, 3);
    cluster_say(w->c, "node %u: %llu syncs of its %s fail", n, (unsigned long long)count,
                log ? "log" : "files");
    struct sim_disk *d = cluster_disk(w->c, n);
    wal_memfs_fail_syncs(log ? d->log : d->files, skip, count);
}

static void room_cb(void *ctx)
{
    struct sim_world *w = ctx;
    for (node_id i = 1; i <= cluster_node_count(w->c); i++) {
        sim_disk_set_room(cluster_disk(w->c, i), UINT64_MAX);
    }
}

static void no_room(struct sim_world *w)
{
    struct rng *r = cluster_rng(w->c);
    node_id n = sim_any_alive(w);
    uint64_t more = rng_below(r, 3) != 0 ? 0 : rng_below(r, 128 * KIB);
    cluster_say(w->c, "node %u: disk is full after %llu bytes", n, (unsigned long long)more);
    cluster_count(w->c, TALLY_DISKS_FULL);
    sim_disk_set_room(cluster_disk(w->c, n), more);
    cluster_want_flush(w->c, n);
    cluster_at(w->c, cluster_now(w->c) + rng_below(r, 1000 * MS_NS), room_cb, w);
}

/* ---- clocks ---- */

static void repair_clock_cb(void *ctx)
{
    struct restart *r = ctx;
    struct sim_world *w = r->w;
    cluster_say(w->c, "node %u: its clock is repaired", r->node);
    sim_clock_repair(cluster_sim_clock(w->c, r->node));
    w->wrong_clocks--;
    r->w = NULL;
}

/* A minority at a time: a majority of wrong clocks is right. */
static void wrong_clock(struct sim_world *w)
{
    struct rng *r = cluster_rng(w->c);
    node_id n = sim_any_alive(w);
    struct sim_clock *k = cluster_sim_clock(w->c, n);
    if (w->wrong_clocks >= (cluster_node_count(w->c) - 1) / 2 || w->repairs[n].w != NULL ||
        k->run_ns != 0) {
        return;
    }
    uint64_t how = rng_below(r, 3);
    uint64_t far = rng_below(r, 3);
    uint64_t by = far == 0   ? k->epsilon_ns + rng_below(r, 3 * k->epsilon_ns)
                  : far == 1 ? rng_between(r, 5 * MS_NS, 100 * MS_NS)
                             : rng_between(r, 100 * MS_NS, 2 * SEC_NS);
    int64_t off = rng_below(r, 2) == 0 ? (int64_t)by : -(int64_t)by;
    static const uint64_t rates[] = {1000000, 10000000, 100000000};

    static const enum sim_tally kinds[] = {TALLY_CLOCK_STEPS, TALLY_CLOCK_RUNS,
                                           TALLY_CLOCK_WRONG_STARTS};

    if (how == 2 && !can_lose_one(w)) {
        return;
    }
    cluster_count(w->c, kinds[how]);
    cluster_say(w->c, "node %u: its clock goes off by %lld us, how %d", n, (long long)(off / 1000),
                (int)how);
    if (how == 0) {
        sim_clock_step(k, off);
    } else if (how == 1) {
        sim_clock_run(k, off, rates[rng_below(r, 3)]);
    } else {
        crash(w, n, SIM_CRASH_KILL);
        sim_clock_run(k, off, 0);
    }
    w->wrong_clocks++;
    w->repairs[n] = (struct restart){w, n};
    cluster_at(w->c, cluster_now(w->c) + rng_below(r, 2500 * MS_NS), repair_clock_cb,
               &w->repairs[n]);
}

/* ---- drawing them ---- */

static void pause_one(struct sim_world *w)
{
    node_id n = sim_any_alive(w);
    uint64_t ns = rng_below(cluster_rng(w->c), 800 * MS_NS);
    cluster_say(w->c, "pause node %u for %llu ms", n, (unsigned long long)(ns / MS_NS));
    cluster_pause(w->c, n, ns);
}

static void inflict(struct sim_world *w, enum fault f)
{
    struct rng *r = cluster_rng(w->c);
    switch (f) {
    case FAULT_CRASH:
        if (can_lose_one(w)) {
            crash(w, sim_any_alive(w), SIM_CRASH_KILL);
        }
        break;
    case FAULT_POWER:
        if (can_lose_one(w)) {
            crash(w, sim_any_alive(w), SIM_CRASH_POWER);
        }
        break;
    case FAULT_DEATH:
        if (can_lose_one(w)) {
            node_id n = sim_any_alive(w);
            death(w, n);
            cluster_want_flush(w->c, n); /* most operations on the files are a flush's */
        }
        break;
    case FAULT_CRASH_ALL:
        crash_all(w, rng_below(r, 2) == 0 ? SIM_CRASH_KILL : SIM_CRASH_POWER);
        break;
    case FAULT_PAUSE:
        pause_one(w);
        break;
    case FAULT_CUT:
        cut(w);
        break;
    case FAULT_TRANSFER:
        transfer_at_random(w);
        break;
    case FAULT_SPLIT:
        world_split_at_random(w);
        break;
    case FAULT_MERGE:
        merge_at_random(w);
        break;
    case FAULT_MEMBER:
        member_at_random(w);
        break;
    case FAULT_FLUSH:
        cluster_want_flush(w->c, sim_any_alive(w));
        break;
    case FAULT_STALL:
        stall(w);
        break;
    case FAULT_EIO:
        sync_error(w);
        break;
    case FAULT_NO_ROOM:
        no_room(w);
        break;
    case FAULT_FLIP:
        if (!w->flip_wanted) {
            w->flip_wanted = true;
            flip_cb(w);
        }
        break;
    case FAULT_CLOCK:
        wrong_clock(w);
        break;
    case FAULT_ROT:
        rot(w);
        break;
    case FAULT_COUNT:
        break;
    }
}

static void fault_cb(void *ctx)
{
    struct sim_world *w = ctx;
    struct rng *r = cluster_rng(w->c);
    if (w->stopping || world_failed(w)) {
        return;
    }
    for (node_id i = 1; i <= cluster_node_count(w->c); i++) {
        bool awaited = w->restarts[i].w != NULL;
        if (!cluster_alive(w->c, i) && !cluster_lost(w->c, i) && !awaited) {
            restart_later(w, i); /* stopped by itself */
        }
    }
    uint64_t sum = 0;
    for (unsigned f = 0; f < FAULT_COUNT; f++) {
        sum += w->fault_weights[f];
    }
    if (sum != 0 && alive_count(w) != 0) {
        uint64_t pick = rng_below(r, sum);
        unsigned f = 0;
        while (pick >= w->fault_weights[f]) {
            pick -= w->fault_weights[f++];
        }
        inflict(w, (enum fault)f);
    }
    cluster_at(w->c, cluster_now(w->c) + rng_between(r, w->fault_gap_ns / 20, w->fault_gap_ns),
               fault_cb, w);
}

void sim_faults_start(struct sim_world *w)
{
    if (w->faults) {
        cluster_at(w->c, cluster_now(w->c) + rng_below(cluster_rng(w->c), 300 * MS_NS), fault_cb,
                   w);
    }
}
