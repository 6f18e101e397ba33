/* The descriptor cache. An array sorted by start key, because look-ups (one or more a request)
 * matter and changes are rare. */
#include "coordinator/route/directory.h"

#include "base/alloc.h"
#include "base/invariant.h"

void directory_init(struct directory *d)
{
    memset(d, 0, sizeof *d);
    map64_init(&d->by_id);
}

static void dir_range_free(struct dir_range *r)
{
    buf_deinit(&r->start);
    buf_deinit(&r->end);
    span_free(r);
}

void directory_deinit(struct directory *d)
{
    for (size_t i = 0; i < d->count; i++) {
        dir_range_free(d->ranges[i]);
    }
    span_free(d->ranges);
    map64_deinit(&d->by_id);
    memset(d, 0, sizeof *d);
}

/* Order of end keys: empty is the end of the key space. */
static int end_cmp(struct slice a, struct slice b)
{
    if (a.size == 0 || b.size == 0) {
        return a.size == b.size ? 0 : a.size == 0 ? 1 : -1;
    }
    return slice_cmp(a, b);
}

/* key < end */
static bool below_end(struct slice key, struct slice end)
{
    return end.size == 0 || slice_cmp(key, end) < 0;
}

bool dir_range_covers(const struct dir_range *r, struct slice key)
{
    return slice_cmp(key, buf_slice(&r->start)) >= 0 && below_end(key, buf_slice(&r->end));
}

bool dir_range_covers_span(const struct dir_range *r, struct slice start, struct slice end)
{
    return slice_cmp(start, buf_slice(&r->start)) >= 0 && end_cmp(end, buf_slice(&r->end)) <= 0;
}

/* Index of the first range whose start is above key. */
static size_t above(const struct directory *d, struct slice key)
{
    size_t lo = 0;
    size_t hi = d->count;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (slice_cmp(buf_slice(&d->ranges[mid]->start), key) <= 0) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo;
}

struct dir_range *directory_lookup(const struct directory *d, struct slice key)
{
    size_t at = above(d, key);
    if (at == 0) {
        return NULL;
    }
    struct dir_range *r = d->ranges[at - 1];
    return dir_range_covers(r, key) ? r : NULL;
}

struct dir_range *directory_by_id(const struct directory *d, range_id id)
{
    return map64_get(&d->by_id, id);
}

static bool overlaps(const struct dir_range *r, const struct range_descriptor *x)
{
    return below_end(buf_slice(&r->start), x->end) && below_end(x->start, buf_slice(&r->end));
}

static void remove_at(struct directory *d, size_t at)
{
    struct dir_range *r = d->ranges[at];
    map64_remove(&d->by_id, r->range);
    memmove(&d->ranges[at], &d->ranges[at + 1], (d->count - at - 1) * sizeof *d->ranges);
    d->count--;
    dir_range_free(r);
}

static void insert(struct directory *d, struct dir_range *r)
{
    if (d->count == d->cap) {
        d->cap = d->cap == 0 ? 16 : d->cap * 2;
        d->ranges = span_realloc(d->ranges, d->cap * sizeof *d->ranges);
    }
    size_t at = above(d, buf_slice(&r->start));
    memmove(&d->ranges[at + 1], &d->ranges[at], (d->count - at) * sizeof *d->ranges);
    d->ranges[at] = r;
    d->count++;
    void *old = map64_put(&d->by_id, r->range, r);
    INVARIANT(old == NULL);
}

static void take_members(struct dir_range *r, const struct range_descriptor *x)
{
    r->generation = x->generation;
    r->member_count = x->member_count;
    memcpy(r->members, x->members, sizeof r->members);
}

/* A range keeps its id through splits, so a newer descriptor of an id replaces the older one;
 * anything of another id that it overlaps must be older in truth, and is dropped unless its
 * generation says otherwise. */
bool directory_learn(struct directory *d, const struct range_descriptor *x)
{
    if (x->range == 0 || x->member_count > LIMIT_REPLICAS ||
        (x->end.size > 0 && slice_cmp(x->start, x->end) >= 0)) {
        return false;
    }
    struct dir_range *known = directory_by_id(d, x->range);
    if (known != NULL && x->generation <= known->generation) {
        if (x->generation == known->generation && known->leader == 0) {
            known->leader = x->leader;
        }
        return false;
    }
    for (size_t i = 0; i < d->count; i++) {
        const struct dir_range *r = d->ranges[i];
        if (r != known && overlaps(r, x) && r->generation > x->generation) {
            return false;
        }
    }
    node_id leader = x->leader;
    uint64_t term = 0;
    if (known != NULL) {
        if (known->leader != 0) {
            leader = known->leader;
        }
        term = known->leader_term;
    }
    for (size_t i = d->count; i-- > 0;) {
        if (d->ranges[i] == known || overlaps(d->ranges[i], x)) {
            remove_at(d, i);
        }
    }
    struct dir_range *r = SPAN_NEW(struct dir_range);
    r->range = x->range;
    r->leader = leader;
    r->leader_term = term;
    buf_set(&r->start, x->start);
    buf_set(&r->end, x->end);
    take_members(r, x);
    insert(d, r);
    d->version++;
    return true;
}

bool directory_hint(struct directory *d, range_id id, node_id leader, uint64_t term)
{
    struct dir_range *r = directory_by_id(d, id);
    if (r == NULL || (term != 0 && term < r->leader_term)) {
        return false;
    }
    r->leader = leader;
    if (term != 0) {
        r->leader_term = term;
    }
    return true;
}

void directory_unhint(struct directory *d, range_id id, node_id node)
{
    struct dir_range *r = directory_by_id(d, id);
    if (r != NULL && r->leader == node) {
        r->leader = 0;
    }
}

void directory_unhint_node(struct directory *d, node_id node)
{
    for (size_t i = 0; i < d->count; i++) {
        if (d->ranges[i]->leader == node) {
            d->ranges[i]->leader = 0;
        }
    }
}
