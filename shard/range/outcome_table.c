/* Open addressing with linear probing over 24-byte records; removal by backward shift, so that no
 * tombstones pile up under a constant stream of additions and expiries. Blocks hold the ids in
 * order of addition: first the sealed ones, then those that are full and not sealed yet, the last
 * one takes additions. */
#include "shard/range/outcome_table.h"

#include "base/alloc.h"
#include "base/codec.h"
#include "base/invariant.h"
#include "base/map.h"

struct block {
    struct block *next;
    uint64_t number; /* 0: not sealed */
    uint64_t begin_max_ns;
    size_t count;
    size_t cap;
    struct outcome *records;
};

struct outcome_table {
    struct outcome *slots;
    size_t cap; /* power of two */
    size_t count;
    struct block *first; /* oldest */
    struct block *open;  /* the last one */
    uint64_t next_number;
};

static size_t slot_of(const struct outcome_table *t, const struct txn_id *id)
{
    uint64_t h =
        span_mix64(id->begin_ns ^ ((uint64_t)id->node << 32 | id->seq) * 0x9e3779b97f4a7c15ULL);
    return (size_t)h & (t->cap - 1);
}

static struct block *block_new(void)
{
    return SPAN_NEW(struct block);
}

static void block_free(struct block *b)
{
    span_free(b->records);
    span_free(b);
}

static void block_add(struct block *b, const struct outcome *o)
{
    if (b->count == b->cap) {
        b->cap = b->cap == 0 ? 16 : b->cap * 2;
        b->records = span_realloc(b->records, b->cap * sizeof *b->records);
    }
    b->records[b->count++] = *o;
    if (o->txn.begin_ns > b->begin_max_ns) {
        b->begin_max_ns = o->txn.begin_ns;
    }
}

struct outcome_table *outcome_table_new(void)
{
    struct outcome_table *t = SPAN_NEW(struct outcome_table);
    t->cap = 64;
    t->slots = span_calloc(t->cap, sizeof *t->slots);
    t->first = t->open = block_new();
    t->next_number = 1;
    return t;
}

void outcome_table_free(struct outcome_table *t)
{
    if (t == NULL) {
        return;
    }
    for (struct block *b = t->first; b != NULL;) {
        struct block *next = b->next;
        block_free(b);
        b = next;
    }
    span_free(t->slots);
    span_free(t);
}

static struct outcome *find(const struct outcome_table *t, const struct txn_id *txn)
{
    for (size_t i = slot_of(t, txn);; i = (i + 1) & (t->cap - 1)) {
        struct outcome *o = &t->slots[i];
        if (txn_id_is_none(&o->txn)) {
            return NULL;
        }
        if (txn_id_eq(&o->txn, txn)) {
            return o;
        }
    }
}

const struct outcome *outcome_table_get(const struct outcome_table *t, const struct txn_id *txn)
{
    return find(t, txn);
}

static void insert_slot(struct outcome_table *t, const struct outcome *o)
{
    size_t i = slot_of(t, &o->txn);
    while (!txn_id_is_none(&t->slots[i].txn)) {
        i = (i + 1) & (t->cap - 1);
    }
    t->slots[i] = *o;
    t->count++;
}

static void rehash(struct outcome_table *t, size_t cap)
{
    struct outcome *old = t->slots;
    size_t old_cap = t->cap;
    t->slots = span_calloc(cap, sizeof *t->slots);
    t->cap = cap;
    t->count = 0;
    for (size_t i = 0; i < old_cap; i++) {
        if (!txn_id_is_none(&old[i].txn)) {
            insert_slot(t, &old[i]);
        }
    }
    span_free(old);
}

static void remove_slot(struct outcome_table *t, const struct txn_id *txn)
{
    struct outcome *o = find(t, txn);
    if (o == NULL) {
        return;
    }
    size_t hole = (size_t)(o - t->slots);
    for (size_t i = (hole + 1) & (t->cap - 1); !txn_id_is_none(&t->slots[i].txn);
         i = (i + 1) & (t->cap - 1)) {
        size_t home = slot_of(t, &t->slots[i].txn);
        /* move back unless its home lies strictly between the hole and i */
        if (((i - home) & (t->cap - 1)) >= ((i - hole) & (t->cap - 1))) {
            t->slots[hole] = t->slots[i];
            hole = i;
        }
    }
    t->slots[hole] = (struct outcome){0};
    t->count--;
}

static span_status add(struct outcome_table *t, struct block *b, const struct outcome *o)
{
    REQUIRE(!txn_id_is_none(&o->txn));
    const struct outcome *have = find(t, &o->txn);
    if (have != NULL) {
        return have->ts.ns == o->ts.ns ? SPAN_OK : SPAN_EXISTS;
    }
    if ((t->count + 1) * 4 > t->cap * 3) {
        rehash(t, t->cap * 2);
    }
    insert_slot(t, o);
    block_add(b, o);
    if (b == t->open && b->count == OUTCOME_BLOCK_MAX) {
        t->open = block_new();
        b->next = t->open;
    }
    return SPAN_OK;
}

/* Where the first block that is not sealed hangs. */
static struct block **first_unsealed(struct outcome_table *t)
{
    struct block **at = &t->first;
    while ((*at)->number != 0) {
        at = &(*at)->next;
    }
    return at;
}

span_status outcome_table_add(struct outcome_table *t, const struct txn_id *txn, struct tt_ts ts)
{
    struct outcome o = {*txn, ts};
    return add(t, t->open, &o);
}

size_t outcome_table_count(const struct outcome_table *t)
{
    return t->count;
}

uint64_t outcome_table_seal(struct outcome_table *t, struct buf *out)
{
    struct block *b = *first_unsealed(t);
    if (b->count == 0) {
        return 0;
    }
    enc_u8(out, 1);
    enc_var(out, b->count);
    for (size_t i = 0; i < b->count; i++) {
        enc_u64(out, b->records[i].txn.begin_ns);
        enc_u32(out, b->records[i].txn.node);
        enc_u32(out, b->records[i].txn.seq);
        enc_u64(out, b->records[i].ts.ns);
    }
    b->number = t->next_number++;
    if (b == t->open) {
        t->open = block_new();
        b->next = t->open;
    }
    return b->number;
}

span_status outcome_table_load(struct outcome_table *t, uint64_t number, struct slice in)
{
    struct cursor c = cursor_of(in);
    uint8_t version = dec_u8(&c);
    size_t count = dec_count(&c, 24);
    if (!cursor_ok(&c) || version != 1 || number == 0) {
        return SPAN_PROTOCOL;
    }
    struct block *b = block_new();
    b->number = number;
    struct block **at = first_unsealed(t);
    b->next = *at;
    *at = b;
    for (size_t i = 0; i < count; i++) {
        struct outcome o;
        o.txn.begin_ns = dec_u64(&c);
        o.txn.node = dec_u32(&c);
        o.txn.seq = dec_u32(&c);
        o.ts = tt_ts_of(dec_u64(&c));
        if (!cursor_ok(&c) || txn_id_is_none(&o.txn) || add(t, b, &o) != SPAN_OK) {
            return SPAN_PROTOCOL;
        }
    }
    if (number >= t->next_number) {
        t->next_number = number + 1;
    }
    return cursor_done(&c) ? SPAN_OK : SPAN_PROTOCOL;
}

void outcome_table_expire(struct outcome_table *t, struct tt_ts w,
                          void (*gone)(void *ctx, uint64_t number), void *ctx)
{
    struct block **at = &t->first;
    while ((*at)->number != 0) {
        struct block *b = *at;
        if (b->begin_max_ns >= w.ns) {
            at = &b->next;
            continue;
        }
        for (size_t i = 0; i < b->count; i++) {
            remove_slot(t, &b->records[i].txn);
        }
        gone(ctx, b->number);
        *at = b->next;
        block_free(b);
    }
}

void outcome_table_each(const struct outcome_table *t,
                        void (*fn)(void *ctx, const struct outcome *o), void *ctx)
{
    for (const struct block *b = t->first; b != NULL; b = b->next) {
        for (size_t i = 0; i < b->count; i++) {
            fn(ctx, &b->records[i]);
        }
    }
}
