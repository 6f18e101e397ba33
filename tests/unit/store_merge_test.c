/* Merges (rule F3) at the level of stores. */
#include "tests/unit/store_world.h"

static uint64_t post_merge(struct world *w, range_id left, range_id right)
{
    node_id leader = leader_of(w, left);
    struct range_request q = {
        .op = OP_MERGE, .range = left, .new_range = right, .txn = new_txn(w, leader)};
    return post(w, leader, leader, q);
}

/* As the gateway does: again until there is a last word. */
static span_status try_merge(struct world *w, range_id left, range_id right)
{
    struct arena a = {0};
    span_status st = SPAN_OVERLOADED;
    for (int i = 0; i < 100 && span_status_kind(st) == SPAN_KIND_RETRY; i++) {
        if (leader_of(w, left) != 0) {
            st = span_status_from_wire(answer(w, post_merge(w, left, right), &a).status);
        }
        sim_run_for(&w->sim, 20 * MS_NS);
    }
    arena_deinit(&a);
    return st;
}

static void merge(struct world *w, range_id left, range_id right)
{
    span_status st = try_merge(w, left, right);
    cr_assert_eq(st, SPAN_OK, "%s", span_status_name(st));
}

static size_t ranges_at(struct world *w, node_id node)
{
    struct arena a = {0};
    struct range_descriptor *d;
    size_t n = store_descriptors(w->sim.nodes[node].store, &a, &d);
    arena_deinit(&a);
    return n;
}

/* What the split that made range 3 left in range 2's files goes. */
static void trim(struct world *w)
{
    for (int times = 0; times < 2; times++) {
        for (node_id i = 1; i <= 3; i++) {
            struct tt_now now = sim_clock(&w->sim.nodes[i]);
            store_want_flush(w->sim.nodes[i].store, &now, 0);
            sim_turn_end(&w->sim.nodes[i], &now);
        }
        sim_run_for(&w->sim, 300 * MS_NS);
    }
}

Test(store_merge, f3_a_merge_takes_rows_outcomes_and_schema_along)
{
    struct world *w = world_new(80, MS_NS, true);
    struct arena a = {0};
    cr_assert_eq(put(w, 1, 2, 10, "left", &a).status, SPAN_OK);
    cr_assert_eq(put(w, 1, 3, 90, "right", &a).status, SPAN_OK);
    struct txn_id two = new_txn(w, 1);
    (void)post_prepare(w, 1, two, 0, "both");
    struct tt_ts s = answer(w, post_coordinate(w, 1, two, 0, "both", SEC_NS), &a).ts;
    cr_assert(!tt_is_none(s));
    sim_run_for(&w->sim, 200 * MS_NS);
    merge(w, 2, 3);
    sim_run_for(&w->sim, 500 * MS_NS);
    for (node_id n = 1; n <= 3; n++) {
        cr_assert_eq(ranges_at(w, n), 2);
    }
    struct range_response r = read_at(w, 1, 0, 2, 90, sim_clock(&w->sim.nodes[1]).tt.latest, &a);
    check_value(r, "both");
    cr_assert_eq(status(w, 1, two, &a).ts.ns, s.ns);
    cr_assert_eq(put(w, 1, 2, 90, "after", &a).status, SPAN_OK);
    struct key kb;
    struct read_span span;
    struct range_request late = lock_request(&kb, &span, 3, 90, new_txn(w, 1), true);
    r = answer(w, post(w, 1, leader_of(w, 2), late), &a);
    cr_assert_eq(r.status, SPAN_STALE_DESCRIPTOR);
    arena_deinit(&a);
    world_free(w);
}

Test(store_merge, f3_nothing_is_written_below_what_the_right_side_was_read_at)
{
    struct world *w = world_new(81, 7 * MS_NS, true);
    struct arena a = {0};
    transfer(w, 2, 2);
    transfer(w, 3, 2);
    for (node_id n = 1; n <= 3; n++) {
        w->sim.nodes[n].offset_ns = n == 2 ? -6 * (int64_t)MS_NS : 6 * (int64_t)MS_NS;
    }
    sim_run_for(&w->sim, 300 * MS_NS);
    struct tt_ts at = tt_add(sim_clock(&w->sim.nodes[1]).tt.latest, 60 * MS_NS);
    cr_assert_eq(read_at(w, 1, 0, 3, 90, at, &a).status, SPAN_OK);
    merge(w, 2, 3);
    struct tt_ts s = put(w, 1, 2, 90, "after", &a).ts;
    cr_assert_gt(s.ns, at.ns);
    arena_deinit(&a);
    world_free(w);
}

/* Crashes of one node at every eighth of a millisecond of a merge: it ends one way or the other,
 * everywhere, and nothing is lost. */
Test(store_merge, f3_a_merge_survives_a_crash_at_any_moment)
{
    unsigned whole = 0;  /* ended without help, one way ... */
    unsigned undone = 0; /* ... or the other */
    for (unsigned at = 0; at < 40; at++) {
        struct world *w = world_new(83 + at, MS_NS, true);
        struct arena a = {0};
        node_id victim = 1 + at % 3;
        cr_assert_eq(put(w, 1, 2, 10, "left", &a).status, SPAN_OK);
        cr_assert_eq(put(w, 1, 3, 90, "right", &a).status, SPAN_OK);
        transfer(w, 2, 1);
        transfer(w, 3, 1);
        trim(w);
        (void)post_merge(w, 2, 3);
        sim_run_for(&w->sim, at * (MS_NS / 8));
        sim_crash(&w->sim, victim);
        sim_run_for(&w->sim, 200 * MS_NS);
        sim_restart(&w->sim, victim);
        cr_assert(sim_run_until(&w->sim, leads_2, w, 10 * SEC_NS));
        sim_run_for(&w->sim, 3 * SEC_NS);
        size_t ranges = ranges_at(w, 1);
        for (node_id n = 2; n <= 3; n++) {
            cr_assert_eq(ranges_at(w, n), ranges, "crash of %u at %u", victim, at);
        }
        whole += ranges == 2 ? 1 : 0;
        undone += ranges == 3 ? 1 : 0;
        if (ranges == 3) {
            merge(w, 2, 3);
        }
        struct tt_ts now = sim_clock(&w->sim.nodes[1]).tt.latest;
        struct range_response left = read_at(w, 1, 0, 2, 10, now, &a);
        check_value(left, "left");
        struct range_response right = read_at(w, 1, 0, 2, 90, now, &a);
        check_value(right, "right");
        arena_deinit(&a);
        world_free(w);
    }
    cr_assert_gt(whole, 5, "%u whole, %u undone", whole, undone);
    cr_assert_gt(undone, 0, "%u whole, %u undone", whole, undone);
}

Test(store_merge, f3_ranges_that_are_no_neighbours_or_have_other_members_are_refused)
{
    struct world *w = world_new(130, MS_NS, true);
    struct arena a = {0};
    cr_assert_eq(split(w, 3, 150, 4, &a).status, SPAN_OK);
    sim_run_for(&w->sim, 500 * MS_NS);
    node_id to = leader_of(w, 2);
    transfer(w, 4, to);
    cr_assert_eq(try_merge(w, 2, 4), SPAN_INVALID);
    cr_assert_eq(try_merge(w, 2, 9), SPAN_INVALID);
    cr_assert_eq(try_merge(w, 1, 2), SPAN_INVALID);
    arena_deinit(&a);
    world_free(w);
}

/* A split whose answer was lost is sent again after a merge undid it. */
Test(store_merge, f3_a_number_is_not_given_twice)
{
    struct world *w = world_new(131, MS_NS, true);
    struct arena a = {0};
    merge(w, 2, 3);
    cr_assert_eq(split(w, 2, 50, 3, &a).status, SPAN_EXISTS);
    cr_assert_eq(split(w, 2, 100, 5, &a).status, SPAN_OK);
    sim_run_for(&w->sim, 500 * MS_NS);
    cr_assert_eq(split(w, 5, 150, 3, &a).status, SPAN_EXISTS);
    arena_deinit(&a);
    world_free(w);
}
