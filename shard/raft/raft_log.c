/* The in-memory log. A grow-only array with a moving head: compaction drops from the front by
 * moving the head, and the array is pulled down when half of it is dead, so each entry moves O(1)
 * times. */
#include "shard/raft/raft_log.h"

#include "base/alloc.h"
#include "base/invariant.h"

void raft_log_init(struct raft_log *l, raft_index base_index, raft_term base_term)
{
    memset(l, 0, sizeof(*l));
    l->base_index = base_index;
    l->base_term = base_term;
}

void raft_log_deinit(struct raft_log *l)
{
    raft_log_truncate(l, l->base_index + 1);
    span_free(l->slots);
    memset(l, 0, sizeof(*l));
}

raft_index raft_log_last(const struct raft_log *l)
{
    return l->base_index + l->count;
}

raft_term raft_log_last_term(const struct raft_log *l)
{
    return l->count == 0 ? l->base_term : l->slots[l->head + l->count - 1].term;
}

const struct raft_entry *raft_log_at(const struct raft_log *l, raft_index index)
{
    if (index <= l->base_index || index > raft_log_last(l)) {
        return NULL;
    }
    return &l->slots[l->head + (index - l->base_index - 1)];
}

bool raft_log_term(const struct raft_log *l, raft_index index, raft_term *term)
{
    if (index == l->base_index) {
        *term = l->base_term;
        return true;
    }
    const struct raft_entry *e = raft_log_at(l, index);
    if (e == NULL) {
        return false;
    }
    *term = e->term;
    return true;
}

bool raft_log_matches(const struct raft_log *l, raft_index index, raft_term term)
{
    raft_term have = 0;
    return raft_log_term(l, index, &have) && have == term;
}

const struct raft_entry *raft_log_from(const struct raft_log *l, raft_index index, size_t *count)
{
    REQUIRE(index > l->base_index);
    raft_index last = raft_log_last(l);
    if (index > last) {
        *count = 0;
        return NULL;
    }
    *count = (size_t)(last - index + 1);
    return raft_log_at(l, index);
}

bool raft_log_is_up_to_date(const struct raft_log *l, raft_index index, raft_term term)
{
    raft_term mine = raft_log_last_term(l);
    return term > mine || (term == mine && index >= raft_log_last(l));
}

raft_index raft_log_find(const struct raft_log *l, raft_index index, raft_term term)
{
    raft_index hi = index < raft_log_last(l) ? index : raft_log_last(l);
    raft_index lo = l->base_index;
    if (hi <= lo) {
        return lo;
    }
    while (lo < hi) { /* terms never fall along the log */
        raft_index mid = lo + (hi - lo + 1) / 2;
        const struct raft_entry *e = raft_log_at(l, mid);
        INVARIANT(e != NULL);
        if (e->term <= term) {
            lo = mid;
        } else {
            hi = mid - 1;
        }
    }
    return lo;
}

static void log_make_room(struct raft_log *l)
{
    if (l->head + l->count < l->cap) {
        return;
    }
    if (l->head > 0 && l->head >= l->cap / 2) {
        memmove(l->slots, l->slots + l->head, l->count * sizeof(l->slots[0]));
        l->head = 0;
        return;
    }
    l->cap = l->cap == 0 ? 64 : l->cap * 2;
    l->slots = (struct raft_entry *)span_realloc(l->slots, l->cap * sizeof(l->slots[0]));
}

void raft_log_append(struct raft_log *l, const struct raft_entry *e)
{
    REQUIRE(e->index == raft_log_last(l) + 1);
    REQUIRE(e->term >= raft_log_last_term(l));
    REQUIRE(e->type != RAFT_ENTRY_NONE);
    log_make_room(l);
    l->slots[l->head + l->count] = *e;
    raft_blob_ref(e->payload);
    l->count++;
    l->bytes += raft_blob_slice(e->payload).size;
}

static void log_drop(struct raft_log *l, struct raft_entry *e)
{
    size_t n = raft_blob_slice(e->payload).size;
    INVARIANT(l->bytes >= n);
    l->bytes -= n;
    raft_blob_unref(e->payload);
    memset(e, 0, sizeof(*e));
}

void raft_log_truncate(struct raft_log *l, raft_index from)
{
    REQUIRE(from > l->base_index);
    while (raft_log_last(l) >= from) {
        log_drop(l, &l->slots[l->head + l->count - 1]);
        l->count--;
    }
}

void raft_log_compact(struct raft_log *l, raft_index index)
{
    REQUIRE(index > l->base_index);
    REQUIRE(index <= raft_log_last(l));
    while (l->base_index < index) {
        struct raft_entry *e = &l->slots[l->head];
        l->base_index = e->index;
        l->base_term = e->term;
        log_drop(l, e);
        l->head++;
        l->count--;
    }
    if (l->count == 0) {
        l->head = 0;
    }
}

void raft_log_reset(struct raft_log *l, raft_index index, raft_term term)
{
    raft_log_truncate(l, l->base_index + 1);
    l->head = 0;
    l->base_index = index;
    l->base_term = term;
}
