/* The memory table: see memtable.h for its shape. */
#include "shard/engine/memtable.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/map.h"

/* A node may host a thousand ranges that are nearly idle, so the arena starts small and doubles. */
#define CHUNK_BYTES_MIN  4096
#define CHUNK_BYTES_MAX  (256 * 1024)
#define BUCKET_COUNT_MIN 64
/* Replaceable values at least this large get blocks of their own. */
#define BLOCK_BYTES_MIN 2048

struct arena_chunk {
    struct arena_chunk *older;
    size_t size; /* bytes after the header */
    size_t used;
};

struct value_block {
    struct list link;
    uint64_t bytes;
};

void memtable_init(struct memtable *t)
{
    *t = (struct memtable){.random = 0x9e3779b97f4a7c15ULL};
    list_init(&t->blocks);
}

void memtable_deinit(struct memtable *t)
{
    struct arena_chunk *c = t->chunks;
    while (c != NULL) {
        struct arena_chunk *older = c->older;
        span_free(c);
        c = older;
    }
    LIST_EACH_SAFE(it, tmp, &t->blocks)
    {
        span_free(LIST_ENTRY(it, struct value_block, link));
    }
    span_free(t->buckets);
    memtable_init(t);
}

static void *arena_alloc(struct memtable *t, size_t size)
{
    size = (size + 7) & ~(size_t)7;
    struct arena_chunk *c = t->chunks;
    if (c == NULL || c->size - c->used < size) {
        size_t want = c == NULL ? CHUNK_BYTES_MIN : c->size * 2;
        want = want > CHUNK_BYTES_MAX ? CHUNK_BYTES_MAX : want;
        want = want < size ? size : want;
        c = span_malloc(sizeof *c + want);
        c->older = t->chunks;
        c->size = want;
        c->used = 0;
        t->chunks = c;
        t->bytes += sizeof *c + want;
    }
    uint8_t *p = (uint8_t *)(c + 1) + c->used;
    c->used += size;
    return p;
}

static uint8_t *block_alloc(struct memtable *t, size_t size)
{
    struct value_block *b = span_malloc(sizeof *b + size);
    b->bytes = sizeof *b + size;
    list_push_back(&t->blocks, &b->link);
    t->bytes += b->bytes;
    return (uint8_t *)(b + 1);
}

static void block_free(struct memtable *t, uint8_t *data)
{
    struct value_block *b = (struct value_block *)(void *)data - 1;
    t->bytes -= b->bytes;
    list_remove(&b->link);
    span_free(b);
}

/* Height h with probability 4^-(h-1). */
static uint32_t draw_height(struct memtable *t)
{
    t->random ^= t->random << 13;
    t->random ^= t->random >> 7;
    t->random ^= t->random << 17;
    uint32_t h = 1;
    for (uint64_t bits = t->random >> 16; h < MEM_HEIGHT_MAX && (bits & 3) == 0; bits >>= 2) {
        h++;
    }
    return h;
}

static bool key_is(const struct mem_key *k, uint64_t hash, struct slice key)
{
    return k->hash == hash && k->size == key.size && memcmp(k->bytes, key.data, key.size) == 0;
}

static struct mem_key *find_hashed(const struct memtable *t, uint64_t hash, struct slice key)
{
    if (t->bucket_count == 0) {
        return NULL;
    }
    size_t mask = t->bucket_count - 1;
    for (size_t i = (size_t)hash & mask;; i = (i + 1) & mask) {
        struct mem_key *k = t->buckets[i];
        if (k == NULL || key_is(k, hash, key)) {
            return k;
        }
    }
}

static void bucket_add(struct memtable *t, struct mem_key *k)
{
    size_t mask = t->bucket_count - 1;
    size_t i = (size_t)k->hash & mask;
    while (t->buckets[i] != NULL) {
        i = (i + 1) & mask;
    }
    t->buckets[i] = k;
}

/* Keeps the buckets at most two thirds full. */
static void buckets_grow(struct memtable *t)
{
    if ((t->key_count + 1) * 3 <= t->bucket_count * 2) {
        return;
    }
    span_free(t->buckets);
    t->bytes -= t->bucket_count * sizeof *t->buckets;
    t->bucket_count = t->bucket_count == 0 ? BUCKET_COUNT_MIN : t->bucket_count * 2;
    t->buckets = span_calloc(t->bucket_count, sizeof *t->buckets);
    t->bytes += t->bucket_count * sizeof *t->buckets;
    for (struct mem_key *k = memtable_first(t); k != NULL; k = mem_key_next(k)) {
        bucket_add(t, k);
    }
}

/* The last node before key at every level; NULL stands for the head. Returns the one at level 0. */
static struct mem_key *find_before(const struct memtable *t, struct slice key,
                                   struct mem_key *before[MEM_HEIGHT_MAX])
{
    struct mem_key *at = NULL;
    struct mem_key *known_above = NULL; /* spares comparing the same successor on the next level */
    for (uint32_t level = t->height; level-- > 0;) {
        struct mem_key *next = at == NULL ? t->head[level] : at->next[level];
        while (next != NULL && next != known_above && slice_cmp(mem_key_slice(next), key) < 0) {
            at = next;
            next = at->next[level];
        }
        known_above = next;
        if (before != NULL) {
            before[level] = at;
        }
    }
    return at;
}

static struct mem_key *key_insert(struct memtable *t, uint64_t hash, struct slice key)
{
    buckets_grow(t);
    uint32_t height = draw_height(t);
    struct mem_key *k = arena_alloc(t, sizeof *k + height * sizeof k->next[0] + key.size);
    uint8_t *bytes = (uint8_t *)&k->next[height];
    memcpy(bytes, key.data, key.size);
    *k = (struct mem_key){
        .bytes = bytes, .hash = hash, .size = (uint32_t)key.size, .height = height};

    struct mem_key *before[MEM_HEIGHT_MAX] = {NULL};
    if (t->last != NULL && slice_cmp(mem_key_slice(t->last), key) < 0) {
        /* Appends are common: only the levels matter, and the last node of each is found from the
         * top without comparing keys. */
        struct mem_key *at = NULL;
        for (uint32_t level = t->height; level-- > 0;) {
            struct mem_key *next = at == NULL ? t->head[level] : at->next[level];
            while (next != NULL) {
                at = next;
                next = at->next[level];
            }
            before[level] = at;
        }
    } else {
        (void)find_before(t, key, before);
    }
    for (uint32_t level = 0; level < height; level++) {
        struct mem_key **link =
            before[level] == NULL ? &t->head[level] : &before[level]->next[level];
        k->next[level] = *link;
        *link = k;
    }
    t->height = t->height < height ? height : t->height;
    k->prev = before[0];
    if (k->next[0] == NULL) {
        t->last = k;
    } else {
        k->next[0]->prev = k;
    }
    t->key_count++;
    bucket_add(t, k);
    return k;
}

void memtable_add(struct memtable *t, struct slice key, uint64_t ts, struct slice value,
                  bool tombstone)
{
    uint64_t hash = span_hash64(key.data, key.size);
    struct mem_key *k = find_hashed(t, hash, key);
    REQUIRE(k == NULL || k->newest->ts < ts);
    size_t size = tombstone ? 0 : value.size;
    struct mem_version *v = arena_alloc(t, sizeof *v + size);
    *v = (struct mem_version){.data = (uint8_t *)(v + 1),
                              .ts = ts,
                              .size = (uint32_t)size,
                              .cap = (uint32_t)size,
                              .tombstone = tombstone};
    if (size != 0) {
        memcpy(v->data, value.data, size);
    }
    if (k == NULL) {
        k = key_insert(t, hash, key);
    }
    v->older = k->newest;
    k->newest = v;
    t->version_count++;
}

void memtable_set(struct memtable *t, struct slice key, struct slice value, bool tombstone)
{
    uint64_t hash = span_hash64(key.data, key.size);
    struct mem_key *k = find_hashed(t, hash, key);
    if (k == NULL) {
        k = key_insert(t, hash, key);
        k->newest = arena_alloc(t, sizeof *k->newest);
        *k->newest = (struct mem_version){.tombstone = true};
        t->version_count++;
    }
    struct mem_version *v = k->newest;
    size_t size = tombstone ? 0 : value.size;
    uint8_t *stale = NULL; /* freed last: the new value may be a slice of it */
    if (v->own_block && (tombstone || size > v->cap)) {
        stale = v->data;
        v->data = NULL;
        v->cap = 0;
        v->own_block = false;
    }
    if (size > v->cap) {
        v->own_block = size >= BLOCK_BYTES_MIN;
        v->data = v->own_block ? block_alloc(t, size) : arena_alloc(t, size);
        v->cap = (uint32_t)size;
    }
    if (size != 0) {
        memmove(v->data, value.data, size);
    }
    v->size = (uint32_t)size;
    v->tombstone = tombstone;
    if (stale != NULL) {
        block_free(t, stale);
    }
}

struct mem_key *memtable_find(const struct memtable *t, struct slice key)
{
    if (t->bucket_count == 0) {
        return NULL;
    }
    return find_hashed(t, span_hash64(key.data, key.size), key);
}

struct mem_key *memtable_seek(const struct memtable *t, struct slice key)
{
    struct mem_key *before = find_before(t, key, NULL);
    return before == NULL ? t->head[0] : before->next[0];
}

struct mem_key *memtable_seek_below(const struct memtable *t, struct slice key)
{
    return find_before(t, key, NULL);
}
