/* Leader leases on TrueTime, rule by rule (PROTOCOL A1, A7, B1 to B9): one core, time by hand. That
 * leases stay disjoint whatever happens is raft_sim_test.c's. */
#include "base/alloc.h"
#include "shard/raft/raft.h"

#include <criterion/criterion.h>

#define T0    (1000 * SEC_NS)
#define EPS   MS_NS
#define LEASE (250 * MS_NS)

struct fix {
    struct raft *r;
    struct raft_update up;
    struct tt_now now;
};

static struct tt_ts at(uint64_t ns)
{
    return tt_ts_of(T0 + ns);
}

static void set_time(struct fix *f, uint64_t ns)
{
    f->now.tt.earliest = tt_ts_of(T0 + ns - EPS);
    f->now.tt.latest = tt_ts_of(T0 + ns + EPS);
    f->now.mono_ns = ns;
}

static struct tt_ts guard(uint8_t type, struct slice payload)
{
    struct cursor c = cursor_of(payload);
    return type == 2 ? tt_ts_of(dec_u64(&c)) : tt_ts_of(0);
}

static void fix_init_with(struct fix *f, uint32_t self, size_t nodes, bool fresh,
                          struct raft_hard_state hs, struct tt_ts promised)
{
    memset(f, 0, sizeof(*f));
    set_time(f, 0);
    raft_update_init(&f->up);
    struct raft_config c;
    memset(&c, 0, sizeof(c));
    c.self = self;
    c.fresh = fresh;
    c.seed = 5;
    c.hard_state = hs;
    c.promised = promised;
    c.entry_guard = guard;
    for (uint32_t i = 1; i <= nodes; i++) {
        cr_assert_eq(raft_conf_set(&c.conf, i, true), SPAN_OK);
    }
    struct span_error err;
    cr_assert_eq(raft_new(&c, &f->r, &err), SPAN_OK);
}

static void fix_init(struct fix *f, uint32_t self)
{
    fix_init_with(f, self, 3, true, (struct raft_hard_state){0, 0}, tt_ts_of(0));
}

static void fix_deinit(struct fix *f)
{
    raft_free(f->r);
    raft_update_deinit(&f->up);
}

static span_status step(struct fix *f, struct raft_event *ev)
{
    ev->now = f->now;
    return raft_step(f->r, ev, &f->up);
}

static span_status step_msg(struct fix *f, uint32_t from, const struct raft_msg *m)
{
    struct raft_event ev = {.type = RAFT_EV_MESSAGE, .from = from};
    ev.u.msg = m;
    return step(f, &ev);
}

static void tick(struct fix *f, uint64_t ns)
{
    set_time(f, ns);
    struct raft_event ev = {.type = RAFT_EV_TICK};
    cr_assert_eq(step(f, &ev), SPAN_OK);
}

static void persist_all(struct fix *f)
{
    if (f->up.persist_seq != 0) {
        struct raft_event ev = {.type = RAFT_EV_PERSISTED};
        ev.u.persist_seq = f->up.persist_seq;
        cr_assert_eq(step(f, &ev), SPAN_OK);
    }
}

static const struct raft_msg *find_sent(const struct fix *f, enum raft_msg_type type, uint32_t to)
{
    for (size_t i = 0; i < f->up.msg_count; i++) {
        if (f->up.msgs[i].type == type && f->up.msgs[i].to == to) {
            return &f->up.msgs[i];
        }
    }
    return NULL;
}

/* The message, which must be there. */
static const struct raft_msg *sent(const struct fix *f, enum raft_msg_type type, uint32_t to)
{
    static const struct raft_msg none;
    const struct raft_msg *m = find_sent(f, type, to);
    cr_assert_not_null(m);
    return m == NULL ? &none : m;
}

/* A heartbeat of a leader; the answer. */
static struct raft_heartbeat_ack beat(struct fix *f, uint32_t from, raft_term term, struct tt_ts e)
{
    struct raft_event ev = {.type = RAFT_EV_HEARTBEAT, .from = from};
    ev.u.heartbeat.term = term;
    ev.u.heartbeat.lease_end = e;
    cr_assert_eq(step(f, &ev), SPAN_OK);
    cr_assert(f->up.has_heartbeat_ack);
    return f->up.heartbeat_ack;
}

/* Asks for a vote; the answer, once durable. */
static struct raft_vote_ack ask(struct fix *f, uint32_t from, raft_term term, bool pre,
                                struct tt_ts release)
{
    struct raft_msg m = {.type = RAFT_MSG_VOTE, .term = term};
    m.u.vote.pre = pre;
    m.u.vote.last_index = 100;
    m.u.vote.last_term = term - 1;
    m.u.vote.has_release = !tt_is_none(release);
    m.u.vote.release = release;
    cr_assert_eq(step_msg(f, from, &m), SPAN_OK);
    const struct raft_msg *a = find_sent(f, RAFT_MSG_VOTE_ACK, from);
    if (a == NULL) {
        persist_all(f);
        a = sent(f, RAFT_MSG_VOTE_ACK, from);
    }
    cr_assert_not_null(a);
    return a->u.vote_ack;
}

static void vote_ack(struct fix *f, uint32_t from, raft_term term, bool pre, struct tt_ts promised)
{
    struct raft_msg m = {.type = RAFT_MSG_VOTE_ACK, .term = pre ? term - 1 : term};
    m.u.vote_ack.pre = pre;
    m.u.vote_ack.granted = true;
    m.u.vote_ack.vote_term = term;
    m.u.vote_ack.promised = promised;
    cr_assert_eq(step_msg(f, from, &m), SPAN_OK);
}

static void ack(struct fix *f, uint32_t from, raft_index match, struct tt_ts promised)
{
    struct raft_msg m = {.type = RAFT_MSG_APPEND_ACK, .term = raft_current_term(f->r)};
    m.u.append_ack.match = match;
    m.u.append_ack.accepted = match;
    m.u.append_ack.promised = promised;
    cr_assert_eq(step_msg(f, from, &m), SPAN_OK);
}

static span_status propose(struct fix *f, uint8_t type, struct slice payload, struct tt_ts floor)
{
    struct raft_proposal p = {.type = type, .payload = payload};
    struct raft_event ev = {.type = RAFT_EV_PROPOSE};
    ev.u.propose.items = &p;
    ev.u.propose.count = 1;
    ev.u.propose.floor = floor;
    return step(f, &ev);
}

/* Node 1 wins with node 2's vote and proposes its first entry. */
static void lead(struct fix *f, uint64_t ns)
{
    tick(f, ns);
    raft_term term = raft_current_term(f->r) + 1;
    vote_ack(f, 2, term, true, tt_ts_of(0));
    persist_all(f);
    vote_ack(f, 2, term, false, tt_ts_of(0));
    cr_assert(f->up.became_leader);
    cr_assert_eq(propose(f, 1, slice_str("x"), tt_ts_of(0)), SPAN_OK);
    persist_all(f);
}

/* ---- promising (B1, B2, B3, A7) ---- */

Test(raft_lease, a_promiser_votes_for_nobody_and_adopts_no_term_until_it_ends)
{
    struct fix f;
    fix_init(&f, 2);
    struct tt_ts e = at(250 * MS_NS);
    cr_assert_eq(beat(&f, 1, 1, e).promised.ns, e.ns);
    persist_all(&f);
    set_time(&f, 250 * MS_NS); /* e is inside the interval: not certainly past */
    struct raft_vote_ack a = ask(&f, 3, 2, true, tt_ts_of(0));
    cr_assert_not(a.granted);
    cr_assert_eq(a.wait_ns, EPS + 1);
    a = ask(&f, 3, 2, false, tt_ts_of(0));
    cr_assert_not(a.granted);
    cr_assert_eq(raft_current_term(f.r), 1);
    set_time(&f, 251 * MS_NS + 1);
    cr_assert(ask(&f, 3, 2, true, tt_ts_of(0)).granted);
    a = ask(&f, 3, 2, false, tt_ts_of(0));
    cr_assert(a.granted);
    cr_assert_eq(a.promised.ns, e.ns); /* rule A1 */
    fix_deinit(&f);
}

Test(raft_lease, a_promiser_stands_when_it_ends_plus_its_rank)
{
    struct fix f;
    fix_init(&f, 3); /* after leader 1 comes 2, then 3: rank 1 */
    (void)beat(&f, 1, 1, at(250 * MS_NS));
    persist_all(&f);
    cr_assert_eq(f.up.deadline_mono_ns, 250 * MS_NS + EPS + STAND_SPREAD_NS + 1);
    tick(&f, 250 * MS_NS + EPS + STAND_SPREAD_NS);
    cr_assert_eq(raft_role(f.r), RAFT_FOLLOWER);
    tick(&f, 250 * MS_NS + EPS + STAND_SPREAD_NS + 1);
    cr_assert_eq(raft_role(f.r), RAFT_PRE_CANDIDATE);
    fix_deinit(&f);
}

Test(raft_lease, a_refused_pre_vote_is_repeated_when_the_promise_in_the_way_ends)
{
    struct fix f;
    fix_init(&f, 1);
    tick(&f, 0);
    struct raft_msg m = {.type = RAFT_MSG_VOTE_ACK, .term = 0};
    m.u.vote_ack.pre = true;
    m.u.vote_ack.vote_term = 1;
    m.u.vote_ack.wait_ns = 3 * MS_NS;
    cr_assert_eq(step_msg(&f, 2, &m), SPAN_OK);
    cr_assert_eq(f.up.deadline_mono_ns, 3 * MS_NS);
    tick(&f, 3 * MS_NS);
    cr_assert_not_null(find_sent(&f, RAFT_MSG_VOTE, 2));
    fix_deinit(&f);
}

/* The scenario of B1: B has voted for C in term 6 when A, which was stopped, asks it to renew. */
Test(raft_lease, a_promise_is_never_renewed_for_an_older_term)
{
    struct fix f;
    fix_init(&f, 2);
    (void)beat(&f, 1, 5, at(100 * MS_NS));
    persist_all(&f);
    set_time(&f, 200 * MS_NS);
    cr_assert(ask(&f, 3, 6, false, tt_ts_of(0)).granted);
    struct raft_heartbeat_ack a = beat(&f, 1, 5, at(400 * MS_NS));
    cr_assert(tt_is_none(a.promised));
    cr_assert_eq(a.term, 6);
    cr_assert_eq(raft_promised(f.r).ns, at(100 * MS_NS).ns);
    fix_deinit(&f);
}

Test(raft_lease, an_end_beyond_the_longest_lease_is_not_promised)
{
    struct fix f;
    fix_init(&f, 2);
    struct tt_ts far = tt_ts_of(f.now.tt.latest.ns + LEASE_NS_MAX + 1);
    cr_assert(tt_is_none(beat(&f, 1, 1, far).promised));
    far = tt_ts_of(far.ns - 1);
    cr_assert_eq(beat(&f, 1, 1, far).promised.ns, far.ns);
    fix_deinit(&f);
}

Test(raft_lease, a_late_or_doubled_request_only_confirms)
{
    struct fix f;
    fix_init(&f, 2);
    cr_assert_eq(beat(&f, 1, 1, at(200 * MS_NS)).promised.ns, at(200 * MS_NS).ns);
    cr_assert_eq(beat(&f, 1, 1, at(100 * MS_NS)).promised.ns, at(200 * MS_NS).ns);
    fix_deinit(&f);
}

Test(raft_lease, a_restarted_replica_waits_for_the_longest_lease_from_its_first_good_reading)
{
    struct fix f;
    fix_init_with(&f, 2, 3, false, (struct raft_hard_state){4, 0}, tt_ts_of(0));
    f.now.state = CLOCK_FENCED;
    tick(&f, 10 * SEC_NS); /* a wait on a clock that is out does not count */
    cr_assert_eq(raft_role(f.r), RAFT_FOLLOWER);
    f.now.state = CLOCK_SYNCED;
    tick(&f, 11 * SEC_NS);
    cr_assert_not(ask(&f, 3, 5, true, tt_ts_of(0)).granted);
    set_time(&f, 11 * SEC_NS + LEASE_NS_MAX + EPS);
    cr_assert_not(ask(&f, 3, 5, false, tt_ts_of(0)).granted);
    /* Not even by a release: it may have promised to another. */
    cr_assert_not(ask(&f, 3, 5, false, at(SEC_NS)).granted);
    cr_assert_eq(raft_current_term(f.r), 4);
    tick(&f, 11 * SEC_NS + LEASE_NS_MAX + 2 * EPS + 1);
    struct raft_vote_ack a = ask(&f, 3, 5, false, tt_ts_of(0));
    cr_assert(a.granted);
    cr_assert_eq(a.promised.ns, at(11 * SEC_NS + LEASE_NS_MAX + EPS).ns);
    fix_deinit(&f);
}

Test(raft_lease, a_restarted_replica_still_appends_and_promises)
{
    struct fix f;
    fix_init_with(&f, 2, 3, false, (struct raft_hard_state){4, 0}, tt_ts_of(0));
    cr_assert_eq(beat(&f, 1, 4, at(200 * MS_NS)).promised.ns, at(200 * MS_NS).ns);
    fix_deinit(&f);
}

/* ---- the leader's side (B2, B7) ---- */

Test(raft_lease, the_lease_ends_where_a_majority_promised)
{
    struct fix f;
    fix_init(&f, 1);
    lead(&f, 0);
    cr_assert(tt_is_none(raft_lease_end(f.r))); /* votes promise nothing in time */
    raft_flush(f.r, &f.now, &f.up);
    struct tt_ts e = sent(&f, RAFT_MSG_APPEND, 2)->u.append.lease_end;
    cr_assert_eq(e.ns, f.now.tt.earliest.ns + LEASE); /* from earliest */
    ack(&f, 2, 1, e);
    cr_assert_eq(raft_lease_end(f.r).ns, e.ns);
    cr_assert(raft_has_lease(f.r, &f.now));
    cr_assert_not(raft_is_ready(f.r, &f.now)); /* rule B6: its entry is not applied yet */
    struct raft_event ev = {.type = RAFT_EV_APPLIED};
    ev.u.index = 1;
    cr_assert_eq(step(&f, &ev), SPAN_OK);
    cr_assert(raft_is_ready(f.r, &f.now));
    f.now.tt.latest = e; /* might have come */
    cr_assert_not(raft_has_lease(f.r, &f.now));
    fix_deinit(&f);
}

Test(raft_lease, heartbeats_ask_like_appends)
{
    struct fix f;
    fix_init(&f, 1);
    lead(&f, 0);
    set_time(&f, 50 * MS_NS);
    struct raft_heartbeat hb;
    struct tt_ts e = tt_add(f.now.tt.earliest, LEASE);
    cr_assert(raft_heartbeat_for(f.r, 3, e, &f.now, &hb));
    cr_assert_eq(hb.lease_end.ns, e.ns);
    cr_assert(raft_heartbeat_for(f.r, 3, tt_add(e, SEC_NS), &f.now, &hb));
    cr_assert_eq(hb.lease_end.ns, e.ns); /* never more than its own length */
    struct raft_event ev = {.type = RAFT_EV_HEARTBEAT_ACK, .from = 3};
    ev.u.heartbeat_ack.term = 1;
    ev.u.heartbeat_ack.promised = e;
    cr_assert_eq(step(&f, &ev), SPAN_OK);
    cr_assert_eq(raft_lease_end(f.r).ns, e.ns);
    fix_deinit(&f);
}

Test(raft_lease, answers_of_an_older_term_give_no_lease)
{
    struct fix f;
    fix_init_with(&f, 1, 3, true, (struct raft_hard_state){4, 0}, tt_ts_of(0));
    lead(&f, 0);
    struct raft_msg m = {.type = RAFT_MSG_APPEND_ACK, .term = 4};
    m.u.append_ack.promised = at(200 * MS_NS);
    cr_assert_eq(step_msg(&f, 2, &m), SPAN_OK);
    cr_assert(tt_is_none(raft_lease_end(f.r)));
    fix_deinit(&f);
}

Test(raft_lease, a_leader_alone_renews_by_itself)
{
    struct fix f;
    fix_init_with(&f, 1, 1, true, (struct raft_hard_state){0, 0}, tt_ts_of(0));
    tick(&f, 0);
    persist_all(&f);
    cr_assert(f.up.became_leader);
    cr_assert_eq(propose(&f, 1, slice_str("x"), tt_ts_of(0)), SPAN_OK);
    persist_all(&f);
    cr_assert_leq(f.up.deadline_mono_ns, LEASE_RENEW_NS);
    tick(&f, 10 * SEC_NS);
    cr_assert(raft_has_lease(f.r, &f.now));
    fix_deinit(&f);
}

Test(raft_lease, a_leader_that_hears_no_quorum_for_one_lease_steps_down)
{
    struct fix f;
    fix_init(&f, 1);
    lead(&f, 0);
    set_time(&f, 100 * MS_NS);
    ack(&f, 2, 1, at(300 * MS_NS));
    cr_assert_eq(f.up.deadline_mono_ns, 100 * MS_NS + LEASE);
    tick(&f, 100 * MS_NS + LEASE - 1);
    cr_assert_not(f.up.stepped_down);
    tick(&f, 100 * MS_NS + LEASE);
    cr_assert(f.up.stepped_down);
    cr_assert_eq(f.up.down_reason, RAFT_DOWN_NO_QUORUM);
    struct raft_heartbeat hb;
    cr_assert_not(raft_heartbeat_for(f.r, 2, at(SEC_NS), &f.now, &hb));
    fix_deinit(&f);
}

Test(raft_lease, a_leader_that_stepped_down_keeps_its_own_promise)
{
    struct fix f;
    fix_init(&f, 1);
    lead(&f, 0);
    ack(&f, 2, 1, at(240 * MS_NS));
    struct raft_msg m = {.type = RAFT_MSG_APPEND_ACK, .term = 2};
    m.u.append_ack.refusal = RAFT_ACK_TERM;
    cr_assert_eq(step_msg(&f, 3, &m), SPAN_OK);
    cr_assert(f.up.stepped_down);
    persist_all(&f);
    cr_assert_not(ask(&f, 3, 3, false, tt_ts_of(0)).granted);
    cr_assert_eq(raft_current_term(f.r), 2);
    tick(&f, 200 * MS_NS);
    cr_assert_eq(raft_role(f.r), RAFT_FOLLOWER);
    set_time(&f, 242 * MS_NS);
    struct raft_vote_ack a = ask(&f, 3, 3, false, tt_ts_of(0));
    cr_assert(a.granted);
    cr_assert_eq(a.promised.ns, at(240 * MS_NS).ns);
    fix_deinit(&f);
}

Test(raft_lease, a_leader_with_a_lease_ignores_vote_requests)
{
    struct fix f;
    fix_init(&f, 1);
    lead(&f, 0);
    ack(&f, 2, 1, at(240 * MS_NS));
    cr_assert_not(ask(&f, 3, 9, false, tt_ts_of(0)).granted);
    /* Nor does it believe a release it never gave. */
    cr_assert_not(ask(&f, 3, 2, false, at(MS_NS)).granted);
    cr_assert_eq(raft_role(f.r), RAFT_LEADER);
    cr_assert_eq(raft_current_term(f.r), 1);
    fix_deinit(&f);
}

Test(raft_lease, the_floor_covers_every_promise_of_those_who_voted)
{
    struct fix f;
    fix_init(&f, 1);
    (void)beat(&f, 3, 1, at(100 * MS_NS));
    persist_all(&f);
    tick(&f, SEC_NS);
    vote_ack(&f, 2, 2, true, tt_ts_of(0));
    persist_all(&f);
    vote_ack(&f, 2, 2, false, at(5 * SEC_NS)); /* a clock far out: floors need no clocks (B8) */
    cr_assert(f.up.became_leader);
    cr_assert_eq(f.up.vote_floor.ns, at(5 * SEC_NS).ns);
    fix_deinit(&f);
    fix_init(&f, 1);
    (void)beat(&f, 3, 1, at(100 * MS_NS));
    persist_all(&f);
    tick(&f, SEC_NS);
    vote_ack(&f, 2, 2, true, tt_ts_of(0));
    persist_all(&f);
    vote_ack(&f, 2, 2, false, tt_ts_of(0));
    cr_assert_eq(f.up.vote_floor.ns, at(100 * MS_NS).ns); /* its own */
    fix_deinit(&f);
}

/* ---- membership (B4) ---- */

Test(raft_lease, a_change_waits_until_the_floor_stays_below_the_new_lease_end)
{
    struct fix f;
    fix_init(&f, 1);
    lead(&f, 0);
    ack(&f, 2, 1, at(240 * MS_NS)); /* {1, 2} of three; 3 never promised */
    cr_assert_eq(raft_commit(f.r), 1);
    struct raft_conf c = *raft_conf(f.r, NULL);
    cr_assert_eq(raft_conf_set(&c, 4, true), SPAN_OK);
    struct buf b;
    buf_init(&b);
    raft_conf_encode(&b, &c);
    cr_assert_eq(propose(&f, RAFT_ENTRY_CONF, buf_slice(&b), at(0)), SPAN_WOULD_WAIT);
    ack(&f, 3, 1, at(200 * MS_NS)); /* three of four promise until 200 */
    cr_assert_eq(raft_lease_end(f.r).ns, at(240 * MS_NS).ns);
    cr_assert_eq(propose(&f, RAFT_ENTRY_CONF, buf_slice(&b), at(200 * MS_NS)), SPAN_WOULD_WAIT);
    cr_assert_eq(propose(&f, RAFT_ENTRY_CONF, buf_slice(&b), at(199 * MS_NS)), SPAN_OK);
    cr_assert_eq(raft_lease_end(f.r).ns, at(200 * MS_NS).ns);
    buf_deinit(&b);
    fix_deinit(&f);
}

/* The erratum to single-step changes: a leader that has not committed an entry of its own term may
 * not know of a change that its predecessor has committed. Nor may two be under way. */
Test(raft_lease, a_change_waits_for_a_committed_entry_of_the_own_term_and_for_the_one_before)
{
    struct fix f;
    fix_init(&f, 1);
    lead(&f, 0);
    struct raft_conf c = *raft_conf(f.r, NULL);
    cr_assert_eq(raft_conf_set(&c, 4, false), SPAN_OK);
    struct buf b;
    buf_init(&b);
    raft_conf_encode(&b, &c);
    cr_assert_eq(raft_commit(f.r), 0);
    cr_assert_eq(propose(&f, RAFT_ENTRY_CONF, buf_slice(&b), at(0)), SPAN_WOULD_WAIT);
    ack(&f, 2, 1, at(240 * MS_NS));
    cr_assert_eq(raft_commit(f.r), 1);
    cr_assert_eq(propose(&f, RAFT_ENTRY_CONF, buf_slice(&b), at(0)), SPAN_OK);
    cr_assert_eq(raft_conf_set(&c, 5, false), SPAN_OK);
    buf_clear(&b);
    raft_conf_encode(&b, &c);
    cr_assert_eq(propose(&f, RAFT_ENTRY_CONF, buf_slice(&b), at(0)), SPAN_WOULD_WAIT);
    buf_deinit(&b);
    fix_deinit(&f);
}

/* ---- release and transfer (B5) ---- */

static span_status transfer(struct fix *f, uint32_t target, struct tt_ts release)
{
    struct raft_event ev = {.type = RAFT_EV_TRANSFER};
    ev.u.transfer.target = target;
    ev.u.transfer.release = release;
    return step(f, &ev);
}

Test(raft_lease, a_released_leader_never_serves_again_in_its_term)
{
    struct fix f;
    fix_init(&f, 1);
    lead(&f, 0);
    ack(&f, 2, 1, at(240 * MS_NS));
    cr_assert(raft_has_lease(f.r, &f.now));
    cr_assert_eq(transfer(&f, 1, at(1)), SPAN_INVALID);
    cr_assert_eq(transfer(&f, 9, at(1)), SPAN_INVALID);
    cr_assert_eq(transfer(&f, 2, at(10 * MS_NS)), SPAN_OK);
    cr_assert(raft_has_released(f.r));
    cr_assert_not(raft_has_lease(f.r, &f.now));
    cr_assert_eq(propose(&f, 1, slice_str("y"), at(0)), SPAN_NOT_LEADER);
    raft_flush(f.r, &f.now, &f.up);
    const struct raft_msg *m = sent(&f, RAFT_MSG_TIMEOUT_NOW, 2);
    cr_assert_eq(m->u.timeout_now.release.ns, at(10 * MS_NS).ns);
    struct raft_heartbeat hb;
    cr_assert(raft_heartbeat_for(f.r, 3, at(250 * MS_NS), &f.now, &hb));
    cr_assert(tt_is_none(hb.lease_end));
    ack(&f, 3, 1, at(249 * MS_NS)); /* late promises do not bring it back */
    cr_assert_not(raft_has_lease(f.r, &f.now));
    /* The target did not take over: elect in the usual way. */
    set_time(&f, 100 * MS_NS);
    ack(&f, 2, 1, tt_ts_of(0));
    tick(&f, LEASE);
    cr_assert_eq(f.up.down_reason, RAFT_DOWN_TRANSFER_FAILED);
    fix_deinit(&f);
}

Test(raft_lease, the_target_is_told_only_when_it_has_everything)
{
    struct fix f;
    fix_init(&f, 1);
    lead(&f, MS_NS);
    cr_assert_eq(transfer(&f, 3, at(1)), SPAN_OK);
    raft_flush(f.r, &f.now, &f.up);
    cr_assert_null(find_sent(&f, RAFT_MSG_TIMEOUT_NOW, 3));
    cr_assert_not_null(find_sent(&f, RAFT_MSG_APPEND, 3));
    ack(&f, 3, 1, tt_ts_of(0));
    raft_flush(f.r, &f.now, &f.up);
    cr_assert_not_null(find_sent(&f, RAFT_MSG_TIMEOUT_NOW, 3));
    raft_flush(f.r, &f.now, &f.up);
    cr_assert_null(find_sent(&f, RAFT_MSG_TIMEOUT_NOW, 3));
    set_time(&f, 25 * MS_NS);
    raft_flush(f.r, &f.now, &f.up);
    cr_assert_not_null(find_sent(&f, RAFT_MSG_TIMEOUT_NOW, 3)); /* it may have been lost */
    fix_deinit(&f);
}

Test(raft_lease, the_target_stands_at_once_with_the_release_as_its_floor)
{
    struct fix f;
    fix_init(&f, 1);
    (void)beat(&f, 3, 4, at(250 * MS_NS));
    persist_all(&f);
    struct raft_msg m = {.type = RAFT_MSG_TIMEOUT_NOW, .term = 4};
    m.u.timeout_now.release = at(20 * MS_NS);
    set_time(&f, 10 * MS_NS);
    cr_assert_eq(step_msg(&f, 3, &m), SPAN_OK);
    cr_assert_eq(raft_role(f.r), RAFT_CANDIDATE);
    persist_all(&f);
    const struct raft_msg *v = sent(&f, RAFT_MSG_VOTE, 2);
    cr_assert_not(v->u.vote.pre);
    cr_assert_eq(v->term, 5);
    cr_assert(v->u.vote.has_release);
    cr_assert_eq(v->u.vote.release.ns, at(20 * MS_NS).ns);
    vote_ack(&f, 2, 5, false, at(20 * MS_NS));
    cr_assert(f.up.became_leader);
    cr_assert_eq(f.up.vote_floor.ns, at(20 * MS_NS).ns); /* not the promise it voided */
    fix_deinit(&f);
}

Test(raft_lease, a_late_timeout_now_does_nothing)
{
    struct fix f;
    fix_init(&f, 1);
    (void)beat(&f, 2, 5, at(250 * MS_NS));
    persist_all(&f);
    struct raft_msg m = {.type = RAFT_MSG_TIMEOUT_NOW, .term = 4};
    m.u.timeout_now.release = at(1);
    cr_assert_eq(step_msg(&f, 3, &m), SPAN_OK);
    cr_assert_eq(raft_role(f.r), RAFT_FOLLOWER);
    fix_deinit(&f);
}

Test(raft_lease, a_release_voids_the_promise_to_its_term_in_the_next_term_only)
{
    struct fix f;
    fix_init(&f, 2);
    (void)beat(&f, 1, 4, at(250 * MS_NS));
    persist_all(&f);
    set_time(&f, 10 * MS_NS);
    cr_assert_not(ask(&f, 3, 6, false, at(5 * MS_NS)).granted); /* released term 5, promised 4 */
    cr_assert_not(ask(&f, 3, 5, false, tt_ts_of(0)).granted);   /* no release */
    cr_assert_eq(raft_current_term(f.r), 4);
    struct raft_vote_ack a = ask(&f, 3, 5, false, at(15 * MS_NS));
    cr_assert(a.granted);
    cr_assert_eq(a.promised.ns, at(15 * MS_NS).ns);
    fix_deinit(&f);
}

Test(raft_lease, the_released_leader_votes_for_its_target)
{
    struct fix f;
    fix_init(&f, 1);
    lead(&f, 0);
    ack(&f, 2, 1, at(240 * MS_NS));
    cr_assert_eq(transfer(&f, 2, at(10 * MS_NS)), SPAN_OK);
    cr_assert(ask(&f, 2, 2, false, at(10 * MS_NS)).granted);
    cr_assert_eq(raft_role(f.r), RAFT_FOLLOWER);
    fix_deinit(&f);
}

Test(raft_lease, the_left_leader_leads_the_right_side_of_a_split_at_once)
{
    struct raft_hard_state birth = {1, 0};
    struct fix l;
    struct fix f;
    fix_init_with(&l, 1, 3, true, birth, at(240 * MS_NS));
    fix_init_with(&f, 2, 3, true, birth, at(245 * MS_NS));
    struct raft_event ev = {.type = RAFT_EV_CAMPAIGN};
    cr_assert_eq(step(&l, &ev), SPAN_UNAVAILABLE); /* the inherited promise */
    ev.u.campaign.release = at(3 * MS_NS);
    cr_assert_eq(step(&l, &ev), SPAN_OK);
    persist_all(&l);
    const struct raft_msg *v = sent(&l, RAFT_MSG_VOTE, 2);
    cr_assert_eq(v->term, 2);
    cr_assert_eq(step_msg(&f, 1, v), SPAN_OK);
    persist_all(&f);
    cr_assert_eq(step_msg(&l, 2, sent(&f, RAFT_MSG_VOTE_ACK, 1)), SPAN_OK);
    cr_assert(l.up.became_leader);
    cr_assert_eq(l.up.vote_floor.ns, at(3 * MS_NS).ns);
    fix_deinit(&l);
    fix_deinit(&f);
}

/* ---- clocks (A7, B9) ---- */

Test(raft_lease, with_a_bad_clock_it_acknowledges_and_promises_but_does_not_vote_or_stand)
{
    static const enum clock_state bad[] = {CLOCK_STALE_READS_ONLY, CLOCK_FENCED};

    for (size_t i = 0; i < 2; i++) {
        struct fix f;
        fix_init(&f, 2);
        f.now.state = bad[i];
        tick(&f, SEC_NS);
        cr_assert_eq(raft_role(f.r), RAFT_FOLLOWER);
        cr_assert_not(ask(&f, 3, 1, true, tt_ts_of(0)).granted);
        cr_assert_not(ask(&f, 3, 1, false, tt_ts_of(0)).granted);
        struct tt_ts e = at(SEC_NS + 100 * MS_NS);
        cr_assert_eq(beat(&f, 1, 1, e).promised.ns, e.ns);
        fix_deinit(&f);
    }
}

Test(raft_lease, a_leader_whose_clock_goes_bad_loses_its_lease_and_hands_over)
{
    struct fix f;
    fix_init(&f, 1);
    lead(&f, 0);
    ack(&f, 2, 1, at(240 * MS_NS));
    f.now.state = CLOCK_STALE_READS_ONLY;
    tick(&f, 10 * MS_NS);
    cr_assert(f.up.handover_wanted);
    cr_assert_not(raft_has_lease(f.r, &f.now));
    struct raft_heartbeat hb;
    cr_assert(raft_heartbeat_for(f.r, 2, at(260 * MS_NS), &f.now, &hb));
    cr_assert(tt_is_none(hb.lease_end));
    set_time(&f, 200 * MS_NS);
    ack(&f, 2, 1, tt_ts_of(0));
    tick(&f, 10 * MS_NS + LEASE);
    cr_assert_eq(f.up.down_reason, RAFT_DOWN_CLOCK);
    fix_deinit(&f);
}

Test(raft_lease, entries_too_far_ahead_are_refused_unless_committed)
{
    struct fix f;
    fix_init(&f, 2);
    struct buf b;
    buf_init(&b);
    enc_u64(&b, T0 + EPS + SKEW_NS_MAX + 1);
    struct raft_entry e[2] = {{.index = 1, .term = 1, .type = 1},
                              {.index = 2, .term = 1, .type = 2}};
    e[1].payload = raft_blob_new(buf_slice(&b));
    struct raft_msg m = {.type = RAFT_MSG_APPEND, .term = 1};
    m.u.append.entries = e;
    m.u.append.entry_count = 2;
    cr_assert_eq(step_msg(&f, 1, &m), SPAN_OK);
    cr_assert_eq(raft_last_index(f.r), 1); /* what comes before it is taken */
    m.u.append.prev_index = 1;
    m.u.append.prev_term = 1;
    m.u.append.entries = e + 1;
    m.u.append.entry_count = 1;
    persist_all(&f);
    cr_assert_eq(step_msg(&f, 1, &m), SPAN_OK);
    cr_assert_eq(sent(&f, RAFT_MSG_APPEND_ACK, 1)->u.append_ack.refusal, RAFT_ACK_CLOCK);
    m.u.append.commit = 2;
    cr_assert_eq(step_msg(&f, 1, &m), SPAN_OK);
    cr_assert_eq(raft_last_index(f.r), 2);
    raft_blob_unref(e[1].payload);
    buf_deinit(&b);
    fix_deinit(&f);
}
