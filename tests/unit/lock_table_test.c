/* Lock table: rules C4, C5, C6 and wound-wait by examples, then random steps against a naive model
 * (a list of requests, granted to a fixpoint). */
#include "base/alloc.h"
#include "base/rng.h"
#include "txn/lock_table.h"

#include <criterion/criterion.h>
#include <stdio.h>

/* ---- examples ---- */

struct who {
    struct lock_owner o;
    bool wounded;
    unsigned asked; /* times its wound was asked for */
};

#define WHO_OF(p) ((struct who *)(void *)((char *)(p)-offsetof(struct who, o)))

static void who_init(struct who *w, uint64_t age)
{
    struct txn_id id = {age, 1, (uint32_t)age};
    memset(w, 0, sizeof *w);
    lock_owner_init(&w->o, &id, &id);
}

static bool give_way(void *ctx, struct lock_owner *victim, const struct lock_owner *by)
{
    struct who *w = WHO_OF(victim);
    cr_assert(txn_id_cmp(&by->age, &victim->age) < 0, "only older ones wound");
    w->asked++;
    if (victim->unwoundable) {
        return false;
    }
    w->wounded = true;
    lock_table_release(ctx, victim);
    return true;
}

static struct span point(const char *k)
{
    return (struct span){.start = slice_str(k), .point = true};
}

static struct span range(const char *from, const char *to)
{
    return (struct span){.start = slice_str(from), .end = slice_str(to)};
}

static enum lock_result ask(struct lock_table *t, struct who *w, struct span s, enum lock_mode mode)
{
    struct lock_request q = {.owner = &w->o, .span = s, .mode = mode, .may_wait = true};
    return lock_table_acquire(t, &q, give_way, t);
}

static enum lock_result ask_commit(struct lock_table *t, struct who *w, struct span s,
                                   enum lock_mode mode)
{
    struct lock_request q = {
        .owner = &w->o, .span = s, .mode = mode, .may_wait = true, .commit_phase = true};
    return lock_table_acquire(t, &q, give_way, t);
}

static enum lock_result ask_now(struct lock_table *t, struct who *w, struct span s,
                                enum lock_mode mode)
{
    struct lock_request q = {.owner = &w->o, .span = s, .mode = mode};
    return lock_table_acquire(t, &q, give_way, t);
}

static struct lock_table *table(struct who *w, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        who_init(&w[i], 10 * (i + 1)); /* w[0] is the oldest */
    }
    return lock_table_new();
}

static void done(struct lock_table *t, struct who *w, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        lock_table_release(t, &w[i].o);
    }
    cr_assert_eq(lock_table_count(t), 0);
    lock_table_free(t);
}

Test(lock_table, shared_locks_go_together_and_exclusive_ones_do_not)
{
    struct who w[3];
    struct lock_table *t = table(w, 3);
    cr_assert_eq(ask(t, &w[0], point("k"), LOCK_SHARED), LOCK_GRANTED);
    cr_assert_eq(ask(t, &w[1], point("k"), LOCK_SHARED), LOCK_GRANTED);
    cr_assert_eq(ask(t, &w[2], point("k"), LOCK_EXCLUSIVE), LOCK_WAITING);
    cr_assert_eq(ask(t, &w[2], point("kk"), LOCK_EXCLUSIVE), LOCK_GRANTED);
    lock_table_release(t, &w[0].o);
    cr_assert_null(lock_table_take_granted(t));
    cr_assert_eq(lock_table_blocker(t, &w[2].o), &w[1].o);
    lock_table_release(t, &w[1].o);
    cr_assert_eq(lock_table_take_granted(t), &w[2].o);
    cr_assert_null(lock_table_take_granted(t));
    cr_assert(lock_table_holds(t, &w[2].o, &(struct span){.start = slice_str("k"), .point = true},
                               LOCK_EXCLUSIVE));
    done(t, w, 3);
}

Test(lock_table, an_older_request_wounds_a_younger_holder_and_a_younger_one_waits)
{
    struct who w[2];
    struct lock_table *t = table(w, 2);
    cr_assert_eq(ask(t, &w[1], point("k"), LOCK_EXCLUSIVE), LOCK_GRANTED);
    cr_assert_eq(ask(t, &w[0], point("k"), LOCK_SHARED), LOCK_GRANTED);
    cr_assert(w[1].wounded);
    cr_assert_eq(w[1].o.held_count, 0);
    cr_assert_null(lock_table_take_granted(t), "the answer of acquire is told once");
    cr_assert_eq(ask(t, &w[1], point("k"), LOCK_EXCLUSIVE), LOCK_WAITING);
    cr_assert(!w[0].wounded);
    done(t, w, 2);
}

Test(lock_table, a_wound_does_not_pass_the_lock_to_younger_waiters_first)
{
    struct who w[5];
    struct lock_table *t = table(w, 5);
    cr_assert_eq(ask(t, &w[1], point("k"), LOCK_EXCLUSIVE), LOCK_GRANTED);
    for (int i = 2; i < 5; i++) {
        cr_assert_eq(ask(t, &w[i], point("k"), LOCK_EXCLUSIVE), LOCK_WAITING);
    }
    cr_assert_eq(ask(t, &w[0], point("k"), LOCK_EXCLUSIVE), LOCK_GRANTED);
    for (int i = 2; i < 5; i++) {
        cr_assert(!w[i].wounded, "waiter %d holds nothing that is in the way", i);
        cr_assert_eq(w[i].o.waiting_count, 1);
    }
    lock_table_release(t, &w[0].o);
    cr_assert_eq(lock_table_take_granted(t), &w[2].o, "the queue is in age order");
    cr_assert_null(lock_table_take_granted(t));
    done(t, w, 5);
}

Test(lock_table, rule_c4_a_prepared_holder_is_waited_for_and_its_wound_is_asked_for)
{
    struct who w[2];
    struct lock_table *t = table(w, 2);
    cr_assert_eq(ask(t, &w[1], point("k"), LOCK_EXCLUSIVE), LOCK_GRANTED);
    w[1].o.unwoundable = true;
    cr_assert_eq(ask(t, &w[0], point("k"), LOCK_EXCLUSIVE), LOCK_WAITING);
    cr_assert(!w[1].wounded);
    cr_assert_eq(w[1].asked, 1);
    lock_table_release(t, &w[1].o);
    cr_assert_eq(lock_table_take_granted(t), &w[0].o);
    done(t, w, 2);
}

Test(lock_table, rule_c4_in_the_commit_phase_nobody_waits_for_an_older_one)
{
    struct who w[4];
    struct lock_table *t = table(w, 4);
    cr_assert_eq(ask(t, &w[0], point("k"), LOCK_SHARED), LOCK_GRANTED);
    cr_assert_eq(ask(t, &w[3], point("k"), LOCK_SHARED), LOCK_GRANTED);
    cr_assert_eq(ask_commit(t, &w[2], point("k"), LOCK_EXCLUSIVE), LOCK_REFUSED);
    cr_assert(!w[3].wounded, "a refused request wounds nobody");
    cr_assert_eq(w[2].o.waiting_count, 0);
    /* nor for an older waiter */
    cr_assert_eq(ask(t, &w[1], point("k"), LOCK_EXCLUSIVE), LOCK_WAITING);
    cr_assert(w[3].wounded);
    lock_table_release(t, &w[0].o);
    cr_assert_eq(lock_table_take_granted(t), &w[1].o);
    cr_assert_eq(ask_commit(t, &w[2], point("k"), LOCK_SHARED), LOCK_REFUSED);
    /* younger holders: wounded, or waited for when they are prepared */
    lock_table_release(t, &w[1].o);
    cr_assert_eq(ask(t, &w[3], point("k"), LOCK_EXCLUSIVE), LOCK_GRANTED);
    w[3].o.unwoundable = true;
    cr_assert_eq(ask_commit(t, &w[2], point("k"), LOCK_EXCLUSIVE), LOCK_WAITING);
    done(t, w, 4);
}

Test(lock_table, rule_c5_an_old_reader_does_not_wait_behind_a_young_writer)
{
    struct who w[3];
    struct lock_table *t = table(w, 3);
    cr_assert_eq(ask(t, &w[0], point("k"), LOCK_SHARED), LOCK_GRANTED);
    cr_assert_eq(ask(t, &w[2], point("k"), LOCK_EXCLUSIVE), LOCK_WAITING);
    cr_assert_eq(ask(t, &w[1], point("k"), LOCK_SHARED), LOCK_GRANTED, "older than the waiter");
    struct who young;
    who_init(&young, 99);
    cr_assert_eq(ask(t, &young, point("k"), LOCK_SHARED), LOCK_WAITING, "younger than the waiter");
    cr_assert_eq(lock_table_blocker(t, &young.o), &w[2].o);
    lock_table_release(t, &young.o);
    done(t, w, 3);
}

Test(lock_table, rule_c5_an_upgrade_wounds_younger_shared_holders)
{
    struct who w[3];
    struct lock_table *t = table(w, 3);
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(ask(t, &w[i], point("k"), LOCK_SHARED), LOCK_GRANTED);
    }
    cr_assert_eq(ask(t, &w[1], point("k"), LOCK_EXCLUSIVE), LOCK_WAITING);
    cr_assert(w[2].wounded);
    cr_assert(!w[0].wounded);
    cr_assert_eq(ask(t, &w[0], point("k"), LOCK_EXCLUSIVE), LOCK_GRANTED);
    cr_assert(w[1].wounded);
    done(t, w, 3);
}

Test(lock_table, rule_c6_an_exclusive_lock_at_the_read_makes_the_second_one_wait)
{
    struct who w[2];
    struct lock_table *t = table(w, 2);
    cr_assert_eq(ask(t, &w[0], point("k"), LOCK_EXCLUSIVE), LOCK_GRANTED);
    cr_assert_eq(ask(t, &w[1], point("k"), LOCK_EXCLUSIVE), LOCK_WAITING);
    cr_assert_eq(ask_commit(t, &w[0], point("k"), LOCK_EXCLUSIVE), LOCK_GRANTED, "held already");
    lock_table_release(t, &w[0].o);
    cr_assert_eq(lock_table_take_granted(t), &w[1].o);
    cr_assert(!w[1].wounded);
    done(t, w, 2);
}

Test(lock_table, spans_meet_points_and_spans_and_keep_phantoms_out)
{
    struct who w[4];
    struct lock_table *t = table(w, 4);
    cr_assert_eq(ask(t, &w[0], range("b", "d"), LOCK_SHARED), LOCK_GRANTED);
    cr_assert_eq(ask(t, &w[1], point("a"), LOCK_EXCLUSIVE), LOCK_GRANTED);
    cr_assert_eq(ask(t, &w[1], point("d"), LOCK_EXCLUSIVE), LOCK_GRANTED, "the end is not in it");
    cr_assert_eq(ask(t, &w[1], point("b"), LOCK_EXCLUSIVE), LOCK_WAITING);
    cr_assert_eq(ask(t, &w[2], point("cc"), LOCK_EXCLUSIVE), LOCK_WAITING);
    cr_assert_eq(ask(t, &w[3], range("c", ""), LOCK_SHARED), LOCK_WAITING, "w[1] holds d");
    lock_table_release(t, &w[0].o);
    cr_assert_eq(lock_table_take_granted(t), &w[1].o);
    cr_assert_eq(lock_table_take_granted(t), &w[2].o);
    lock_table_release(t, &w[1].o);
    cr_assert_null(lock_table_take_granted(t), "w[2] holds cc");
    lock_table_release(t, &w[2].o);
    cr_assert_eq(lock_table_take_granted(t), &w[3].o);
    struct span k = point("zzz");
    cr_assert(lock_table_holds(t, &w[3].o, &k, LOCK_SHARED), "no end: to the end of the keys");
    cr_assert(!lock_table_holds(t, &w[3].o, &k, LOCK_EXCLUSIVE));
    done(t, w, 4);
}

Test(lock_table, who_may_not_wait_is_refused_and_wounds_only_who_gives_way)
{
    struct who w[3];
    struct lock_table *t = table(w, 3);
    cr_assert_eq(ask(t, &w[0], point("k"), LOCK_SHARED), LOCK_GRANTED);
    cr_assert_eq(ask(t, &w[2], point("k"), LOCK_SHARED), LOCK_GRANTED);
    cr_assert_eq(ask_now(t, &w[1], point("k"), LOCK_EXCLUSIVE), LOCK_REFUSED);
    cr_assert(!w[2].wounded);
    cr_assert_eq(w[1].o.waiting_count, 0);
    lock_table_release(t, &w[0].o);
    cr_assert_eq(ask_now(t, &w[1], point("k"), LOCK_EXCLUSIVE), LOCK_GRANTED);
    cr_assert(w[2].wounded);
    done(t, w, 3);
}

Test(lock_table, giving_up_a_wait_lets_those_behind_it_through)
{
    struct who w[3];
    struct lock_table *t = table(w, 3);
    cr_assert_eq(ask(t, &w[0], point("k"), LOCK_SHARED), LOCK_GRANTED);
    cr_assert_eq(ask(t, &w[1], range("a", "z"), LOCK_EXCLUSIVE), LOCK_WAITING);
    cr_assert_eq(ask(t, &w[2], point("k"), LOCK_SHARED), LOCK_WAITING);
    cr_assert_eq(ask(t, &w[2], point("m"), LOCK_SHARED), LOCK_WAITING);
    lock_table_cancel_waits(t, &w[1].o);
    cr_assert_eq(lock_table_take_granted(t), &w[2].o);
    cr_assert_eq(w[2].o.held_count, 2);
    done(t, w, 3);
}

Test(lock_table, a_report_that_was_not_taken_yet_survives_a_later_grant)
{
    struct who w[3];
    struct lock_table *t = table(w, 3);
    cr_assert_eq(ask(t, &w[0], point("a"), LOCK_EXCLUSIVE), LOCK_GRANTED);
    cr_assert_eq(ask(t, &w[2], point("b"), LOCK_EXCLUSIVE), LOCK_GRANTED);
    cr_assert_eq(ask(t, &w[1], point("a"), LOCK_EXCLUSIVE), LOCK_WAITING);
    lock_table_release(t, &w[0].o); /* w[1] is to be reported */
    cr_assert_eq(ask(t, &w[1], point("b"), LOCK_EXCLUSIVE), LOCK_GRANTED);
    cr_assert(w[2].wounded);
    cr_assert_eq(lock_table_take_granted(t), &w[1].o);
    done(t, w, 3);
}

Test(lock_table, tells_which_owners_reach_a_split_key)
{
    struct who w[1];
    struct lock_table *t = table(w, 1);
    cr_assert_eq(ask(t, &w[0], point("c"), LOCK_SHARED), LOCK_GRANTED);
    cr_assert(!lock_owner_reaches(&w[0].o, slice_str("d")));
    cr_assert(lock_owner_reaches(&w[0].o, slice_str("c")));
    cr_assert_eq(ask(t, &w[0], range("c", "d"), LOCK_SHARED), LOCK_GRANTED);
    cr_assert(!lock_owner_reaches(&w[0].o, slice_str("d")));
    cr_assert_eq(ask(t, &w[0], range("c", "da"), LOCK_SHARED), LOCK_GRANTED);
    cr_assert(lock_owner_reaches(&w[0].o, slice_str("d")));
    done(t, w, 1);
}

/* ---- random steps against a model ---- */

#define OWNERS 12
#define KEYS   6

struct mreq {
    int owner;
    int from; /* a point: to == from; a span: [from, to) in half-open key numbers, to KEYS: no end
               */
    int to;
    bool is_point;
    enum lock_mode mode;
    bool granted;
};

struct mowner {
    struct lock_owner o;
    bool live;
    bool report; /* take_granted owes it */
};

struct model {
    struct lock_table *t;
    struct rng rng;
    struct mowner owners[OWNERS];
    struct mreq reqs[4096];
    size_t count;
    uint64_t next_age;
    uint64_t wounds;
    uint64_t waits;
};

static const char *const key_names[KEYS + 1] = {"a", "b", "bb", "c", "d", "e", ""};

static int age_cmp(const struct model *m, int a, int b)
{
    return txn_id_cmp(&m->owners[a].o.age, &m->owners[b].o.age);
}

static bool meets(const struct mreq *a, const struct mreq *b)
{
    int a_to = a->is_point ? a->from + 1 : a->to;
    int b_to = b->is_point ? b->from + 1 : b->to;
    return a->from < b_to && b->from < a_to;
}

static bool clash(const struct mreq *a, const struct mreq *b)
{
    return a->owner != b->owner && (a->mode == LOCK_EXCLUSIVE || b->mode == LOCK_EXCLUSIVE) &&
           meets(a, b);
}

/* Rule C5: holders, and those that wait ahead. */
static bool in_way(const struct model *m, const struct mreq *of, const struct mreq *r)
{
    return clash(of, r) && (r->granted || age_cmp(m, r->owner, of->owner) < 0);
}

static bool blocked(const struct model *m, const struct mreq *of)
{
    for (size_t i = 0; i < m->count; i++) {
        if (&m->reqs[i] != of && in_way(m, of, &m->reqs[i])) {
            return true;
        }
    }
    return false;
}

static size_t model_waiting(const struct model *m, int owner)
{
    size_t n = 0;
    for (size_t i = 0; i < m->count; i++) {
        n += m->reqs[i].owner == owner && !m->reqs[i].granted ? 1 : 0;
    }
    return n;
}

static void model_settle(struct model *m)
{
    for (bool again = true; again;) {
        again = false;
        for (size_t i = 0; i < m->count; i++) {
            struct mreq *r = &m->reqs[i];
            if (!r->granted && !blocked(m, r)) {
                r->granted = true;
                again = true;
                if (model_waiting(m, r->owner) == 0) {
                    m->owners[r->owner].report = true;
                }
            }
        }
    }
}

static void model_drop(struct model *m, int owner, bool waits_only)
{
    size_t kept = 0;
    for (size_t i = 0; i < m->count; i++) {
        if (m->reqs[i].owner != owner || (waits_only && m->reqs[i].granted)) {
            m->reqs[kept++] = m->reqs[i];
        }
    }
    m->count = kept;
    m->owners[owner].report = false;
    model_settle(m);
}

static bool mcovers(const struct mreq *outer, const struct mreq *inner)
{
    if (outer->is_point) {
        return inner->is_point && outer->from == inner->from;
    }
    int to = inner->is_point ? inner->from + 1 : inner->to;
    return outer->from <= inner->from && to <= outer->to;
}

static bool model_wound(void *ctx, struct lock_owner *victim, const struct lock_owner *by)
{
    struct model *m = ctx;
    (void)by;
    m->wounds++;
    if (victim->unwoundable) {
        return false;
    }
    lock_table_release(m->t, victim);
    return true;
}

/* What acquire must answer; changes the model. */
static enum lock_result model_acquire(struct model *m, struct mreq q, bool commit, bool may_wait)
{
    bool covered_wait = false;
    for (size_t i = 0; i < m->count; i++) {
        const struct mreq *r = &m->reqs[i];
        if (r->owner == q.owner && r->mode >= q.mode && mcovers(r, &q)) {
            if (r->granted) {
                return LOCK_GRANTED;
            }
            covered_wait = true;
        }
    }
    if (covered_wait && !commit) {
        return LOCK_WAITING;
    }
    bool older = false;
    bool stays = false;
    bool any = false;
    for (size_t i = 0; i < m->count; i++) {
        const struct mreq *r = &m->reqs[i];
        if (in_way(m, &q, r)) {
            bool o = age_cmp(m, r->owner, q.owner) < 0;
            any = true;
            older = older || o;
            stays = stays || (!o && m->owners[r->owner].o.unwoundable);
        }
    }
    if ((commit && older) || (!may_wait && (older || stays))) {
        return LOCK_REFUSED;
    }
    if (!any && !covered_wait) {
        q.granted = true;
        m->reqs[m->count++] = q;
        return LOCK_GRANTED;
    }
    bool victims[OWNERS] = {false};
    for (size_t i = 0; i < m->count; i++) {
        const struct mreq *r = &m->reqs[i];
        victims[r->owner] =
            victims[r->owner] || (r->granted && clash(&q, r) && age_cmp(m, q.owner, r->owner) < 0 &&
                                  !m->owners[r->owner].o.unwoundable);
    }
    bool told_later = model_waiting(m, q.owner) > 0 || m->owners[q.owner].report;
    if (!covered_wait) {
        m->reqs[m->count++] = q;
    }
    for (int v = 0; v < OWNERS; v++) {
        if (victims[v]) {
            model_drop(m, v, false);
        }
    }
    for (size_t i = 0; i < m->count; i++) {
        const struct mreq *r = &m->reqs[i];
        if (r->owner == q.owner && r->mode >= q.mode && mcovers(r, &q) && r->granted) {
            if (!told_later) {
                m->owners[q.owner].report = false;
            }
            return LOCK_GRANTED;
        }
    }
    return LOCK_WAITING;
}

struct seen_ctx {
    struct model *m;
    bool matched[4096];
    size_t count;
};

static void match_one(void *ctx, const struct lock_owner *o, const struct span *span,
                      enum lock_mode mode, bool held, uint64_t since_ns)
{
    struct seen_ctx *s = ctx;
    (void)since_ns;
    s->count++;
    for (size_t i = 0; i < s->m->count; i++) {
        const struct mreq *r = &s->m->reqs[i];
        if (!s->matched[i] && &s->m->owners[r->owner].o == o && r->mode == mode &&
            r->granted == held && r->is_point == span->point &&
            slice_eq(span->start, slice_str(key_names[r->from])) &&
            (r->is_point || slice_eq(span->end, slice_str(key_names[r->to])))) {
            s->matched[i] = true;
            return;
        }
    }
    cr_assert_fail("the table has a request that the model has not: owner age %lu mode %d held %d",
                   (unsigned long)o->age.begin_ns, (int)mode, held);
}

static void check_rules(struct model *m)
{
    for (size_t i = 0; i < m->count; i++) {
        const struct mreq *r = &m->reqs[i];
        bool reason = false;
        for (size_t k = 0; k < m->count; k++) {
            const struct mreq *x = &m->reqs[k];
            if (i == k || !clash(r, x)) {
                continue;
            }
            cr_assert(!(r->granted && x->granted), "two conflicting locks are granted");
            if (r->granted || !in_way(m, r, x)) {
                continue;
            }
            reason = true;
            cr_assert(age_cmp(m, x->owner, r->owner) < 0 || m->owners[x->owner].o.unwoundable,
                      "an old one waits for a young one that could be wounded");
        }
        cr_assert(r->granted || reason, "a grant was lost");
    }
    for (int i = 0; i < OWNERS; i++) {
        const struct lock_owner *o = &m->owners[i].o;
        const struct lock_owner *b = lock_table_blocker(m->t, o);
        cr_assert_eq(o->waiting_count, model_waiting(m, i));
        cr_assert_eq(b != NULL, o->waiting_count > 0);
    }
}

static void check_model(struct model *m)
{
    static struct seen_ctx s;
    memset(&s, 0, sizeof s);
    s.m = m;
    lock_table_each(m->t, match_one, &s);
    cr_assert_eq(s.count, m->count);
    cr_assert_eq(lock_table_count(m->t), m->count);
    check_rules(m);
}

static void take_reports(struct model *m)
{
    struct lock_owner *o;
    while ((o = lock_table_take_granted(m->t)) != NULL) {
        struct mowner *w = (struct mowner *)(void *)((char *)o - offsetof(struct mowner, o));
        cr_assert(w->report, "reported without a reason");
        w->report = false;
    }
    for (int i = 0; i < OWNERS; i++) {
        cr_assert(!m->owners[i].report, "owner %d was not reported", i);
    }
}

static void renew(struct model *m, int i)
{
    struct mowner *w = &m->owners[i];
    /* mostly young ones, now and then the retry of an old one (rule C7) */
    struct txn_id id = {++m->next_age, 1, 1};
    struct txn_id age = id;
    if (rng_below(&m->rng, 4) == 0 && m->next_age > 40) {
        age.begin_ns = m->next_age - rng_below(&m->rng, 40);
        age.node = 2 + (uint32_t)i;
    }
    lock_owner_init(&w->o, &id, &age);
    w->report = false;
}

static void step(struct model *m)
{
    int i = (int)rng_below(&m->rng, OWNERS);
    struct lock_owner *o = &m->owners[i].o;
    uint64_t dice = rng_below(&m->rng, 100);
    if (dice < 12) {
        lock_table_release(m->t, o);
        model_drop(m, i, false);
        renew(m, i);
    } else if (dice < 16) {
        lock_table_cancel_waits(m->t, o);
        model_drop(m, i, true);
    } else if (dice < 22) {
        o->unwoundable = o->waiting_count == 0; /* prepared: all its locks are held */
    } else if (o->unwoundable) {
        return; /* asks for nothing more */
    } else {
        struct mreq q = {.owner = i,
                         .from = (int)rng_below(&m->rng, KEYS),
                         .is_point = rng_below(&m->rng, 3) > 0,
                         .mode = rng_below(&m->rng, 2) ? LOCK_SHARED : LOCK_EXCLUSIVE};
        q.to = q.from + 1 + (int)rng_below(&m->rng, (uint64_t)(KEYS - q.from));
        struct lock_request lq = {.owner = o,
                                  .mode = q.mode,
                                  .commit_phase = rng_below(&m->rng, 4) == 0,
                                  .may_wait = rng_below(&m->rng, 8) > 0};
        lq.may_wait = lq.may_wait || lq.commit_phase;
        lq.span.start = slice_str(key_names[q.from]);
        lq.span.point = q.is_point;
        if (!q.is_point) {
            lq.span.end = slice_str(key_names[q.to]);
        }
        enum lock_result want = model_acquire(m, q, lq.commit_phase, lq.may_wait);
        enum lock_result got = lock_table_acquire(m->t, &lq, model_wound, m);
        cr_assert_eq(got, want, "acquire said %d, the model %d", (int)got, (int)want);
        m->waits += got == LOCK_WAITING ? 1 : 0;
    }
}

Test(lock_table, equals_a_naive_model_over_random_steps, .timeout = 120)
{
    static struct model m;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        memset(&m, 0, sizeof m);
        fprintf(stderr, "lock_table seed %lu\r", (unsigned long)seed);
        rng_init(&m.rng, seed);
        m.t = lock_table_new();
        for (int i = 0; i < OWNERS; i++) {
            renew(&m, i);
        }
        for (int n = 0; n < 3000; n++) {
            step(&m);
            check_model(&m);
            if (rng_below(&m.rng, 3) == 0) {
                take_reports(&m);
            }
        }
        cr_assert_gt(m.wounds, 50);
        cr_assert_gt(m.waits, 100);
        for (int i = 0; i < OWNERS; i++) {
            lock_table_release(m.t, &m.owners[i].o);
        }
        cr_assert_eq(lock_table_count(m.t), 0);
        lock_table_free(m.t);
    }
}
