/* Promises and leases: the rules are in the header. */
#include "shard/raft/raft_lease.h"

#include "base/invariant.h"
#include "base/planted.h"

bool raft_clock_is_good(const struct tt_now *now)
{
    return PLANTED(FENCED_CLOCK_SERVES) || now->state == CLOCK_SYNCED ||
           now->state == CLOCK_WIDENED;
}

void raft_promise_init(struct raft_promise *p, bool fresh, struct tt_ts promised, raft_term term)
{
    memset(p, 0, sizeof(*p));
    p->term = term;
    p->in_term = promised;
    p->clock_unseen = !fresh && !PLANTED(LEASE_FORGOTTEN);
}

void raft_promise_see_clock(struct raft_promise *p, const struct tt_now *now)
{
    if (!p->clock_unseen || !raft_clock_is_good(now)) {
        return;
    }
    /* Rule B3: whatever was promised before the crash was <= some leader's earliest at that time +
     * LEASE_NS_MAX, and true time is <= our latest now. */
    p->clock_unseen = false;
    p->bound = tt_max(p->bound, tt_add(now->tt.latest, LEASE_NS_MAX));
}

/* A promise to a new term begins: the one before can no longer be voided by a release. */
static void promise_enter_term(struct raft_promise *p, raft_term term)
{
    REQUIRE(term >= p->term);
    if (term != p->term) {
        p->bound = tt_max(p->bound, p->in_term);
        p->term = term;
        p->in_term = tt_ts_of(0);
    }
}

struct tt_ts raft_promise_give(struct raft_promise *p, const struct tt_now *now, raft_term term,
                               struct tt_ts e)
{
    promise_enter_term(p, term);
    if (tt_le(e, tt_add(now->tt.latest, LEASE_NS_MAX))) {
        p->in_term = tt_max(p->in_term, e);
    }
    return p->in_term;
}

void raft_promise_use(struct raft_promise *p, raft_term term, struct tt_ts e)
{
    promise_enter_term(p, term);
    p->in_term = tt_max(p->in_term, e);
}

bool raft_promise_is_over(const struct raft_promise *p, const struct tt_now *now,
                          raft_term released_term)
{
    if (p->clock_unseen || !raft_clock_is_good(now) || !tt_after(&now->tt, p->bound)) {
        return false;
    }
    if (released_term != 0 && released_term == p->term) {
        return true;
    }
    return tt_after(&now->tt, p->in_term);
}

void raft_promise_release(struct raft_promise *p, raft_term term, struct tt_ts release)
{
    if (p->term == term) {
        p->in_term = tt_ts_of(0);
    }
    p->floor = tt_max(p->floor, release);
}

struct tt_ts raft_promise_greatest(const struct raft_promise *p)
{
    return tt_max(raft_promise_end(p), p->floor);
}

struct tt_ts raft_promise_end(const struct raft_promise *p)
{
    return tt_max(p->bound, p->in_term);
}

uint64_t raft_promise_wait_ns(const struct raft_promise *p, const struct tt_now *now)
{
    struct tt_ts end = raft_promise_end(p);
    if (p->clock_unseen || !raft_clock_is_good(now) || tt_after(&now->tt, end)) {
        return 0;
    }
    return end.ns - now->tt.earliest.ns + 1;
}

struct tt_ts raft_lease_ask(const struct tt_now *now, uint64_t lease_ns)
{
    return raft_clock_is_good(now) ? tt_add(now->tt.earliest, lease_ns) : tt_ts_of(0);
}
