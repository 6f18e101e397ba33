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
