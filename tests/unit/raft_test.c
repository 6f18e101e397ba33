/* Raft by the paper's rules, one core at a time: events in, updates out, everything by hand. What
 * needs clusters and chance is in raft_sim_test.c, leases are in raft_lease_test.c. */
#include "base/alloc.h"
#include "base/rng.h"
#include "shard/raft/raft.h"

#include <criterion/criterion.h>
#include <stdio.h>

#define T0 (1000 * SEC_NS)

struct fix {
    struct raft *r;
    struct raft_update up;
    struct tt_now now;
};

/* A log is written as a string of terms: "1 1 2" in entries[]. */
struct setup {
    uint32_t self;
    size_t nodes;
    raft_term term;
    uint32_t voted_for;
    const char *terms; /* one digit per entry, from index 1 */
    raft_index applied;
};

static void set_time(struct fix *f, uint64_t ns)
{
    f->now.tt.earliest = tt_ts_of(T0 + ns - MS_NS);
    f->now.tt.latest = tt_ts_of(T0 + ns + MS_NS);
    f->now.mono_ns = ns;
    f->now.state = CLOCK_SYNCED;
}

static void fix_init(struct fix *f, const struct setup *s)
{
    memset(f, 0, sizeof(*f));
    set_time(f, 0);
    raft_update_init(&f->up);
    struct raft_config c;
    memset(&c, 0, sizeof(c));
    c.self = s->self;
    c.hard_state.term = s->term;
    c.hard_state.voted_for = s->voted_for;
    c.fresh = true;
    c.seed = 7;
    c.applied = s->applied;
    for (size_t i = 0; i < s->nodes; i++) {
        cr_assert_eq(raft_conf_set(&c.conf, (uint32_t)i + 1, true), SPAN_OK);
    }
    struct raft_entry entries[64];
    memset(entries, 0, sizeof(entries));
    size_t n = s->terms == NULL ? 0 : strlen(s->terms);
    for (size_t i = 0; i < n; i++) {
        entries[i].index = i + 1;
        entries[i].term = (raft_term)(s->terms[i] - '0');
        entries[i].type = 1;
    }
    c.entries = entries;
    c.entry_count = n;
    struct span_error err;
    cr_assert_eq(raft_new(&c, &f->r, &err), SPAN_OK);
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

static void persisted(struct fix *f, uint64_t seq)
{
    struct raft_event ev = {.type = RAFT_EV_PERSISTED};
    ev.u.persist_seq = seq;
    cr_assert_eq(step(f, &ev), SPAN_OK);
}

static void flush(struct fix *f)
{
    raft_flush(f->r, &f->now, &f->up);
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

static span_status vote(struct fix *f, uint32_t from, raft_term term, raft_index last_index,
                        raft_term last_term, bool pre)
{
    struct raft_msg m = {.type = RAFT_MSG_VOTE, .term = term};
    m.u.vote.pre = pre;
    m.u.vote.last_index = last_index;
    m.u.vote.last_term = last_term;
    return step_msg(f, from, &m);
}

static void vote_ack(struct fix *f, uint32_t from, raft_term vote_term, bool pre, bool granted)
{
    struct raft_msg m = {.type = RAFT_MSG_VOTE_ACK, .term = pre ? vote_term - 1 : vote_term};
    m.u.vote_ack.pre = pre;
    m.u.vote_ack.granted = granted;
    m.u.vote_ack.vote_term = vote_term;
    cr_assert_eq(step_msg(f, from, &m), SPAN_OK);
}

/* An append of entries with the given terms, without a promise asked. */
static span_status append(struct fix *f, uint32_t from, raft_term term, raft_index prev,
                          raft_term prev_term, const char *terms, raft_index commit)
{
    struct raft_entry entries[64];
    memset(entries, 0, sizeof(entries));
    struct raft_msg m = {.type = RAFT_MSG_APPEND, .term = term};
    for (size_t i = 0; terms[i] != 0; i++) {
        entries[i].index = prev + 1 + i;
        entries[i].term = (raft_term)(terms[i] - '0');
        entries[i].type = 1;
        m.u.append.entry_count = i + 1;
    }
    m.u.append.prev_index = prev;
    m.u.append.prev_term = prev_term;
    m.u.append.commit = commit;
    m.u.append.entries = entries;
    return step_msg(f, from, &m);
}

static span_status append_ack(struct fix *f, uint32_t from, raft_index match)
{
    struct raft_msg m = {.type = RAFT_MSG_APPEND_ACK, .term = raft_current_term(f->r)};
    m.u.append_ack.match = match;
    m.u.append_ack.accepted = match;
    return step_msg(f, from, &m);
}

static span_status propose(struct fix *f, uint8_t type, struct slice payload)
{
    struct raft_proposal p = {.type = type, .payload = payload};
    struct raft_event ev = {.type = RAFT_EV_PROPOSE};
    ev.u.propose.items = &p;
    ev.u.propose.count = 1;
    return step(f, &ev);
}

/* Stands and wins with node 2's votes; `up` is that of winning. */
static void win(struct fix *f, uint64_t at)
{
    tick(f, at);
    cr_assert_eq(raft_role(f->r), RAFT_PRE_CANDIDATE);
    raft_term term = raft_current_term(f->r) + 1;
    vote_ack(f, 2, term, true, true);
    if (raft_conf_voters(raft_conf(f->r, NULL)) == 5) {
        vote_ack(f, 3, term, true, true);
    }
    cr_assert_eq(raft_role(f->r), RAFT_CANDIDATE);
    persisted(f, f->up.persist_seq);
    vote_ack(f, 2, term, false, true);
    if (raft_conf_voters(raft_conf(f->r, NULL)) == 5) {
        vote_ack(f, 3, term, false, true);
    }
    cr_assert_eq(raft_role(f->r), RAFT_LEADER);
    cr_assert(f->up.became_leader);
}

static const char *log_terms(const struct fix *f)
{
    static char text[65];
    size_t n = 0;
    for (raft_index i = raft_first_index(f->r); i <= raft_last_index(f->r); i++) {
        text[n++] = (char)('0' + raft_entry_at(f->r, i)->term);
    }
    text[n] = 0;
    return text;
}

/* ---- votes (sections 5.2, 5.4.1, 9.6) ---- */

Test(raft, votes_for_one_candidate_per_term)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    cr_assert_eq(vote(&f, 2, 1, 0, 0, false), SPAN_OK);
    cr_assert(f.up.hard_state_changed);
    cr_assert_eq(f.up.hard_state.term, 1);
    cr_assert_eq(f.up.hard_state.voted_for, 2);
    persisted(&f, f.up.persist_seq);
    cr_assert(sent(&f, RAFT_MSG_VOTE_ACK, 2)->u.vote_ack.granted);
    cr_assert_eq(vote(&f, 3, 1, 0, 0, false), SPAN_OK);
    cr_assert_not(sent(&f, RAFT_MSG_VOTE_ACK, 3)->u.vote_ack.granted);
    cr_assert_eq(vote(&f, 2, 1, 0, 0, false), SPAN_OK); /* the answer was lost */
    cr_assert(sent(&f, RAFT_MSG_VOTE_ACK, 2)->u.vote_ack.granted);
    fix_deinit(&f);
}

Test(raft, a_restored_vote_still_counts)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3, .term = 4, .voted_for = 3});
    cr_assert_eq(vote(&f, 2, 4, 9, 4, false), SPAN_OK);
    cr_assert_not(sent(&f, RAFT_MSG_VOTE_ACK, 2)->u.vote_ack.granted);
    fix_deinit(&f);
}

Test(raft, a_vote_leaves_only_after_it_is_durable)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    cr_assert_eq(vote(&f, 2, 1, 0, 0, false), SPAN_OK);
    uint64_t seq = f.up.persist_seq;
    cr_assert_eq(f.up.msg_count, 0);
    cr_assert_eq(vote(&f, 2, 1, 0, 0, false), SPAN_OK); /* asking again does not force it out */
    cr_assert_eq(f.up.msg_count, 0);
    persisted(&f, seq);
    cr_assert_eq(f.up.msg_count, 1);
    fix_deinit(&f);
}

Test(raft, a_vote_is_dropped_when_a_newer_term_comes_before_it_is_durable)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    cr_assert_eq(vote(&f, 2, 1, 0, 0, false), SPAN_OK);
    cr_assert_eq(append(&f, 3, 2, 0, 0, "2", 0), SPAN_OK);
    persisted(&f, f.up.persist_seq);
    cr_assert_null(find_sent(&f, RAFT_MSG_VOTE_ACK, 2));
    cr_assert_not_null(find_sent(&f, RAFT_MSG_APPEND_ACK, 3));
    fix_deinit(&f);
}

Test(raft, votes_only_for_logs_at_least_as_good)
{
    static const struct {
        raft_index index;
        raft_term term;
        bool granted;
    } cases[] = {{3, 2, true}, {2, 2, false}, {1, 3, true}, {9, 1, false}, {4, 2, true}};

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        for (int pre = 0; pre < 2; pre++) {
            struct fix f;
            fix_init(&f, &(struct setup){.self = 1, .nodes = 3, .term = 3, .terms = "112"});
            cr_assert_eq(vote(&f, 2, 4, cases[i].index, cases[i].term, pre == 1), SPAN_OK);
            const struct raft_msg *m = find_sent(&f, RAFT_MSG_VOTE_ACK, 2);
            if (m == NULL) { /* granted: leaves when durable */
                persisted(&f, f.up.persist_seq);
                m = sent(&f, RAFT_MSG_VOTE_ACK, 2);
            }
            cr_assert_not_null(m);
            cr_assert_eq(m->u.vote_ack.granted, cases[i].granted, "case %zu pre %d", i, pre);
            fix_deinit(&f);
        }
    }
}

Test(raft, a_pre_vote_changes_nothing)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3, .term = 3});
    cr_assert_eq(vote(&f, 2, 4, 0, 0, true), SPAN_OK);
    cr_assert(sent(&f, RAFT_MSG_VOTE_ACK, 2)->u.vote_ack.granted);
    cr_assert_eq(f.up.persist_seq, 0);
    cr_assert_eq(raft_current_term(f.r), 3);
    cr_assert_eq(vote(&f, 3, 4, 0, 0, true), SPAN_OK); /* and can be given to several */
    cr_assert(sent(&f, RAFT_MSG_VOTE_ACK, 3)->u.vote_ack.granted);
    fix_deinit(&f);
}

Test(raft, stands_with_a_pre_vote_then_a_durable_vote_then_leads)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    tick(&f, 0);
    const struct raft_msg *m = sent(&f, RAFT_MSG_VOTE, 2);
    cr_assert(m->u.vote.pre);
    cr_assert_eq(m->term, 1);
    cr_assert_eq(raft_current_term(f.r), 0);
    vote_ack(&f, 2, 1, true, true);
    cr_assert(f.up.hard_state_changed);
    cr_assert_eq(f.up.hard_state.voted_for, 1);
    cr_assert_eq(f.up.msg_count, 0); /* no request before the own vote is durable */
    persisted(&f, f.up.persist_seq);
    cr_assert_not(sent(&f, RAFT_MSG_VOTE, 3)->u.vote.pre);
    cr_assert_not(f.up.became_leader);
    vote_ack(&f, 3, 1, false, false);
    cr_assert_not(f.up.became_leader);
    vote_ack(&f, 3, 1, false, true);
    cr_assert(f.up.became_leader);
    cr_assert_eq(raft_leader(f.r), 1);
    fix_deinit(&f);
}

Test(raft, alone_it_elects_itself_once_its_vote_is_durable)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 1});
    tick(&f, 0);
    cr_assert_eq(raft_role(f.r), RAFT_CANDIDATE);
    persisted(&f, f.up.persist_seq);
    cr_assert(f.up.became_leader);
    cr_assert_eq(propose(&f, 1, slice_str("x")), SPAN_OK);
    cr_assert_eq(raft_commit(f.r), 0);
    persisted(&f, f.up.persist_seq);
    cr_assert_eq(f.up.apply_from, 1);
    cr_assert_eq(f.up.apply_to, 1);
    cr_assert(raft_has_lease(f.r, &f.now));
    fix_deinit(&f);
}

Test(raft, a_candidate_follows_the_leader_of_its_term)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    tick(&f, 0);
    vote_ack(&f, 2, 1, true, true);
    persisted(&f, f.up.persist_seq);
    cr_assert_eq(append(&f, 3, 1, 0, 0, "1", 0), SPAN_OK);
    cr_assert_eq(raft_role(f.r), RAFT_FOLLOWER);
    cr_assert_eq(raft_leader(f.r), 3);
    fix_deinit(&f);
}

Test(raft, a_failed_campaign_is_repeated_after_a_random_while)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    tick(&f, 0);
    uint64_t first = f.up.deadline_mono_ns;
    cr_assert_geq(first, 20 * MS_NS);
    cr_assert_leq(first, 100 * MS_NS);
    tick(&f, first);
    cr_assert_not_null(find_sent(&f, RAFT_MSG_VOTE, 2)); /* asks again */
    cr_assert_neq(f.up.deadline_mono_ns - first, first);
    fix_deinit(&f);
}

Test(raft, a_learner_does_not_stand)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 9, .nodes = 3});
    tick(&f, 10 * SEC_NS);
    cr_assert_eq(raft_role(f.r), RAFT_FOLLOWER);
    cr_assert_eq(f.up.deadline_mono_ns, UINT64_MAX);
    fix_deinit(&f);
}

Test(raft, a_replica_that_may_not_lead_still_votes)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    raft_set_may_lead(f.r, false);
    tick(&f, SEC_NS);
    cr_assert_eq(raft_role(f.r), RAFT_FOLLOWER);
    cr_assert_eq(vote(&f, 2, 1, 0, 0, true), SPAN_OK);
    cr_assert(sent(&f, RAFT_MSG_VOTE_ACK, 2)->u.vote_ack.granted);
    fix_deinit(&f);
}

/* ---- appends (section 5.3) ---- */

Test(raft, an_append_is_acknowledged_only_when_durable)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    cr_assert_eq(append(&f, 2, 1, 0, 0, "11", 0), SPAN_OK);
    uint64_t seq = f.up.persist_seq;
    cr_assert_eq(f.up.entry_count, 2);
    cr_assert_eq(f.up.msg_count, 0);
    cr_assert_eq(append(&f, 2, 1, 2, 1, "1", 0), SPAN_OK);
    uint64_t next = f.up.persist_seq;
    persisted(&f, seq);
    const struct raft_msg *m = sent(&f, RAFT_MSG_APPEND_ACK, 2);
    cr_assert_eq(m->u.append_ack.match, 2);
    cr_assert_eq(m->u.append_ack.accepted, 3);
    persisted(&f, next);
    cr_assert_eq(sent(&f, RAFT_MSG_APPEND_ACK, 2)->u.append_ack.match, 3);
    fix_deinit(&f);
}

Test(raft, an_entry_written_twice_is_durable_only_with_its_second_write)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    cr_assert_eq(append(&f, 2, 1, 0, 0, "111", 0), SPAN_OK);
    uint64_t first = f.up.persist_seq;
    cr_assert_eq(append(&f, 3, 2, 0, 0, "2", 0), SPAN_OK);
    cr_assert_eq(append(&f, 2, 3, 0, 0, "111", 0), SPAN_OK);
    uint64_t third = f.up.persist_seq;
    persisted(&f, first);
    cr_assert_eq(raft_stable_index(f.r), 0);
    cr_assert_eq(f.up.msg_count, 0);
    persisted(&f, third);
    cr_assert_eq(sent(&f, RAFT_MSG_APPEND_ACK, 2)->u.append_ack.match, 3);
    fix_deinit(&f);
}

Test(raft, an_append_of_an_old_term_is_refused_with_the_new_one)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3, .term = 5});
    cr_assert_eq(append(&f, 2, 4, 0, 0, "4", 0), SPAN_OK);
    const struct raft_msg *m = sent(&f, RAFT_MSG_APPEND_ACK, 2);
    cr_assert_eq(m->u.append_ack.refusal, RAFT_ACK_TERM);
    cr_assert_eq(m->term, 5);
    cr_assert_eq(raft_last_index(f.r), 0);
    fix_deinit(&f);
}

/* Figure 7: what a follower's log may look like when a leader of term 8 comes with 1114455666. */
Test(raft, logs_of_figure_7_are_repaired_in_few_round_trips)
{
    static const char *leader = "1114455666";
    static const char *followers[] = {"111445566",    "1114",    "11144556666",
                                      "111445566677", "1114444", "11122233333"};
    for (size_t i = 0; i < sizeof(followers) / sizeof(followers[0]); i++) {
        struct fix f;
        struct fix l;
        fix_init(&f, &(struct setup){.self = 2, .nodes = 3, .term = 7, .terms = followers[i]});
        fix_init(&l, &(struct setup){.self = 1, .nodes = 3, .term = 7, .terms = leader});
        win(&l, 0);
        cr_assert_eq(propose(&l, 1, slice_str("")), SPAN_OK);
        unsigned trips = 0;
        while (strcmp(log_terms(&f), "11144556668") != 0) {
            cr_assert_lt(trips, 4, "follower %zu has %s", i, log_terms(&f));
            flush(&l);
            const struct raft_msg *m = sent(&l, RAFT_MSG_APPEND, 2);
            cr_assert_not_null(m);
            cr_assert_eq(step_msg(&f, 1, m), SPAN_OK);
            if (f.up.persist_seq != 0) {
                /* A refusal leaves at once, an acknowledgement when durable. */
                const struct raft_msg *no = find_sent(&f, RAFT_MSG_APPEND_ACK, 1);
                if (no == NULL) {
                    persisted(&f, f.up.persist_seq);
                }
            }
            m = sent(&f, RAFT_MSG_APPEND_ACK, 1);
            cr_assert_not_null(m);
            cr_assert_eq(step_msg(&l, 2, m), SPAN_OK);
            trips++;
        }
        cr_assert_leq(trips, 3);
        fix_deinit(&f);
        fix_deinit(&l);
    }
}

Test(raft, a_late_append_does_not_cut_what_a_newer_one_brought)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    cr_assert_eq(append(&f, 2, 1, 0, 0, "1111", 0), SPAN_OK);
    cr_assert_eq(append(&f, 2, 1, 0, 0, "1", 0), SPAN_OK);
    cr_assert_str_eq(log_terms(&f), "1111");
    fix_deinit(&f);
}

Test(raft, a_follower_commits_only_what_it_knows_to_agree)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3, .term = 1, .terms = "111"});
    /* The leader of term 2 has committed 3, but only 1 is known to be its entry too. */
    cr_assert_eq(append(&f, 2, 2, 1, 1, "", 3), SPAN_OK);
    cr_assert_eq(raft_commit(f.r), 1);
    struct raft_event ev = {.type = RAFT_EV_HEARTBEAT, .from = 2};
    ev.u.heartbeat.term = 2;
    ev.u.heartbeat.last_index = 3;
    ev.u.heartbeat.commit = 3;
    cr_assert_eq(step(&f, &ev), SPAN_OK);
    cr_assert_eq(raft_commit(f.r), 1);
    cr_assert(f.up.heartbeat_ack.behind);
    cr_assert_eq(f.up.heartbeat_ack.last_index, 3);
    fix_deinit(&f);
}

Test(raft, an_append_against_committed_entries_is_corruption)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3, .term = 1, .terms = "111", .applied = 3});
    cr_assert_eq(append(&f, 2, 2, 1, 1, "2", 0), SPAN_CORRUPT);
    fix_deinit(&f);
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3, .term = 1, .terms = "111", .applied = 3});
    cr_assert_eq(append(&f, 2, 2, 3, 2, "2", 0), SPAN_CORRUPT);
    fix_deinit(&f);
}

Test(raft, two_leaders_of_one_term_are_corruption)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    cr_assert_eq(append(&f, 2, 1, 0, 0, "1", 0), SPAN_OK);
    cr_assert_eq(append(&f, 3, 1, 0, 0, "1", 0), SPAN_CORRUPT);
    fix_deinit(&f);
}

/* ---- leading (sections 5.3, 5.4.2) ---- */

Test(raft, proposals_of_one_turn_leave_as_one_append_per_follower)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    win(&f, 0);
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(propose(&f, 1, slice_str("abc")), SPAN_OK);
        cr_assert_eq(f.up.msg_count, 0);
        cr_assert_eq(f.up.entry_count, 1);
    }
    flush(&f);
    cr_assert_eq(f.up.msg_count, 2);
    cr_assert_eq(sent(&f, RAFT_MSG_APPEND, 2)->u.append.entry_count, 3);
    cr_assert_eq(append_ack(&f, 2, 3), SPAN_OK);
    cr_assert_eq(propose(&f, 1, slice_str("d")), SPAN_OK);
    flush(&f);
    cr_assert_eq(f.up.msg_count, 1); /* 3 is still being probed, 2 gets them pipelined */
    cr_assert_eq(propose(&f, 1, slice_str("e")), SPAN_OK);
    flush(&f);
    cr_assert_eq(sent(&f, RAFT_MSG_APPEND, 2)->u.append.prev_index, 4);
    fix_deinit(&f);
}

Test(raft, the_window_of_appends_under_way_is_bounded)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    win(&f, 0);
    cr_assert_eq(propose(&f, 1, slice_str("0")), SPAN_OK);
    flush(&f);
    cr_assert_eq(append_ack(&f, 2, 1), SPAN_OK);
    size_t appends = 0;
    for (int i = 0; i < LIMIT_INFLIGHT_APPENDS + 20; i++) {
        cr_assert_eq(propose(&f, 1, slice_str("x")), SPAN_OK);
        flush(&f);
        appends += f.up.msg_count;
    }
    cr_assert_eq(appends, LIMIT_INFLIGHT_APPENDS);
    cr_assert_eq(append_ack(&f, 2, 30), SPAN_OK);
    flush(&f);
    cr_assert_gt(f.up.msg_count, 0);
    fix_deinit(&f);
}

Test(raft, an_append_message_is_bounded_in_bytes)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    win(&f, 0);
    struct buf big;
    buf_init(&big);
    memset(buf_grow(&big, LIMIT_APPEND_BYTES / 2), 'x', LIMIT_APPEND_BYTES / 2);
    for (int i = 0; i < 4; i++) {
        cr_assert_eq(propose(&f, 1, buf_slice(&big)), SPAN_OK);
    }
    flush(&f);
    cr_assert_eq(sent(&f, RAFT_MSG_APPEND, 2)->u.append.entry_count, 2);
    buf_grow(&big, LIMIT_ENTRY_BYTES);
    cr_assert_eq(propose(&f, 1, buf_slice(&big)), SPAN_TOO_LARGE);
    buf_deinit(&big);
    fix_deinit(&f);
}

Test(raft, the_leader_counts_itself_only_when_durable)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    win(&f, 0);
    cr_assert_eq(propose(&f, 1, slice_str("x")), SPAN_OK);
    uint64_t seq = f.up.persist_seq;
    flush(&f);
    cr_assert_eq(append_ack(&f, 2, 1), SPAN_OK);
    cr_assert_eq(raft_commit(f.r), 0);
    persisted(&f, seq);
    cr_assert_eq(raft_commit(f.r), 1);
    cr_assert_eq(f.up.apply_to, 1);
    fix_deinit(&f);
}

Test(raft, entries_are_applied_only_when_durable_here)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    win(&f, 0);
    cr_assert_eq(propose(&f, 1, slice_str("x")), SPAN_OK);
    uint64_t seq = f.up.persist_seq;
    flush(&f);
    cr_assert_eq(append_ack(&f, 2, 1), SPAN_OK);
    cr_assert_eq(append_ack(&f, 3, 1), SPAN_OK);
    cr_assert_eq(raft_commit(f.r), 1); /* two others have it */
    cr_assert_eq(f.up.apply_to, 0);
    persisted(&f, seq);
    cr_assert_eq(f.up.apply_to, 1);
    fix_deinit(&f);
}

/* Figure 8, (c) and (e): an entry of term 2 on a majority is not committed by counting. */
Test(raft, entries_of_older_terms_are_not_committed_by_counting)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 5, .term = 3, .terms = "12"});
    win(&f, 0); /* term 4 */
    cr_assert_eq(propose(&f, 1, slice_str("4")), SPAN_OK);
    persisted(&f, f.up.persist_seq);
    cr_assert_eq(append_ack(&f, 2, 2), SPAN_OK);
    cr_assert_eq(append_ack(&f, 3, 2), SPAN_OK);
    cr_assert_eq(raft_commit(f.r), 0); /* S5 could still overwrite entry 2 */
    cr_assert_eq(append_ack(&f, 2, 3), SPAN_OK);
    cr_assert_eq(append_ack(&f, 3, 3), SPAN_OK);
    cr_assert_eq(raft_commit(f.r), 3);
    fix_deinit(&f);
}

Test(raft, a_leader_steps_down_on_a_newer_term)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    win(&f, 0);
    cr_assert_eq(propose(&f, 1, slice_str("x")), SPAN_OK);
    struct raft_msg m = {.type = RAFT_MSG_APPEND_ACK, .term = 7};
    m.u.append_ack.refusal = RAFT_ACK_TERM;
    cr_assert_eq(step_msg(&f, 3, &m), SPAN_OK);
    cr_assert(f.up.stepped_down);
    cr_assert_eq(f.up.down_reason, RAFT_DOWN_TERM);
    cr_assert_eq(raft_current_term(f.r), 7);
    cr_assert_eq(propose(&f, 1, slice_str("x")), SPAN_NOT_LEADER);
    fix_deinit(&f);
}

Test(raft, a_heartbeat_refused_with_a_newer_term_deposes_too)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    win(&f, 0);
    struct raft_event ev = {.type = RAFT_EV_HEARTBEAT_ACK, .from = 2};
    ev.u.heartbeat_ack.term = 3;
    cr_assert_eq(propose(&f, 1, slice_str("x")), SPAN_OK);
    cr_assert_eq(step(&f, &ev), SPAN_OK);
    cr_assert(f.up.stepped_down);
    fix_deinit(&f);
}

/* ---- repair by heartbeats ---- */

static void beat_ack(struct fix *f, uint32_t from, raft_index accepted, raft_index last,
                     bool behind)
{
    struct raft_event ev = {.type = RAFT_EV_HEARTBEAT_ACK, .from = from};
    ev.u.heartbeat_ack.term = raft_current_term(f->r);
    ev.u.heartbeat_ack.match = accepted;
    ev.u.heartbeat_ack.accepted = accepted;
    ev.u.heartbeat_ack.last_index = last;
    ev.u.heartbeat_ack.behind = behind;
    cr_assert_eq(step(f, &ev), SPAN_OK);
}

Test(raft, a_lost_append_is_sent_again_when_heartbeats_say_behind)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    win(&f, 0);
    cr_assert_eq(propose(&f, 1, slice_str("x")), SPAN_OK);
    flush(&f);
    cr_assert_eq(append_ack(&f, 2, 1), SPAN_OK);
    cr_assert_eq(propose(&f, 1, slice_str("y")), SPAN_OK);
    flush(&f);
    cr_assert_eq(f.up.msg_count, 1); /* lost */
    beat_ack(&f, 2, 1, 1, true);
    flush(&f);
    cr_assert_eq(f.up.msg_count, 0); /* may still be on its way by a slower link */
    beat_ack(&f, 2, 1, 1, true);
    flush(&f);
    cr_assert_eq(sent(&f, RAFT_MSG_APPEND, 2)->u.append.prev_index, 1);
    fix_deinit(&f);
}

Test(raft, a_lost_acknowledgement_is_repeated_by_the_heartbeat)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    win(&f, 0);
    cr_assert_eq(propose(&f, 1, slice_str("x")), SPAN_OK);
    persisted(&f, f.up.persist_seq);
    flush(&f);
    struct raft_heartbeat hb;
    cr_assert(raft_heartbeat_for(f.r, 2, tt_ts_of(T0 + 200 * MS_NS), &f.now, &hb));
    cr_assert_eq(hb.term, 1);
    cr_assert_eq(hb.last_index, 0); /* probing: the entry's fate is not known */
    beat_ack(&f, 2, 1, 1, false);
    cr_assert_eq(raft_commit(f.r), 1);
    struct raft_peer_info info;
    cr_assert(raft_peer(f.r, 2, &info));
    cr_assert_not(info.probing);
    fix_deinit(&f);
}

Test(raft, a_dead_peer_costs_one_probe_and_no_more)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    win(&f, 0);
    cr_assert_eq(propose(&f, 1, slice_str("x")), SPAN_OK);
    flush(&f);
    cr_assert_eq(f.up.msg_count, 2);
    cr_assert_eq(propose(&f, 1, slice_str("y")), SPAN_OK);
    flush(&f);
    cr_assert_eq(f.up.msg_count, 0);
    cr_assert_not(raft_heartbeat_for(f.r, 9, tt_ts_of(T0), &f.now, &(struct raft_heartbeat){0}));
    fix_deinit(&f);
}

/* ---- compaction and snapshots ---- */

Test(raft, a_follower_behind_the_log_gets_a_snapshot)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3, .term = 1, .terms = "1111", .applied = 4});
    win(&f, 0);
    cr_assert_eq(propose(&f, 1, slice_str("x")), SPAN_OK);
    raft_compact(f.r, 3);
    cr_assert_eq(raft_first_index(f.r), 4);
    flush(&f);
    struct raft_msg m = {.type = RAFT_MSG_APPEND_ACK, .term = 2};
    m.u.append_ack.refusal = RAFT_ACK_MISMATCH;
    m.u.append_ack.prev_index = 4;
    m.u.append_ack.hint_index = 1;
    m.u.append_ack.hint_term = 1;
    cr_assert_eq(step_msg(&f, 2, &m), SPAN_OK);
    flush(&f);
    cr_assert_eq(f.up.snapshot_count, 1);
    cr_assert_eq(f.up.snapshot_to[0], 2);
    cr_assert(raft_wants_snapshot(f.r, 2));
    flush(&f);
    cr_assert_eq(f.up.snapshot_count, 0); /* told once */
    struct raft_event ev = {.type = RAFT_EV_SNAPSHOT_SENT, .from = 2};
    ev.u.index = 4;
    cr_assert_eq(step(&f, &ev), SPAN_OK);
    flush(&f);
    cr_assert_eq(sent(&f, RAFT_MSG_APPEND, 2)->u.append.prev_index, 4);
    fix_deinit(&f);
}

Test(raft, a_snapshot_replaces_a_log_that_does_not_reach_it)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 2, .nodes = 3, .term = 1, .terms = "11", .applied = 1});
    cr_assert_eq(append(&f, 1, 3, 9, 3, "3", 9), SPAN_OK);
    struct raft_event ev = {.type = RAFT_EV_SNAPSHOT_INSTALLED};
    ev.u.installed.index = 9;
    ev.u.installed.term = 3;
    ev.u.installed.conf = *raft_conf(f.r, NULL);
    ev.u.installed.conf_index = 5;
    persisted(&f, 1);
    cr_assert_eq(step(&f, &ev), SPAN_OK);
    cr_assert(f.up.log_dropped);
    cr_assert_eq(raft_first_index(f.r), 10);
    cr_assert_eq(raft_applied(f.r), 9);
    cr_assert_eq(sent(&f, RAFT_MSG_APPEND_ACK, 1)->u.append_ack.match, 9);
    cr_assert_eq(append(&f, 1, 3, 9, 3, "3", 10), SPAN_OK);
    persisted(&f, f.up.persist_seq);
    cr_assert_eq(f.up.apply_from, 10);
    cr_assert_eq(step(&f, &ev), SPAN_INVALID); /* already applied */
    ev.u.installed.index = 10;                 /* handed out, but the owner could not apply it */
    cr_assert_eq(step(&f, &ev), SPAN_OK);
    cr_assert_eq(raft_applied(f.r), 10);
    fix_deinit(&f);
}

Test(raft, a_snapshot_inside_the_log_keeps_what_follows)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 2, .nodes = 3, .term = 2, .terms = "1122", .applied = 1});
    struct raft_event ev = {.type = RAFT_EV_SNAPSHOT_INSTALLED};
    ev.u.installed.index = 3;
    ev.u.installed.term = 2;
    ev.u.installed.conf = *raft_conf(f.r, NULL);
    cr_assert_eq(step(&f, &ev), SPAN_OK);
    cr_assert_not(f.up.log_dropped);
    cr_assert_eq(raft_last_index(f.r), 4);
    cr_assert_eq(raft_first_index(f.r), 4);
    fix_deinit(&f);
}

/* ---- membership ---- */

static span_status propose_conf(struct fix *f, const struct raft_conf *c, uint64_t floor_ns)
{
    struct buf b;
    buf_init(&b);
    raft_conf_encode(&b, c);
    struct raft_proposal p = {.type = RAFT_ENTRY_CONF, .payload = buf_slice(&b)};
    struct raft_event ev = {.type = RAFT_EV_PROPOSE};
    ev.u.propose.items = &p;
    ev.u.propose.count = 1;
    ev.u.propose.floor = tt_ts_of(floor_ns);
    span_status st = step(f, &ev);
    buf_deinit(&b);
    return st;
}

/* Both others acknowledge up to match and promise until e. */
static void promise(struct fix *f, raft_index match, uint64_t e)
{
    for (uint32_t node = 2; node <= 3; node++) {
        struct raft_msg m = {.type = RAFT_MSG_APPEND_ACK, .term = raft_current_term(f->r)};
        m.u.append_ack.match = match;
        m.u.append_ack.accepted = match;
        m.u.append_ack.promised = tt_ts_of(e);
        cr_assert_eq(step_msg(f, node, &m), SPAN_OK);
    }
}

Test(raft, one_membership_change_at_a_time_and_after_an_own_entry)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 1, .nodes = 3});
    win(&f, 0);
    struct raft_conf c = *raft_conf(f.r, NULL);
    cr_assert_eq(raft_conf_set(&c, 4, true), SPAN_OK);
    cr_assert_eq(propose(&f, 1, slice_str("x")), SPAN_OK);
    persisted(&f, f.up.persist_seq);
    cr_assert_eq(propose_conf(&f, &c, T0), SPAN_WOULD_WAIT); /* nothing of the term committed */
    promise(&f, 1, T0 + 200 * MS_NS);
    struct raft_conf two = c;
    cr_assert_eq(raft_conf_set(&two, 5, true), SPAN_OK);
    cr_assert_eq(propose_conf(&f, &two, T0), SPAN_INVALID);
    struct raft_conf without_me = *raft_conf(f.r, NULL);
    cr_assert_eq(raft_conf_remove(&without_me, 1), SPAN_OK);
    cr_assert_eq(propose_conf(&f, &without_me, T0), SPAN_INVALID);
    cr_assert_eq(propose_conf(&f, &c, T0), SPAN_OK);
    persisted(&f, f.up.persist_seq);
    cr_assert_eq(raft_conf_voters(raft_conf(f.r, NULL)), 4); /* in force at once */
    cr_assert_eq(raft_conf_voters(raft_committed_conf(f.r, NULL)), 3);
    cr_assert_eq(propose_conf(&f, &two, T0), SPAN_WOULD_WAIT);
    promise(&f, 2, T0 + 200 * MS_NS);
    cr_assert_eq(raft_commit(f.r), 2); /* 3 of 4 */
    cr_assert_eq(propose_conf(&f, &two, T0), SPAN_OK);
    flush(&f);
    cr_assert_not_null(find_sent(&f, RAFT_MSG_APPEND, 4));
    fix_deinit(&f);
}

Test(raft, a_configuration_that_is_overwritten_is_taken_back)
{
    struct fix f;
    fix_init(&f, &(struct setup){.self = 2, .nodes = 3});
    struct raft_conf c = *raft_conf(f.r, NULL);
    cr_assert_eq(raft_conf_set(&c, 4, true), SPAN_OK);
    struct buf b;
    buf_init(&b);
    raft_conf_encode(&b, &c);
    struct raft_entry e = {.index = 1, .term = 1, .type = RAFT_ENTRY_CONF};
    e.payload = raft_blob_new(buf_slice(&b));
    struct raft_msg m = {.type = RAFT_MSG_APPEND, .term = 1};
    m.u.append.entries = &e;
    m.u.append.entry_count = 1;
    cr_assert_eq(step_msg(&f, 1, &m), SPAN_OK);
    cr_assert_eq(raft_conf_voters(raft_conf(f.r, NULL)), 4);
    raft_blob_unref(e.payload);
    cr_assert_eq(append(&f, 3, 2, 0, 0, "2", 0), SPAN_OK);
    cr_assert_eq(raft_conf_voters(raft_conf(f.r, NULL)), 3);
    buf_deinit(&b);
    fix_deinit(&f);
}

/* ---- restart ---- */

Test(raft, a_log_that_does_not_fit_is_refused_with_the_place)
{
    struct raft_config c;
    memset(&c, 0, sizeof(c));
    c.self = 1;
    c.hard_state.term = 2;
    struct raft_entry e[2] = {{.index = 1, .term = 1, .type = 1},
                              {.index = 3, .term = 1, .type = 1}};
    c.entries = e;
    c.entry_count = 2;
    struct raft *r;
    struct span_error err;
    cr_assert_eq(raft_new(&c, &r, &err), SPAN_CORRUPT);
    cr_assert_null(r);
    cr_assert_not_null(strstr(err.text, "entry 3"));
    e[1].index = 2;
    e[1].term = 5; /* beyond the current term */
    cr_assert_eq(raft_new(&c, &r, &err), SPAN_CORRUPT);
    e[1].term = 2;
    c.applied = 3;
    cr_assert_eq(raft_new(&c, &r, &err), SPAN_CORRUPT);
    c.applied = 2;
    cr_assert_eq(raft_new(&c, &r, &err), SPAN_OK);
    cr_assert_eq(raft_commit(r), 2);
    raft_free(r);
}

/* ---- messages ---- */

Test(raft_msg, every_cut_and_flip_is_survived)
{
    struct raft_entry e[3];
    memset(e, 0, sizeof(e));
    for (size_t i = 0; i < 3; i++) {
        e[i].index = 8 + i;
        e[i].term = 3 + i;
        e[i].type = 1;
        e[i].payload = i == 1 ? NULL : raft_blob_new(slice_str("payload"));
    }
    struct raft_msg m = {.type = RAFT_MSG_APPEND, .term = 6};
    m.u.append.prev_index = 7;
    m.u.append.prev_term = 2;
    m.u.append.commit = 5;
    m.u.append.lease_end = tt_ts_of(T0);
    m.u.append.entries = e;
    m.u.append.entry_count = 3;
    struct buf b;
    buf_init(&b);
    raft_msg_encode(&b, &m);
    struct raft_msg out;
    cr_assert_eq(raft_msg_decode(buf_slice(&b), &out), SPAN_OK);
    cr_assert_eq(out.u.append.entry_count, 3);
    cr_assert_eq(out.u.append.entries[2].index, 10);
    cr_assert_eq(out.u.append.entries[2].term, 5);
    cr_assert(slice_eq(raft_blob_slice(out.u.append.entries[0].payload), slice_str("payload")));
    cr_assert_eq(out.u.append.lease_end.ns, T0);
    raft_msg_deinit(&out);
    for (size_t n = 0; n < b.size; n++) {
        cr_assert_eq(raft_msg_decode(slice_of(b.data, n), &out), SPAN_PROTOCOL);
        raft_msg_deinit(&out);
    }
    struct rng rng;
    rng_init(&rng, 3);
    for (int i = 0; i < 20000; i++) {
        size_t at = rng_below(&rng, b.size);
        uint8_t was = b.data[at];
        b.data[at] = (uint8_t)rng_u64(&rng);
        if (raft_msg_decode(buf_slice(&b), &out) == SPAN_OK) {
            raft_msg_deinit(&out);
        }
        b.data[at] = was;
    }
    buf_deinit(&b);
    raft_blob_unref(e[0].payload);
    raft_blob_unref(e[2].payload);
}

Test(raft_msg, all_other_types_come_back_as_they_were)
{
    struct raft_msg in[4] = {
        {.type = RAFT_MSG_APPEND_ACK, .term = 4},
        {.type = RAFT_MSG_VOTE, .term = 5},
        {.type = RAFT_MSG_VOTE_ACK, .term = 6},
        {.type = RAFT_MSG_TIMEOUT_NOW, .term = 7},
    };
    in[0].u.append_ack = (struct raft_append_ack){RAFT_ACK_MISMATCH, 1, 2, {3}, 4, 5, 6};
    in[1].u.vote = (struct raft_vote){true, 8, 3, true, {99}};
    in[2].u.vote_ack = (struct raft_vote_ack){false, true, 6, {77}, 5};
    in[3].u.timeout_now.release = tt_ts_of(11);
    for (size_t i = 0; i < 4; i++) {
        struct buf a;
        struct buf b;
        struct raft_msg out;
        buf_init(&a);
        buf_init(&b);
        raft_msg_encode(&a, &in[i]);
        cr_assert_eq(raft_msg_decode(buf_slice(&a), &out), SPAN_OK);
        raft_msg_encode(&b, &out);
        cr_assert(slice_eq(buf_slice(&a), buf_slice(&b)));
        buf_append_byte(&a, 0);
        raft_msg_deinit(&out);
        cr_assert_eq(raft_msg_decode(buf_slice(&a), &out), SPAN_PROTOCOL);
        buf_deinit(&a);
        buf_deinit(&b);
    }
}

Test(raft_conf, ranks_count_from_the_one_after_the_leader)
{
    struct raft_conf c;
    raft_conf_init(&c);
    for (uint32_t n = 1; n <= 3; n++) {
        cr_assert_eq(raft_conf_set(&c, n * 10, true), SPAN_OK);
    }
    cr_assert_eq(raft_conf_set(&c, 99, false), SPAN_OK);
    cr_assert_eq(raft_conf_rank(&c, 30, 20), 0);
    cr_assert_eq(raft_conf_rank(&c, 10, 20), 1);
    cr_assert_eq(raft_conf_rank(&c, 20, 20), 2);
    cr_assert_eq(raft_conf_rank(&c, 20, 0), 1);
    cr_assert_eq(raft_conf_quorum(&c), 2);
    struct buf b;
    struct raft_conf out;
    buf_init(&b);
    raft_conf_encode(&b, &c);
    cr_assert_eq(raft_conf_decode(buf_slice(&b), &out), SPAN_OK);
    cr_assert(raft_conf_eq(&c, &out));
    for (size_t n = 0; n < b.size; n++) {
        cr_assert_eq(raft_conf_decode(slice_of(b.data, n), &out), SPAN_PROTOCOL);
    }
    buf_deinit(&b);
}
