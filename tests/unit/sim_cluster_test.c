/* What seeds of the simulator have found, as scripts of their own on its cluster: a seed draws
 * something else as soon as anything changes, a script does not. */
#include "base/log.h"
#include "shard/range/store_impl.h"
#include "tests/sim/sim_check.h"
#include "tests/sim/sim_cluster.h"
#include "tests/sim/sim_world.h"

#include <criterion/criterion.h>

static void op_done(struct gateway_op *op)
{
    *(bool *)op->owner = true;
}

static bool is_true(void *ctx)
{
    return *(bool *)ctx;
}

static span_status run_op(struct cluster *c, node_id node, struct gateway_op *op)
{
    bool done = false;
    op->owner = &done;
    op->done = op_done;
    cluster_op(c, node, op);
    cr_assert(cluster_run_until(c, is_true, &done, 30 * SEC_NS));
    return op->status;
}

static void put(struct cluster *c, unsigned account)
{
    struct buf key = {0};
    struct buf value = {0};
    sim_account_key(&key, account);
    sim_value_of(&value, account, 1);
    struct txn_write w = {.key = buf_slice(&key), .value = buf_slice(&value)};
    struct gateway_op op = {.kind = GATEWAY_COMMIT};
    op.txn.id = op.txn.age = (struct txn_id){cluster_clock(c, 1).tt.latest.ns, 1, account};
    op.commit = (struct txn_commit){.writes = &w, .write_count = 1};
    cr_assert_eq(run_op(c, 1, &op), SPAN_OK, "%s", op.err.text);
    buf_deinit(&key);
    buf_deinit(&value);
}

static size_t broken(struct cluster *c, node_id node)
{
    size_t n = 0;
    size_t pos = 0;
    const struct replica *r;
    while ((r = map64_next(&cluster_store(c, node)->replicas, &pos, NULL)) != NULL) {
        n += r->broken ? 1 : 0;
    }
    return n;
}

/* spanlite sim --seed 185 and --seed 336, when they were found: the right side's file could not be
 * made, and the replica was out until a restart. */
Test(sim_cluster, a_split_that_finds_no_room_is_applied_when_there_is_room, .timeout = 60)
{
    log_set_level((enum log_level)(LOG_ERROR + 1));
    struct cluster_options o;
    cluster_options_init(&o, 7);
    struct cluster *c = cluster_new(&o);
    struct sim_check *k = sim_check_new(c);
    cluster_boot(c);
    for (unsigned i = 0; i < 20; i++) {
        put(c, i);
    }
    size_t ranges = store_range_count(cluster_store(c, 1));
    sim_disk_set_room(cluster_disk(c, 2), 0);
    struct buf key = {0};
    sim_account_key(&key, 10);
    struct gateway_op op = {.kind = GATEWAY_SPLIT};
    op.u.split.key = buf_slice(&key);
    cr_assert_eq(run_op(c, 1, &op), SPAN_OK, "%s", op.err.text);
    buf_deinit(&key);
    cluster_run_for(c, SEC_NS);
    cr_assert_eq(store_range_count(cluster_store(c, 1)), ranges + 1);
    cr_assert_eq(store_range_count(cluster_store(c, 2)), ranges, "the disk was not full");
    cr_assert_eq(broken(c, 2), 0);
    sim_disk_set_room(cluster_disk(c, 2), UINT64_MAX);
    cluster_run_for(c, SEC_NS);
    put(c, 5);
    put(c, 15);
    cluster_run_for(c, SEC_NS);
    cr_assert_eq(store_range_count(cluster_store(c, 2)), ranges + 1);
    cr_assert_geq(sim_check_digests(k), 2 * (ranges + 1));
    cr_assert_null(cluster_failure(c), "%s", cluster_failure(c));
    cluster_free(c);
    sim_check_free(k);
}

/* spanlite sim --scenario member --seed 2, when it was found: the gateway of a node that had left a
 * range asked its own node for a follower read again and again, until the deadline. */
Test(sim_cluster, a_node_that_left_a_range_reads_it_at_the_others, .timeout = 60)
{
    log_set_level((enum log_level)(LOG_ERROR + 1));
    struct cluster_options o;
    cluster_options_init(&o, 8);
    o.nodes = 5;
    struct cluster *c = cluster_new(&o);
    cluster_boot(c);
    put(c, 1);
    range_id range = 2;
    struct gateway_op move = {.kind = GATEWAY_MOVE, .u.move = {.range = range, .remove = 3}};
    cr_assert_eq(run_op(c, 1, &move), SPAN_OK, "%s", move.err.text);
    for (int i = 0; i < 60 && store_replica(cluster_store(c, 3), range) != NULL; i++) {
        cluster_run_for(c, SEC_NS);
    }
    cr_assert_null(store_replica(cluster_store(c, 3), range));
    struct buf start = {0};
    struct buf end = {0};
    sim_account_key(&start, 0);
    sim_account_key(&end, 9);
    struct gateway_op read = {.kind = GATEWAY_READ};
    read.read.mode = KV_READ_AT;
    read.read.read_ts = tt_ts_of(cluster_clock(c, 3).tt.earliest.ns - 100 * MS_NS);
    read.read.start = buf_slice(&start);
    read.read.end = buf_slice(&end);
    uint64_t begun_ns = cluster_now(c);
    cr_assert_eq(run_op(c, 3, &read), SPAN_OK, "%s", read.err.text);
    cr_assert_lt(cluster_now(c) - begun_ns, SEC_NS);
    cr_assert_eq(read.read.page_count, 1);
    cr_assert_eq(read.read.pages[0].count, 1);
    txn_read_deinit(&read.read);
    buf_deinit(&start);
    buf_deinit(&end);
    cluster_free(c);
}

/* spanlite sim --seed 20021, when it was found: SQLite said nothing about a failed sync while the
 * right side's file changed its journal mode, the next sync said OK, and after a power loss the
 * file was empty (rule H4). */
Test(sim_cluster, a_sync_that_fails_while_a_split_is_built_is_noticed, .timeout = 120)
{
    log_set_level((enum log_level)(LOG_ERROR + 1));
    for (uint64_t skip = 0; skip < 4; skip++) {
        struct cluster_options o;
        cluster_options_init(&o, 20 + skip);
        struct cluster *c = cluster_new(&o);
        cluster_boot(c);
        for (unsigned i = 0; i < 20; i++) {
            put(c, i);
        }
        wal_memfs_fail_syncs(cluster_disk(c, 2)->files, skip, 1);
        struct buf key = {0};
        sim_account_key(&key, 10);
        struct gateway_op op = {.kind = GATEWAY_SPLIT};
        op.u.split.key = buf_slice(&key);
        cr_assert_eq(run_op(c, 1, &op), SPAN_OK, "%s", op.err.text);
        buf_deinit(&key);
        cluster_run_for(c, SEC_NS);
        for (int i = 0; i < 3; i++) {
            cluster_crash(c, 2, SIM_CRASH_POWER);
            cr_assert(cluster_restart(c, 2), "after %d syncs: %s", (int)skip,
                      cluster_failure(c) == NULL ? "" : cluster_failure(c));
        }
        put(c, 15);
        cr_assert_null(cluster_failure(c), "%s", cluster_failure(c));
        cluster_free(c);
    }
}
