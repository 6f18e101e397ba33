/* Per-member progress: see the drawing in the header. */
#include "shard/raft/raft_progress.h"

#include "base/invariant.h"

static void progress_check(const struct raft_progress *p)
{
    INVARIANT(p->match < p->next);
    INVARIANT(p->inflight_count <= LIMIT_INFLIGHT_APPENDS);
}

void raft_progress_init(struct raft_progress *p, uint32_t node, raft_index last, uint64_t mono_ns)
{
    memset(p, 0, sizeof(*p));
    p->node = node;
    p->state = RAFT_PROBE;
    p->next = last + 1;
    p->answered_mono_ns = mono_ns;
}

void raft_progress_probe(struct raft_progress *p, raft_index next, bool paused)
{
    p->state = RAFT_PROBE;
    p->paused = paused;
    p->next = next > p->match ? next : p->match + 1;
    p->inflight_count = 0;
    progress_check(p);
}

void raft_progress_replicate(struct raft_progress *p, raft_index accepted)
{
    p->state = RAFT_REPLICATE;
    p->paused = false;
    p->next = (accepted > p->match ? accepted : p->match) + 1;
    p->inflight_count = 0;
    progress_check(p);
}

void raft_progress_snapshot(struct raft_progress *p)
{
    p->state = RAFT_SNAPSHOT;
    p->paused = false;
    p->snapshot_told = false;
    p->inflight_count = 0;
}

bool raft_progress_may_send(const struct raft_progress *p, raft_index last)
{
    switch (p->state) {
    case RAFT_PROBE:
        return !p->paused;
    case RAFT_REPLICATE:
        return p->next <= last && p->inflight_count < LIMIT_INFLIGHT_APPENDS;
    case RAFT_SNAPSHOT:
        return false;
    }
    return false;
}

void raft_progress_sent(struct raft_progress *p, raft_index last)
{
    REQUIRE(last + 1 >= p->next);
    if (p->state == RAFT_PROBE) {
        p->paused = true;
        return;
    }
    REQUIRE(p->state == RAFT_REPLICATE);
    REQUIRE(p->inflight_count < LIMIT_INFLIGHT_APPENDS);
    size_t at = (p->inflight_head + p->inflight_count) % LIMIT_INFLIGHT_APPENDS;
    p->inflight[at] = last;
    p->inflight_count++;
    p->next = last + 1;
    progress_check(p);
}

void raft_progress_acked(struct raft_progress *p, raft_index match, raft_index accepted)
{
    if (match > p->match) {
        p->match = match;
    }
    raft_index next = (accepted > p->match ? accepted : p->match) + 1;
    if (next > p->next) {
        p->next = next;
    }
    while (p->inflight_count > 0 && p->inflight[p->inflight_head] <= p->match) {
        p->inflight_head = (p->inflight_head + 1) % LIMIT_INFLIGHT_APPENDS;
        p->inflight_count--;
    }
    progress_check(p);
}
