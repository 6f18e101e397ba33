/* Splits and births (rules C2, F1, F5) at the level of stores. */
#include "tests/unit/store_world.h"

Test(store_split, f5_a_split_drops_locks_of_its_right_side_only)
{
    struct world *w = world_new(62, MS_NS, false);
    struct arena a = {0};
    struct txn_id left = new_txn(w, 1);
    struct txn_id right = new_txn(w, 1);
    struct range_response l = lock(w, 1, 2, 10, left, true, &a);
    cr_assert_eq(lock(w, 1, 2, 90, right, true, &a).status, SPAN_OK);
    w->wounded = 0;
    cr_assert_eq(split(w, 2, 50, 3, &a).status, SPAN_OK);
    sim_run_for(&w->sim, 50 * MS_NS);
    cr_assert_eq(w->wounded, 1);
    struct key kb;
    struct txn_write wr = {.key = key_of(&kb, 10), .value = slice_str("v")};
    struct range_request q = {.op = OP_COMMIT1,
                              .range = 2,
                              .txn = left,
                              .age = left,
                              .term = l.term,
                              .write_count = 1,
                              .writes = &wr,
                              .anchor = wr.key};
    cr_assert_eq(ask(w, 1, q, &a).status, SPAN_OK);
    cr_assert_eq(lock(w, 1, 2, 11, right, true, &a).status, SPAN_LOCKS_LOST);
    cr_assert_eq(lock(w, 1, 2, 90, new_txn(w, 1), true, &a).status, SPAN_STALE_DESCRIPTOR);
    arena_deinit(&a);
    world_free(w);
}

Test(store_split, a_split_outside_the_range_or_at_a_local_key_is_refused)
{
    struct world *w = world_new(63, MS_NS, true);
    struct arena a = {0};
    cr_assert_eq(split(w, 2, 200, 9, &a).status, SPAN_STALE_DESCRIPTOR);
    uint8_t local[] = {0x00, 's', 1, 0, 0, 0};
    struct read_span s = {.span = {.start = slice_of(local, sizeof local), .point = true}};
    struct range_request q = {.op = OP_SPLIT,
                              .range = 2,
                              .txn = new_txn(w, 1),
                              .span_count = 1,
                              .spans = &s,
                              .new_range = 9};
    cr_assert_eq(ask(w, leader_of(w, 2), q, &a).status, SPAN_INVALID);
    cr_assert_eq(split(w, 2, 50, 9, &a).status, SPAN_STALE_DESCRIPTOR, "its end is not in it");
    arena_deinit(&a);
    world_free(w);
}

Test(store_split, c2_an_abort_record_behind_a_split_is_void_where_its_anchor_has_left)
{
    struct world *w = world_new(64, MS_NS, false);
    struct arena a = {0};
    node_id leader = leader_of(w, 2);
    struct txn_id id = new_txn(w, leader);
    struct key kb;
    struct key pb;
    w->lost = 1u << MSG_RAFT; /* the split is proposed and does not commit yet */
    struct read_span s = {.span = {.start = key_of(&kb, 50), .point = true}};
    struct range_request q = {.op = OP_SPLIT,
                              .range = 2,
                              .txn = new_txn(w, leader),
                              .budget_ns = 3 * SEC_NS,
                              .span_count = 1,
                              .spans = &s,
                              .new_range = 3};
    uint64_t sp = post(w, leader, leader, q);
    sim_run_for(&w->sim, 10 * MS_NS);
    struct key qb;
    struct txn_query ask_of = {.coordinator = key_of(&qb, 90),
                               .txn = id,
                               .participant = key_of(&pb, 200),
                               .node = leader == 1 ? 2 : 1};
    struct buf b = {0};
    msg_encode_query(&b, MSG_TXN_QUERY, &ask_of);
    sim_local(&w->sim, leader, buf_slice(&b));
    buf_deinit(&b);
    sim_run_for(&w->sim, 10 * MS_NS);
    w->lost = 0;
    cr_assert_eq(answer(w, sp, &a).status, SPAN_OK);
    sim_run_for(&w->sim, 500 * MS_NS);
    cr_assert_eq(w->aborts_sent, 0, "told aborted by a range that is not the coordinator's");
    /* and the right side still may commit it */
    struct txn_write wr = {.key = key_of(&kb, 90), .value = slice_str("v")};
    struct range_request cq = {.op = OP_COMMIT1,
                               .range = 3,
                               .txn = id,
                               .age = id,
                               .write_count = 1,
                               .writes = &wr,
                               .anchor = wr.key};
    cr_assert_eq(ask(w, leader, cq, &a).status, SPAN_OK);
    arena_deinit(&a);
    world_free(w);
}

Test(store_split, c2_a_split_carries_outcomes_to_both_sides)
{
    struct world *w = world_new(65, MS_NS, false);
    struct arena a = {0};
    struct key kb;
    struct txn_write wr = {.key = key_of(&kb, 90), .value = slice_str("v")};
    struct txn_id id = new_txn(w, 1);
    struct range_request q = {.op = OP_COMMIT1,
                              .range = 2,
                              .txn = id,
                              .age = id,
                              .write_count = 1,
                              .writes = &wr,
                              .anchor = wr.key};
    struct range_response r = ask(w, 1, q, &a);
    cr_assert_eq(split(w, 2, 50, 3, &a).status, SPAN_OK);
    cr_assert(sim_run_until(&w->sim, leads_3, w, 5 * SEC_NS));
    sim_run_for(&w->sim, 100 * MS_NS);
    q.range = 3;
    struct range_response again = ask(w, 1, q, &a);
    cr_assert_eq(again.status, SPAN_OK);
    cr_assert_eq(again.ts.ns, r.ts.ns);
    arena_deinit(&a);
    world_free(w);
}

/* Brings `away` back behind the others' logs: they have flushed, restarted and forgotten. */
static void come_back_late(struct world *w, node_id away)
{
    for (node_id i = 1; i <= 3; i++) {
        if (i != away) {
            struct tt_now now = sim_clock(&w->sim.nodes[i]);
            store_want_flush(w->sim.nodes[i].store, &now, 0);
            sim_turn_end(&w->sim.nodes[i], &now);
        }
    }
    sim_run_for(&w->sim, 500 * MS_NS);
    for (node_id i = 1; i <= 3; i++) {
        if (i != away) {
            sim_crash(&w->sim, i);
            sim_restart(&w->sim, i);
        }
    }
    sim_restart(&w->sim, away);
}

Test(store_split, f1_a_member_away_during_a_split_gets_the_right_side_by_a_snapshot)
{
    struct world *w = world_new(66, MS_NS, false);
    struct arena a = {0};
    w->sim.flush_bytes = 1 * KIB;
    cr_assert_eq(put(w, 1, 2, 90, "before", &a).status, SPAN_OK);
    node_id away = leader_of(w, 2) == 3 ? 2 : 3;
    node_id gateway = leader_of(w, 2);
    sim_crash(&w->sim, away);
    cr_assert_eq(split(w, 2, 50, 3, &a).status, SPAN_OK);
    cr_assert(sim_run_until(&w->sim, leads_3, w, 5 * SEC_NS));
    for (int i = 0; i < 5; i++) {
        cr_assert_eq(put(w, gateway, 2, 10, "left", &a).status, SPAN_OK);
        cr_assert_eq(put(w, gateway, 3, 90, "right", &a).status, SPAN_OK);
    }
    struct tt_ts s = put(w, gateway, 3, 91, "last", &a).ts;
    come_back_late(w, away);
    sim_run_for(&w->sim, 6 * SEC_NS);
    struct arena da = {0};
    struct range_descriptor *d;
    cr_assert_eq(store_descriptors(w->sim.nodes[away].store, &da, &d), 3, "it has all ranges");
    arena_deinit(&da);
    struct range_response r = read_at(w, away, away, 3, 91, s, &a);
    check_value(r, "last");
    /* it counts: the range lives with it and one other */
    node_id other = leader_of(w, 3) != away && leader_of(w, 3) != 0 ? leader_of(w, 3) : gateway;
    sim_crash(&w->sim, other == away ? gateway : other);
    cr_assert(sim_run_until(&w->sim, leads_3, w, 10 * SEC_NS));
    sim_run_for(&w->sim, 300 * MS_NS);
    r = put(w, away, 3, 90, "two of three", &a);
    cr_assert_eq(r.status, SPAN_OK);
    /* and it survives a restart of its own */
    sim_crash(&w->sim, away);
    sim_restart(&w->sim, away);
    sim_run_for(&w->sim, 3 * SEC_NS);
    r = read_at(w, away, away, 3, 91, s, &a);
    check_value(r, "last");
    arena_deinit(&a);
    world_free(w);
}

Test(store_split, h5_a_snapshot_of_many_chunks_arrives_over_a_bad_link_and_through_crashes)
{
    for (uint64_t seed = 200; seed < 206; seed++) {
        struct world *w = world_new(seed, MS_NS, false);
        struct arena a = {0};
        static char big[100001];
        memset(big, 'x', sizeof big - 1);
        node_id away = leader_of(w, 2) == 3 ? 2 : 3;
        node_id gateway = leader_of(w, 2);
        sim_crash(&w->sim, away);
        for (uint8_t k = 0; k < 40; k++) { /* 4 MB: eight chunks */
            big[0] = (char)('a' + k % 26);
            cr_assert_eq(put(w, gateway, 2, k, big, &a).status, SPAN_OK);
        }
        come_back_late(w, away);
        w->sim.loss = 0.05;
        w->sim.dup = 0.2;
        w->sim.dup_delay_ns = 700 * MS_NS;
        for (int i = 0; i < 4; i++) {
            sim_run_for(&w->sim, rng_below(&w->sim.rng, 900 * MS_NS));
            node_id x = (node_id)(1 + rng_below(&w->sim.rng, 3));
            sim_crash(&w->sim, x); /* the sender, the receiver or who looks on */
            sim_restart(&w->sim, x);
        }
        w->sim.loss = 0;
        sim_run_for(&w->sim, 25 * SEC_NS);
        struct tt_ts at = tt_ts_of(w->sim.now_ns - 100 * MS_NS);
        for (uint8_t k = 0; k < 40; k++) {
            big[0] = (char)('a' + k % 26);
            struct range_response r = read_at(w, away, away, 2, k, at, &a);
            check_value(r, big);
            arena_clear(&a);
        }
        arena_deinit(&a);
        world_free(w);
    }
}

static void crash_in_splits(unsigned times, uint64_t events)
{
    for (uint64_t after = 0; after < times; after++) {
        struct world *w = world_new(100 + after, MS_NS, false);
        struct arena a = {0};
        w->sim.flush_bytes = 1 * KIB;
        cr_assert_eq(put(w, 1, 2, 10, "left", &a).status, SPAN_OK);
        cr_assert_eq(put(w, 1, 2, 90, "right", &a).status, SPAN_OK);
        struct key kb;
        struct read_span s = {.span = {.start = key_of(&kb, 50), .point = true}};
        struct range_request q = {.op = OP_SPLIT,
                                  .range = 2,
                                  .txn = new_txn(w, 1),
                                  .span_count = 1,
                                  .spans = &s,
                                  .new_range = 3};
        (void)post(w, leader_of(w, 2), leader_of(w, 2), q);
        for (uint64_t i = 0; i < after * events; i++) {
            sim_step(&w->sim);
        }
        for (node_id i = 1; i <= 3; i++) {
            sim_crash(&w->sim, i);
        }
        for (node_id i = 1; i <= 3; i++) {
            sim_restart(&w->sim, i);
        }
        cr_assert(sim_run_until(&w->sim, leads_2, w, 10 * SEC_NS));
        sim_run_for(&w->sim, 3 * SEC_NS);
        struct arena da = {0};
        struct range_descriptor *d;
        bool happened = store_descriptors(w->sim.nodes[1].store, &da, &d) == 3;
        arena_deinit(&da);
        range_id right = happened ? 3 : 2;
        cr_assert(leader_of(w, right) != 0, "after %lu", (unsigned long)after);
        struct range_response r = read_at(w, 1, 0, right, 90, tt_ts_of(w->sim.now_ns), &a);
        check_value(r, "right");
        r = read_at(w, 1, 0, 2, 10, tt_ts_of(w->sim.now_ns), &a);
        check_value(r, "left");
        cr_assert_eq(put(w, 2, right, 90, "on", &a).status, SPAN_OK);
        arena_deinit(&a);
        world_free(w);
    }
}

Test(store_split, a_split_survives_a_crash_of_everybody_at_any_moment)
{
    crash_in_splits(40, 2);
}

Test(store_split, a_split_built_ahead_survives_a_crash_of_everybody_at_any_moment)
{
    splits_ahead = true;
    crash_in_splits(60, 4);
}

/* 4 MB of which the half goes right, while writes go on on both sides. */
static void split_under_writes(struct world *w, struct arena *a, uint64_t *longest_ns)
{
    static char big[100001];
    memset(big, 'x', sizeof big - 1);
    for (uint8_t k = 0; k < 40; k++) {
        cr_assert_eq(put(w, 1, 2, (uint8_t)(30 + k), big, a).status, SPAN_OK);
        arena_clear(a);
    }
    struct key kb;
    struct read_span s = {.span = {.start = key_of(&kb, 50), .point = true}};
    struct range_request q = {.op = OP_SPLIT,
                              .range = 2,
                              .txn = new_txn(w, 1),
                              .span_count = 1,
                              .spans = &s,
                              .new_range = 3};
    (void)post(w, leader_of(w, 2), leader_of(w, 2), q);
    char text[16] = "";
    unsigned n = 0;
    while (leader_of(w, 3) == 0) {
        uint64_t began = w->sim.now_ns;
        (void)snprintf(text, sizeof text, "v%u", n);
        bool right = n % 2 == 0;
        while (put(w, 1, right && leader_of(w, 3) != 0 ? 3 : 2, right ? 60 : 40, text, a).status !=
               SPAN_OK) {
            sim_run_for(&w->sim, MS_NS);
        }
        uint64_t took = w->sim.now_ns - began;
        *longest_ns = took > *longest_ns ? took : *longest_ns;
        arena_clear(a);
        cr_assert_lt(++n, 5000, "the split happens");
    }
    cr_assert_gt(n, 10, "there were writes while the file was built");
    sim_run_for(&w->sim, 500 * MS_NS);
    (void)snprintf(text, sizeof text, "v%u", n % 2 == 0 ? n - 2 : n - 1);
    struct range_response r = read_at(w, 1, 0, 3, 60, tt_ts_of(w->sim.now_ns), a);
    check_value(r, text);
    (void)snprintf(text, sizeof text, "v%u", n % 2 == 0 ? n - 1 : n - 2);
    r = read_at(w, 1, 0, 2, 40, tt_ts_of(w->sim.now_ns), a);
    check_value(r, text);
    r = read_at(w, 1, 0, 3, 69, tt_ts_of(w->sim.now_ns), a);
    check_value(r, big);
}

Test(store_split, writes_go_on_while_the_right_side_of_a_split_is_built)
{
    for (uint64_t seed = 300; seed < 304; seed++) {
        struct world *w = world_new(seed, MS_NS, false);
        struct arena a = {0};
        uint64_t longest_ns = 0;
        split_under_writes(w, &a, &longest_ns);
        cr_assert_lt(longest_ns, 60 * MS_NS);
        /* And after a restart of everybody. */
        for (node_id i = 1; i <= 3; i++) {
            sim_crash(&w->sim, i);
            sim_restart(&w->sim, i);
        }
        cr_assert(sim_run_until(&w->sim, leads_3, w, 10 * SEC_NS));
        sim_run_for(&w->sim, 3 * SEC_NS);
        struct range_response r = read_at(w, 1, 0, 3, 60, tt_ts_of(w->sim.now_ns), &a);
        cr_assert(r.status == SPAN_OK && r.row_count == 1);
        arena_deinit(&a);
        world_free(w);
    }
}

Test(store_split, a_member_that_missed_the_announcement_builds_its_right_side_before_it_applies)
{
    struct world *w = world_new(310, MS_NS, false);
    struct arena a = {0};
    node_id away = leader_of(w, 2) == 3 ? 2 : 3;
    node_id other = 6 - away - leader_of(w, 2);
    for (node_id i = 1; i <= 3; i++) {
        w->sim.cut[i][away] = w->sim.cut[away][i] = i != away;
    }
    uint64_t longest_ns = 0;
    split_under_writes(w, &a, &longest_ns);
    for (node_id i = 1; i <= 3; i++) {
        w->sim.cut[i][away] = w->sim.cut[away][i] = false;
    }
    sim_run_for(&w->sim, 6 * SEC_NS);
    sim_crash(&w->sim, other);
    cr_assert(sim_run_until(&w->sim, leads_3, w, 10 * SEC_NS));
    sim_run_for(&w->sim, 300 * MS_NS);
    cr_assert_eq(put(w, away, 3, 60, "with the late one", &a).status, SPAN_OK);
    struct range_response r = read_at(w, away, 0, 3, 69, tt_ts_of(w->sim.now_ns), &a);
    cr_assert(r.status == SPAN_OK && r.row_count == 1);
    arena_deinit(&a);
    world_free(w);
}
