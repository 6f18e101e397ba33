/* Sticky state and pins; wal_index.h says what they are. */
#include "shard/wal/wal_index.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/planted.h"
#include "shard/wal/wal_segment.h"

struct sticky {
    uint8_t kind;
    struct buf payload;
};

struct index_range {
    uint64_t id;
    uint64_t released;
    struct list pins; /* of pin_node by range_link, oldest segment first */
    struct sticky *stickies;
    uint32_t sticky_count;
};

struct pin_node {
    struct list range_link;
    struct list seg_link;
    struct wal_pins *seg;
    uint64_t range;
    uint64_t min;
    uint64_t max;
};

void wal_index_init(struct wal_index *ix)
{
    *ix = (struct wal_index){0};
    map64_init(&ix->ranges);
}

static void pin_free(struct pin_node *p)
{
    list_remove(&p->range_link);
    list_remove(&p->seg_link);
    span_free(p);
}

static void range_free(struct wal_index *ix, struct index_range *r)
{
    LIST_EACH_SAFE(it, tmp, &r->pins)
    {
        pin_free(LIST_ENTRY(it, struct pin_node, range_link));
    }
    for (uint32_t i = 0; i < r->sticky_count; i++) {
        ix->sticky_bytes -= RECORD_HEADER_BYTES + r->stickies[i].payload.size;
        ix->sticky_count--;
        buf_deinit(&r->stickies[i].payload);
    }
    span_free(r->stickies);
    span_free(r);
}

void wal_index_deinit(struct wal_index *ix)
{
    size_t pos = 0;
    uint64_t id;
    struct index_range *r;
    while ((r = map64_next(&ix->ranges, &pos, &id)) != NULL) {
        range_free(ix, r);
    }
    INVARIANT(ix->sticky_bytes == 0);
    map64_deinit(&ix->ranges);
}

void wal_pins_init(struct wal_pins *p)
{
    list_init(&p->list);
}

bool wal_pins_is_empty(const struct wal_pins *p)
{
    return list_is_empty(&p->list);
}

static struct index_range *range_get(struct wal_index *ix, uint64_t id)
{
    struct index_range *r = map64_get(&ix->ranges, id);
    if (r == NULL) {
        r = SPAN_NEW(struct index_range);
        r->id = id;
        list_init(&r->pins);
        map64_put(&ix->ranges, id, r);
    }
    return r;
}

void wal_index_entries(struct wal_index *ix, struct wal_pins *seg, uint64_t range, uint64_t first,
                       uint64_t last)
{
    REQUIRE(first > 0 && first <= last);
    struct index_range *r = range_get(ix, range);
    struct pin_node *own = NULL;
    while (!list_is_empty(&r->pins)) {
        struct pin_node *p = LIST_ENTRY(r->pins.prev, struct pin_node, range_link);
        if (p->seg == seg) {
            own = p;
            own->min = first < own->min ? first : own->min;
            own->max = last;
            /* Older segments lie before it in the list and may still reach beyond `first`. */
            list_remove(&own->range_link);
            continue;
        }
        if (p->max < first) {
            break;
        }
        p->max = first - 1;
        if (p->max < p->min || p->max <= r->released) {
            pin_free(p);
            continue;
        }
        break; /* max == first - 1: what is older ends lower still */
    }
    if (own == NULL) {
        own = SPAN_NEW(struct pin_node);
        own->seg = seg;
        own->range = range;
        own->min = first;
        own->max = last;
        list_init(&own->range_link);
        list_init(&own->seg_link);
        list_push_back(&seg->list, &own->seg_link);
    }
    list_push_back(&r->pins, &own->range_link);
    if (own->max <= r->released) {
        pin_free(own);
    }
}

void wal_index_sticky(struct wal_index *ix, uint64_t range, uint8_t kind, struct slice payload)
{
    struct index_range *r = range_get(ix, range);
    struct sticky *s = NULL;
    for (uint32_t i = 0; i < r->sticky_count && s == NULL; i++) {
        s = r->stickies[i].kind == kind ? &r->stickies[i] : NULL;
    }
    if (s == NULL) {
        r->stickies = span_realloc(r->stickies, (r->sticky_count + 1) * sizeof *s);
        s = &r->stickies[r->sticky_count++];
        *s = (struct sticky){.kind = kind};
        ix->sticky_bytes += RECORD_HEADER_BYTES;
        ix->sticky_count++;
    }
    ix->sticky_bytes -= s->payload.size;
    buf_set(&s->payload, payload);
    ix->sticky_bytes += s->payload.size;
}

void wal_index_tombstone(struct wal_index *ix, uint64_t range)
{
    struct index_range *r = map64_remove(&ix->ranges, range);
    if (r != NULL) {
        range_free(ix, r);
    }
}

void wal_index_release(struct wal_index *ix, uint64_t range, uint64_t index)
{
    struct index_range *r = map64_get(&ix->ranges, range);
    if (r == NULL || index <= r->released) {
        return;
    }
    r->released = index;
    while (!list_is_empty(&r->pins)) {
        struct pin_node *p = LIST_ENTRY(r->pins.next, struct pin_node, range_link);
        if (p->max > index) {
            break;
        }
        pin_free(p);
    }
}

bool wal_index_get(const struct wal_index *ix, uint64_t range, uint8_t kind, struct slice *out)
{
    const struct index_range *r = map64_get(&ix->ranges, range);
    for (uint32_t i = 0; r != NULL && i < r->sticky_count; i++) {
        if (r->stickies[i].kind == kind) {
            *out = buf_slice(&r->stickies[i].payload);
            return true;
        }
    }
    return false;
}

void wal_index_apply(struct wal_index *ix, struct wal_pins *seg, const struct wal_batch *b)
{
    for (size_t i = 0; i < b->op_count; i++) {
        const struct wal_batch_op *op = &b->ops[i];
        switch (op->kind) {
        case WAL_ENTRY:
            wal_index_entries(ix, seg, op->range, op->first, op->last);
            break;
        case WAL_STICKY: {
            struct record_cursor c =
                record_cursor_of(slice_of(b->bytes.data + op->offset, b->bytes.size - op->offset));
            struct wal_record r;
            int got = record_next(&c, &r);
            INVARIANT(got == 1 && r.kind == WAL_STICKY && r.range == op->range);
            wal_index_sticky(ix, r.range, r.type, r.payload);
            break;
        }
        case WAL_TOMBSTONE:
            wal_index_tombstone(ix, op->range);
            break;
        }
    }
}

/* The planted bug of rule H3 in a state that was just written: kind 1 is the hard state, which ends
 * with the vote (shard/range/store.h). The log itself knows no kinds. */
static void forget_vote(struct buf *out, const struct sticky *s)
{
    if (PLANTED(HARD_STATE_RECYCLED) && s->kind == 1 && s->payload.size > 4) {
        memset(out->data + out->size - 4, 0, 4);
    }
}

void wal_index_encode(const struct wal_index *ix, struct buf *out)
{
    size_t before = out->size;
    buf_reserve(out, ix->sticky_bytes);
    size_t pos = 0;
    uint64_t id;
    const struct index_range *r;
    while ((r = map64_next(&ix->ranges, &pos, &id)) != NULL) {
        for (uint32_t i = 0; i < r->sticky_count; i++) {
            record_encode(out, &(struct wal_record){.kind = WAL_STICKY,
                                                    .type = r->stickies[i].kind,
                                                    .range = id,
                                                    .payload = buf_slice(&r->stickies[i].payload)});
            forget_vote(out, &r->stickies[i]);
        }
    }
    ENSURE(out->size - before == ix->sticky_bytes);
}

size_t wal_index_pins(const struct wal_pins *seg, struct wal_pin *out, size_t max)
{
    size_t n = 0;
    for (const struct list *it = seg->list.next; it != &seg->list && n < max; it = it->next) {
        const char *base = (const char *)it - offsetof(struct pin_node, seg_link);
        const struct pin_node *p = (const struct pin_node *)(const void *)base;
        out[n++] = (struct wal_pin){p->range, p->max};
    }
    return n;
}
