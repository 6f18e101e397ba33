/* Rules of PROTOCOL.md at the level of stores, one scenario each: timestamps (A), transactions (C,
 * G), leadership (B). Splits and merges have files of their own. */
#include "tests/unit/store_world.h"

/* ---- A: timestamps and the floor ---- */

Test(store_rules, a1_a_new_leader_writes_above_what_the_old_one_let_be_read)
{
    struct world *w = world_new(31, 20 * MS_NS, false);
    struct arena a = {0};
    transfer(w, 2, 1);
    w->sim.nodes[1].offset_ns = 20 * MS_NS;
    w->sim.nodes[2].offset_ns = -20 * (int64_t)MS_NS;
    sim_run_for(&w->sim, 100 * MS_NS);
    struct tt_ts r = sim_clock(&w->sim.nodes[1]).tt.latest; /* 40 ms ahead of true time */
    cr_assert_eq(read_at(w, 1, 0, 2, 5, r, &a).status, SPAN_OK);
    struct range_request q = {.op = OP_TRANSFER, .range = 2, .new_range = 2, .txn = new_txn(w, 1)};
    (void)post(w, 1, 1, q);
    while (leader_of(w, 2) != 2) {
        sim_run_for(&w->sim, 100000);
    }
    cr_assert(tt_lt(sim_clock(&w->sim.nodes[2]).tt.latest, r), "else this shows nothing");
    struct range_response p = put(w, 3, 2, 5, "x", &a);
    cr_assert_eq(p.status, SPAN_OK);
    cr_assert(tt_lt(r, p.ts), "a write below a read that was answered");
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, a2_a_commit_is_above_everything_its_transaction_has_seen)
{
    struct world *w = world_new(32, MS_NS, false);
    struct arena a = {0};
    struct key kb;
    struct txn_write wr = {.key = key_of(&kb, 5), .value = slice_str("v")};
    struct txn_id id = new_txn(w, 1);
    struct tt_ts seen = tt_add(sim_clock(&w->sim.nodes[1]).tt.latest, 30 * MS_NS);
    struct range_request q = {.op = OP_COMMIT1,
                              .range = 2,
                              .txn = id,
                              .age = id,
                              .seen = seen,
                              .write_count = 1,
                              .writes = &wr,
                              .anchor = wr.key};
    struct range_response r = ask(w, 1, q, &a);
    cr_assert_eq(r.status, SPAN_OK);
    cr_assert(tt_lt(seen, r.ts));
    /* and what comes after it is above it, too */
    struct range_response next = put(w, 2, 2, 6, "w", &a);
    cr_assert(tt_lt(r.ts, next.ts));
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, a5_a_read_waits_for_a_record_in_flight_below_it)
{
    struct world *w = world_new(33, MS_NS, false);
    struct arena a = {0};
    cr_assert_eq(put(w, 1, 2, 5, "old", &a).status, SPAN_OK);
    node_id leader = leader_of(w, 2);
    w->lost = 1u << MSG_RAFT; /* nothing commits */
    struct key kb;
    struct txn_write wr = {.key = key_of(&kb, 5), .value = slice_str("new")};
    struct txn_id id = new_txn(w, leader);
    struct range_request q = {.op = OP_COMMIT1,
                              .range = 2,
                              .txn = id,
                              .age = id,
                              .write_count = 1,
                              .writes = &wr,
                              .anchor = wr.key};
    uint64_t commit = post(w, leader, leader, q);
    struct tt_ts at = tt_add(sim_clock(&w->sim.nodes[leader]).tt.latest, MS_NS);
    struct read_span s = {.span = {.start = wr.key, .point = true}};
    struct range_request rq = {.op = OP_READ,
                               .range = 2,
                               .txn = new_txn(w, leader),
                               .read_ts = at,
                               .span_count = 1,
                               .spans = &s};
    uint64_t read = post(w, leader, leader, rq);
    s.span.start = key_of(&kb, 6);
    uint64_t other = post(w, leader, leader, rq);
    sim_run_for(&w->sim, 30 * MS_NS);
    cr_assert(!answered(w, read));
    cr_assert(answered(w, other), "another key has no reason to wait");
    w->lost = 0;
    struct range_response c = answer(w, commit, &a);
    cr_assert_eq(c.status, SPAN_OK);
    cr_assert(tt_le(c.ts, at));
    struct range_response got = answer(w, read, &a);
    check_value(got, "new");
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, a6_a_read_far_in_the_future_is_refused)
{
    struct world *w = world_new(34, MS_NS, false);
    struct arena a = {0};
    struct tt_ts far = tt_add(sim_clock(&w->sim.nodes[1]).tt.latest, 3600 * SEC_NS);
    cr_assert_eq(read_at(w, 1, 0, 2, 5, far, &a).status, SPAN_IN_FUTURE);
    struct range_response p = put(w, 1, 2, 5, "v", &a);
    cr_assert_eq(p.status, SPAN_OK);
    cr_assert(tt_lt(p.ts, tt_add(sim_clock(&w->sim.nodes[1]).tt.latest, SEC_NS)));
    arena_deinit(&a);
    world_free(w);
}

/* safe_time of range 2 as SHOW RANGES tells it of node; 0: NULL. */
static uint64_t shown_safe_time(struct world *w, node_id node)
{
    struct tt_now now = sim_clock(&w->sim.nodes[node]);
    struct arena a = {0};
    struct slice *cells;
    size_t count;
    unsigned columns;
    uint64_t ts = 0;
    store_show(w->sim.nodes[node].store, &now, 0, &a, &cells, &count, &columns);
    for (size_t i = 0; i < count; i += columns) {
        struct slice cell = cells[i + 10];
        if (slice_eq(cells[i], slice_str("2")) && cell.data != NULL) {
            char text[24] = "";
            memcpy(text, cell.data, cell.size);
            ts = strtoull(text, NULL, 10);
            cr_assert_neq(ts, 0, "no timestamp is NULL, not 0");
        }
    }
    arena_deinit(&a);
    return ts;
}

Test(store_rules, safe_time_is_shown_as_reads_find_it)
{
    struct world *w = world_new(36, MS_NS, false);
    struct arena a = {0};
    struct range_response p = put(w, 1, 2, 5, "v", &a);
    sim_run_for(&w->sim, 200 * MS_NS);
    for (node_id i = 1; i <= 3; i++) { /* nothing has been written or read here for 200 ms */
        uint64_t ts = shown_safe_time(w, i);
        cr_assert_geq(ts, p.ts.ns, "node %u", i);
        cr_assert_leq(ts, sim_clock(&w->sim.nodes[i]).tt.latest.ns, "node %u", i);
        check_value(read_at(w, i, i, 2, 5, tt_ts_of(ts), &a), "v");
    }
    node_id leader = leader_of(w, 2);
    cr_assert_eq(shown_safe_time(w, leader), sim_clock(&w->sim.nodes[leader]).tt.latest.ns);
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, a4_a_follower_reads_once_its_safe_time_is_there)
{
    struct world *w = world_new(35, MS_NS, false);
    struct arena a = {0};
    struct range_response p = put(w, 1, 2, 5, "v", &a);
    node_id follower = leader_of(w, 2) == 3 ? 2 : 3;
    sim_run_for(&w->sim, 200 * MS_NS); /* heartbeats close it */
    struct range_response r = read_at(w, follower, follower, 2, 5, p.ts, &a);
    check_value(r, "v");
    cr_assert_eq(read_at(w, follower, follower, 2, 5, tt_ts_of(p.ts.ns - 1), &a).row_count, 0);
    struct tt_ts ahead = tt_add(sim_clock(&w->sim.nodes[follower]).tt.latest, 2 * MS_NS);
    uint16_t st = read_at(w, follower, follower, 2, 5, ahead, &a).status;
    cr_assert(st == SPAN_WOULD_WAIT || st == SPAN_NOT_LEADER);
    arena_deinit(&a);
    world_free(w);
}

/* ---- C: transactions ---- */

Test(store_rules, c1_a_commit_that_names_another_term_is_refused)
{
    struct world *w = world_new(41, MS_NS, true);
    struct arena a = {0};
    struct txn_id id = new_txn(w, 1);
    struct range_response l = lock(w, 1, 3, 90, id, true, &a);
    cr_assert_eq(l.status, SPAN_OK);
    node_id was = leader_of(w, 3);
    transfer(w, 3, was == 3 ? 1 : 3);
    transfer(w, 3, was); /* the same node again: the locks are gone all the same */
    struct range_response p = answer(w, post_prepare(w, 1, id, l.term, "x"), &a);
    cr_assert_eq(p.status, SPAN_LOCKS_LOST);
    struct key kb;
    struct range_request v = {.op = OP_VALIDATE,
                              .range = 3,
                              .txn = id,
                              .age = id,
                              .term = l.term,
                              .read_ts = sim_clock(&w->sim.nodes[1]).tt.latest,
                              .anchor = key_of(&kb, 90)};
    cr_assert_eq(ask(w, 1, v, &a).status, SPAN_LOCKS_LOST);
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c3_duplicates_after_the_end_change_nothing)
{
    struct world *w = world_new(42, MS_NS, true);
    struct arena a = {0};
    struct txn_id id = new_txn(w, 1);
    (void)post_prepare(w, 1, id, 0, "first");
    uint64_t c = post_coordinate(w, 1, id, 0, "first", 0);
    struct range_response r = answer(w, c, &a);
    cr_assert_eq(r.status, SPAN_OK);
    struct tt_ts s = r.ts;
    sim_run_for(&w->sim, 50 * MS_NS);
    cr_assert_eq(put(w, 1, 2, 10, "second", &a).status, SPAN_OK);
    cr_assert_eq(put(w, 1, 3, 90, "second", &a).status, SPAN_OK);
    transfer(w, 2, leader_of(w, 2) == 1 ? 2 : 1); /* also a new leader knows */
    uint64_t p = post_prepare(w, 2, id, 0, "again");
    r = answer(w, post_coordinate(w, 2, id, 0, "again", 0), &a);
    cr_assert_eq(r.status, SPAN_OK);
    cr_assert_eq(r.ts.ns, s.ns);
    sim_run_for(&w->sim, 12 * SEC_NS);
    cr_assert(!answered(w, p) || left_over(w) == 0);
    cr_assert_eq(left_over(w), 0);
    struct tt_ts now = tt_ts_of(w->sim.now_ns);
    r = read_at(w, 1, 0, 2, 10, now, &a);
    check_value(r, "second");
    r = read_at(w, 1, 0, 3, 90, now, &a);
    check_value(r, "second");
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c4_an_older_reader_wounds_a_coordinator_that_waits_for_votes)
{
    struct world *w = world_new(43, MS_NS, true);
    struct arena a = {0};
    struct txn_id old = new_txn(w, 1);
    sim_run_for(&w->sim, MS_NS);
    struct txn_id young = new_txn(w, 2);
    uint64_t c = post_coordinate(w, 2, young, 0, "young", 0); /* no prepare is ever sent */
    sim_run_for(&w->sim, 20 * MS_NS);
    cr_assert(!answered(w, c));
    struct range_response l = lock(w, 1, 2, 10, old, true, &a);
    cr_assert_eq(l.status, SPAN_OK);
    struct range_response r = answer(w, c, &a);
    cr_assert_eq(r.status, SPAN_ABORTED);
    /* the vote that comes now finds the record */
    (void)post_prepare(w, 2, young, 0, "young");
    sim_run_for(&w->sim, SEC_NS);
    r = read_at(w, 1, 0, 3, 90, tt_ts_of(w->sim.now_ns), &a);
    cr_assert_eq(r.status, SPAN_OK);
    cr_assert_eq(r.row_count, 0);
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c4_an_older_one_behind_a_prepared_participant_is_through_at_once)
{
    struct world *w = world_new(44, MS_NS, true);
    struct arena a = {0};
    struct txn_id old = new_txn(w, 1);
    sim_run_for(&w->sim, MS_NS);
    struct txn_id young = new_txn(w, 2);
    cr_assert_eq(lock(w, 2, 2, 10, young, true, &a).status, SPAN_OK);
    (void)post_prepare(w, 2, young, 0, "young"); /* its commit request comes never */
    sim_run_for(&w->sim, 20 * MS_NS);
    uint64_t began = w->sim.now_ns;
    struct range_response l = lock(w, 1, 3, 90, old, true, &a);
    cr_assert_eq(l.status, SPAN_OK);
    cr_assert_lt(w->sim.now_ns - began, 400 * MS_NS, "%lu ms",
                 (unsigned long)((w->sim.now_ns - began) / MS_NS));
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c4_a_wound_reaches_a_coordinator_that_waits_for_locks_itself)
{
    struct world *w = world_new(45, MS_NS, true);
    struct arena a = {0};
    struct txn_id old = new_txn(w, 1);
    sim_run_for(&w->sim, MS_NS);
    struct txn_id middle = new_txn(w, 2);
    sim_run_for(&w->sim, MS_NS);
    struct txn_id young = new_txn(w, 3);
    /* young is prepared on key 10 here, for a coordinator that does not answer */
    struct key k1;
    struct key k2;
    struct txn_write wr = {.key = key_of(&k1, 10), .value = slice_str("y")};
    struct range_request q = {.op = OP_PREPARE,
                              .range = 2,
                              .txn = young,
                              .age = young,
                              .budget_ns = 5 * SEC_NS,
                              .write_count = 1,
                              .writes = &wr,
                              .anchor = wr.key,
                              .coordinator = key_of(&k2, 95),
                              .coordinator_range = 3,
                              .coordinator_node = leader_of(w, 3)};
    w->lost = 1u << MSG_TXN_QUERY | 1u << MSG_VOTE | 1u << MSG_WOUND;
    if (leader_of(w, 2) == leader_of(w, 3)) {
        transfer(w, 3, leader_of(w, 2) == 1 ? 2 : 1);
    }
    (void)post(w, 3, leader_of(w, 2), q);
    sim_run_for(&w->sim, 20 * MS_NS);
    w->lost_to = leader_of(w, 3); /* what goes to range 2 arrives */
    (void)post_prepare(w, 2, middle, 0, "m");
    uint64_t c = post_coordinate(w, 2, middle, 0, "m", 5 * SEC_NS); /* waits for young's lock */
    sim_run_for(&w->sim, 20 * MS_NS);
    cr_assert(!answered(w, c));
    uint64_t began = w->sim.now_ns;
    struct range_response l = lock(w, 1, 3, 90, old, true, &a); /* behind middle's prepare */
    cr_assert_eq(l.status, SPAN_OK);
    cr_assert_lt(w->sim.now_ns - began, 400 * MS_NS);
    cr_assert_eq(answer(w, c, &a).status, SPAN_ABORTED);
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c8_a_commit_request_that_never_gets_its_locks_ends_in_an_abort_record)
{
    struct world *w = world_new(46, MS_NS, true);
    struct arena a = {0};
    struct txn_id old = new_txn(w, 1);
    sim_run_for(&w->sim, MS_NS);
    /* a younger prepared one holds key 10, so that the commit phase waits */
    struct txn_id young = {w->sim.now_ns + SEC_NS / 100, 3, 1};
    struct key k1;
    struct key k2;
    struct txn_write wr = {.key = key_of(&k1, 10), .value = slice_str("y")};
    struct range_request q = {.op = OP_PREPARE,
                              .range = 2,
                              .txn = young,
                              .age = young,
                              .write_count = 1,
                              .writes = &wr,
                              .anchor = wr.key,
                              .coordinator = key_of(&k2, 95),
                              .coordinator_range = 3,
                              .coordinator_node = leader_of(w, 3)};
    if (leader_of(w, 2) == leader_of(w, 3)) {
        transfer(w, 3, leader_of(w, 2) == 1 ? 2 : 1);
    }
    w->lost = 1u << MSG_TXN_QUERY | 1u << MSG_VOTE | 1u << MSG_WOUND;
    w->lost_to = leader_of(w, 3);
    (void)post(w, 3, leader_of(w, 2), q);
    sim_run_for(&w->sim, 20 * MS_NS);
    (void)post_prepare(w, 1, old, 0, "o");
    uint64_t c = post_coordinate(w, 1, old, 0, "o", 300 * MS_NS);
    struct range_response r = answer(w, c, &a);
    cr_assert_eq(r.status, SPAN_ABORTED);
    cr_assert_eq(status(w, 2, old, &a).txn_state, TXN_STATE_ABORTED);
    w->lost = 0;
    sim_run_for(&w->sim, 12 * SEC_NS);
    cr_assert_eq(left_over(w), 0, "old's participant and young both ended");
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c8_a_participant_finds_the_coordinator_s_new_leader)
{
    struct world *w = world_new(47, MS_NS, true);
    struct arena a = {0};
    if (leader_of(w, 2) == leader_of(w, 3)) {
        transfer(w, 3, leader_of(w, 2) == 1 ? 2 : 1);
    }
    node_id dead = leader_of(w, 2);
    struct txn_id id = new_txn(w, leader_of(w, 3));
    (void)post_prepare(w, leader_of(w, 3), id, 0, "x");
    sim_run_for(&w->sim, 20 * MS_NS);
    cr_assert_gt(left_over(w), 0);
    sim_crash(&w->sim, dead); /* and never comes back */
    sim_run_for(&w->sim, 2 * SEC_NS);
    cr_assert_eq(left_over(w), 0, "still in doubt: its coordinator's node is gone");
    struct range_response r = status(w, leader_of(w, 3), id, &a);
    cr_assert_eq(r.txn_state, TXN_STATE_ABORTED);
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c8_outcomes_find_the_participant_s_new_leader)
{
    struct world *w = world_new(48, MS_NS, true);
    struct arena a = {0};
    if (leader_of(w, 2) == leader_of(w, 3)) {
        transfer(w, 3, leader_of(w, 2) == 1 ? 2 : 1);
    }
    node_id dead = leader_of(w, 3);
    node_id gateway = leader_of(w, 2);
    struct txn_id id = new_txn(w, gateway);
    w->lost = 1u << MSG_OUTCOME;
    (void)post_prepare(w, gateway, id, 0, "x");
    struct range_response r = answer(w, post_coordinate(w, gateway, id, 0, "x", 0), &a);
    cr_assert_eq(r.status, SPAN_OK);
    sim_crash(&w->sim, dead);
    sim_run_for(&w->sim, SEC_NS);
    w->lost = 1u << MSG_TXN_QUERY; /* the outcome has to come by itself */
    sim_run_for(&w->sim, 3 * SEC_NS);
    r = read_at(w, gateway, 0, 3, 90, tt_ts_of(w->sim.now_ns), &a);
    check_value(r, "x");
    sim_run_for(&w->sim, 12 * SEC_NS);
    cr_assert_eq(left_over(w), 0);
    arena_deinit(&a);
    world_free(w);
}

/* A vote is logged with all locks of its transaction there. Where they do not fit, the commit is
 * not tried again for ever as if it had met a conflict: the gateway hears it from both sides. */
Test(store_rules, a_part_that_no_log_entry_holds_is_told_as_too_large)
{
    enum { SPANS = 230, KEY = 3900, REQUESTS = 4 };
    struct world *w = world_new(61, MS_NS, true);
    struct arena a = {0};
    struct txn_id id = new_txn(w, 3);
    uint64_t term = 0;
    for (unsigned n = 0; n < REQUESTS; n++) {
        struct read_span *spans = arena_alloc(&a, SPANS * sizeof *spans);
        for (unsigned i = 0; i < SPANS; i++) {
            uint8_t *key = arena_alloc(&a, KEY);
            struct key k;
            struct slice head = key_of(&k, 90);
            memset(key, 7, KEY);
            memcpy(key, head.data, head.size);
            key[head.size] = (uint8_t)n;
            key[head.size + 1] = (uint8_t)i;
            spans[i] = (struct read_span){.span = {.start = slice_of(key, KEY), .point = true}};
        }
        struct range_request q = {.op = OP_READ,
                                  .range = 3,
                                  .txn = id,
                                  .age = id,
                                  .term = term,
                                  .lock = READ_LOCK_SHARED,
                                  .span_count = SPANS,
                                  .spans = spans,
                                  .anchor = spans[0].span.start};
        struct range_response r = ask(w, 3, q, &a);
        cr_assert_eq(r.status, SPAN_OK, "%s", span_status_text((span_status)r.status));
        cr_assert_eq(r.resume_count, 0);
        term = r.term;
    }
    uint64_t c = post_coordinate(w, 3, id, 0, "x", 3 * SEC_NS);
    sim_run_for(&w->sim, 5 * MS_NS); /* a no that comes first is repeated by the gateway */
    uint64_t p = post_prepare(w, 3, id, term, "x");
    struct range_response r = answer(w, c, &a);
    cr_assert_eq(r.status, SPAN_TOO_LARGE, "%s", span_status_text((span_status)r.status));
    cr_assert_eq(answer(w, p, &a).status, SPAN_TOO_LARGE);
    r = status(w, 3, id, &a);
    cr_assert_eq(r.txn_state, TXN_STATE_ABORTED, "and there is a record of it");
    sim_run_for(&w->sim, 12 * SEC_NS);
    cr_assert_eq(left_over(w), 0);
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c8_a_leader_lost_between_prepare_and_decision_means_abort)
{
    struct world *w = world_new(49, MS_NS, true);
    struct arena a = {0};
    struct txn_id id = new_txn(w, 3);
    w->lost = 1u << MSG_VOTE;
    if (leader_of(w, 2) == leader_of(w, 3)) {
        transfer(w, 3, leader_of(w, 2) == 1 ? 2 : 1);
    }
    struct range_response l = lock(w, 3, 2, 10, id, true, &a);
    (void)post_prepare(w, 3, id, 0, "x");
    uint64_t c = post_coordinate(w, 3, id, l.term, "x", 3 * SEC_NS);
    sim_run_for(&w->sim, 20 * MS_NS);
    node_id other = 6 - leader_of(w, 2) - leader_of(w, 3);
    transfer(w, 2, other);
    w->lost = 0;
    struct range_response r = answer(w, c, &a);
    cr_assert_eq(r.status, SPAN_UNKNOWN_OUTCOME);
    r = answer(w, post_coordinate(w, 3, id, l.term, "x", 0), &a); /* the gateway asks again */
    cr_assert_eq(r.status, SPAN_ABORTED);
    sim_run_for(&w->sim, 12 * SEC_NS);
    cr_assert_eq(left_over(w), 0);
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c8_locks_of_a_gateway_that_says_nothing_go)
{
    struct world *w = world_new(50, MS_NS, true);
    struct arena a = {0};
    cr_assert_eq(lock(w, 1, 2, 10, new_txn(w, 1), true, &a).status, SPAN_OK);
    cr_assert_gt(left_over(w), 0);
    sim_run_for(&w->sim, 2 * GATEWAY_LOST_NS);
    cr_assert_eq(left_over(w), 0);
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c10_locks_of_a_prepared_reader_hold_under_the_next_leader)
{
    struct world *w = world_new(51, MS_NS, true);
    struct arena a = {0};
    struct txn_id id = new_txn(w, 1);
    struct range_response l = lock(w, 1, 3, 70, id, false, &a); /* read only */
    w->lost = 1u << MSG_VOTE | 1u << MSG_TXN_QUERY;
    if (leader_of(w, 2) == leader_of(w, 3)) {
        transfer(w, 2, leader_of(w, 3) == 1 ? 2 : 1);
    }
    (void)post_prepare(w, 1, id, l.term, "x");
    sim_run_for(&w->sim, 20 * MS_NS);
    transfer(w, 3, 6 - leader_of(w, 2) - leader_of(w, 3));
    sim_run_for(&w->sim, 20 * MS_NS);
    struct key kb;
    struct txn_write wr = {.key = key_of(&kb, 70), .value = slice_str("late")};
    struct txn_id other = new_txn(w, 2);
    struct range_request q = {.op = OP_COMMIT1,
                              .range = 3,
                              .txn = other,
                              .age = other,
                              .write_count = 1,
                              .writes = &wr,
                              .anchor = wr.key};
    cr_assert_eq(ask(w, 2, q, &a).status, SPAN_CONFLICT, "a younger writer meets the S lock");
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c11_a_record_that_was_proposed_is_unknown_when_its_leader_goes)
{
    struct world *w = world_new(52, MS_NS, false);
    struct arena a = {0};
    node_id was = leader_of(w, 2);
    struct key kb;
    struct txn_write wr = {.key = key_of(&kb, 5), .value = slice_str("v")};
    struct txn_id id = new_txn(w, was);
    struct range_request q = {.op = OP_COMMIT1,
                              .range = 2,
                              .txn = id,
                              .age = id,
                              .budget_ns = 5 * SEC_NS,
                              .write_count = 1,
                              .writes = &wr,
                              .anchor = wr.key};
    for (node_id i = 1; i <= 3; i++) {
        w->sim.cut[was][i] = true; /* nothing it says is heard */
    }
    uint64_t c = post(w, was, was, q);
    struct range_response r = answer(w, c, &a);
    cr_assert_eq(r.status, SPAN_UNKNOWN_OUTCOME);
    memset(w->sim.cut, 0, sizeof w->sim.cut);
    sim_run_for(&w->sim, SEC_NS);
    cr_assert(sim_run_until(&w->sim, leads_2, w, 5 * SEC_NS));
    /* idempotent: whoever leads now knows it, or takes it for the first time */
    r = ask(w, was, q, &a);
    cr_assert_eq(r.status, SPAN_OK);
    uint64_t s = r.ts.ns;
    r = ask(w, was, q, &a);
    cr_assert_eq(r.ts.ns, s);
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, c12_a_read_that_comes_after_the_rollback_locks_nothing)
{
    struct world *w = world_new(53, MS_NS, false);
    struct arena a = {0};
    struct txn_id id = new_txn(w, 1);
    struct key kb;
    struct range_request q = {
        .op = OP_RELEASE, .range = 2, .txn = id, .age = id, .anchor = key_of(&kb, 5)};
    cr_assert_eq(ask(w, 1, q, &a).status, SPAN_OK);
    cr_assert_eq(lock(w, 1, 2, 5, id, true, &a).status, SPAN_ABORTED);
    cr_assert_eq(left_over(w), 0);
    cr_assert_eq(ask(w, 1, q, &a).status, SPAN_OK, "harmless twice");
    arena_deinit(&a);
    world_free(w);
}

Test(store_rules, a_lock_wait_past_the_deadline_ends_and_others_go_on)
{
    struct world *w = world_new(54, MS_NS, false);
    struct arena a = {0};
    struct txn_id first = new_txn(w, 1);
    sim_run_for(&w->sim, MS_NS);
    struct txn_id second = new_txn(w, 1);
    cr_assert_eq(lock(w, 1, 2, 5, first, true, &a).status, SPAN_OK);
    struct key kb[2];
    struct read_span s[2];
    struct range_request q1 = lock_request(&kb[0], &s[0], 2, 5, second, false);
    q1.budget_ns = 100 * MS_NS;
    struct range_request q2 = lock_request(&kb[1], &s[1], 2, 5, second, true);
    q2.budget_ns = 4 * SEC_NS;
    uint64_t short_one = post(w, 1, leader_of(w, 2), q1);
    uint64_t long_one = post(w, 1, leader_of(w, 2), q2);
    cr_assert_eq(answer(w, short_one, &a).status, SPAN_DEADLINE);
    cr_assert(!answered(w, long_one));
    struct range_request rel = {
        .op = OP_RELEASE, .range = 2, .txn = first, .age = first, .anchor = s[0].span.start};
    cr_assert_eq(ask(w, 1, rel, &a).status, SPAN_OK);
    uint64_t began = w->sim.now_ns;
    cr_assert_eq(answer(w, long_one, &a).status, SPAN_OK);
    cr_assert_lt(w->sim.now_ns - began, 50 * MS_NS);
    arena_deinit(&a);
    world_free(w);
}

/* Rule G5: past the limit locks merge, none is dropped. */
Test(store_rules, g5_a_transaction_with_very_many_locks_ends_up_with_one_on_all)
{
    enum { BATCH = 26000 };

    struct world *w = world_new(56, MS_NS, false);
    struct arena a = {0};
    struct txn_id big = new_txn(w, 1);
    sim_run_for(&w->sim, MS_NS);
    struct txn_id late = new_txn(w, 2);
    struct read_span *s = span_calloc(BATCH, sizeof *s);
    uint8_t(*keys)[12] = span_calloc(BATCH, sizeof *keys);
    for (uint32_t batch = 0; batch < 4; batch++) {
        for (uint32_t i = 0; i < BATCH; i++) {
            uint32_t n = batch * BATCH + i;
            memcpy(keys[i], prefix, 7);
            keys[i][7] = 7;
            memcpy(&keys[i][8], &n, 4);
            s[i] = (struct read_span){.span = {.start = slice_of(keys[i], 12), .point = true}};
        }
        struct range_request q = {.op = OP_READ,
                                  .range = 2,
                                  .txn = big,
                                  .age = big,
                                  .budget_ns = 20 * SEC_NS,
                                  .lock = READ_LOCK_SHARED,
                                  .span_count = BATCH,
                                  .spans = s};
        cr_assert_eq(ask(w, 1, q, &a).status, SPAN_OK);
        arena_clear(&a);
    }
    struct key kb;
    struct read_span one;
    struct range_request q = lock_request(&kb, &one, 2, 200, late, true);
    uint64_t id = post(w, 2, leader_of(w, 2), q);
    sim_run_for(&w->sim, 50 * MS_NS);
    cr_assert(!answered(w, id), "a key that big never named is locked, too");
    cr_assert_leq(left_over(w), (LIMIT_TXN_LOCKS + 4) * 10);
    struct range_request rel = {
        .op = OP_RELEASE, .range = 2, .txn = big, .age = big, .anchor = one.span.start};
    cr_assert_eq(ask(w, 1, rel, &a).status, SPAN_OK);
    cr_assert_eq(answer(w, id, &a).status, SPAN_OK);
    span_free(s);
    span_free(keys);
    arena_deinit(&a);
    world_free(w);
}

/* ---- B: leadership ---- */

Test(store_rules, b5_draining_hands_over_what_is_led_and_what_comes_later)
{
    struct world *w = world_new(61, MS_NS, true);
    node_id x = leader_of(w, 2);
    struct tt_now now = sim_clock(&w->sim.nodes[x]);
    store_drain(w->sim.nodes[x].store, &now);
    sim_turn_end(&w->sim.nodes[x], &now);
    sim_run_for(&w->sim, 500 * MS_NS);
    cr_assert_eq(store_leader_count(w->sim.nodes[x].store), 0);
    cr_assert(leads_3(w));
    world_free(w);
}
