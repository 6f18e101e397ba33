/* The versions that are not in SQLite yet: keys in memcmp order, for each key its versions, newest
 * first. Used only by the engine, twice per generation: for rows (memtable_add, many versions a
 * key) and for replicated state (memtable_set, one value a key, replaced in place).
 *
 *   buckets (open addressing by hash of the key)      point reads, hits and misses, in O(1)
 *      |
 *   mem_key --next[0..height)--> mem_key --> ...      skip list for scans, with prev for backwards
 *      |
 *   mem_version (newest) --older--> mem_version ...   O(1) to add to, since timestamps only grow
 *
 * Memory comes from an arena that is freed as a whole; only large replaceable values have blocks of
 * their own, so that a prepared transaction that came and went costs little. One owner; once frozen
 * (no more changes) several threads may read it. Nothing here fails. */
#ifndef SPAN_SHARD_ENGINE_MEMTABLE_H
#define SPAN_SHARD_ENGINE_MEMTABLE_H

#include "base/buf.h"
#include "base/list.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MEM_HEIGHT_MAX 12

struct mem_version {
    struct mem_version *older;
    uint8_t *data;
    uint64_t ts;
    uint32_t size;
    uint32_t cap; /* bytes at data, for replacing in place */
    bool tombstone;
    bool own_block; /* data is a block of its own, not arena memory */
};

struct mem_key {
    struct mem_version *newest; /* never NULL */
    struct mem_key *prev;       /* NULL for the first */
    const uint8_t *bytes;
    uint64_t hash;
    uint32_t size;
    uint32_t height;
    struct mem_key *next[]; /* height of them */
};

struct memtable {
    struct arena_chunk *chunks; /* newest first; allocation is from the first */
    struct list blocks;         /* values with blocks of their own */
    uint64_t bytes;             /* allocated in all */
    struct mem_key **buckets;
    size_t bucket_count; /* power of two, or 0 */
    size_t key_count;
    uint64_t version_count;
    uint64_t random; /* state of the height generator: same operations, same table */
    uint32_t height;
    struct mem_key *head[MEM_HEIGHT_MAX];
    struct mem_key *last;
};

void memtable_init(struct memtable *t);
void memtable_deinit(struct memtable *t);

static inline bool memtable_is_empty(const struct memtable *t)
{
    return t->key_count == 0;
}

static inline struct slice mem_key_slice(const struct mem_key *k)
{
    return (struct slice){k->bytes, k->size};
}

static inline struct slice mem_version_slice(const struct mem_version *v)
{
    return (struct slice){v->data, v->size};
}

/* Adds a version above all versions of the key that are in the table (the caller checked). */
void memtable_add(struct memtable *t, struct slice key, uint64_t ts, struct slice value,
                  bool tombstone);
/* Makes the value the key's only version (ts 0). */
void memtable_set(struct memtable *t, struct slice key, struct slice value, bool tombstone);

struct mem_key *memtable_find(const struct memtable *t, struct slice key); /* exactly, or NULL */
struct mem_key *memtable_seek(const struct memtable *t,
                              struct slice key); /* first >= key, or NULL */
struct mem_key *memtable_seek_below(const struct memtable *t,
                                    struct slice key); /* last < key, or NULL */

static inline struct mem_key *memtable_first(const struct memtable *t)
{
    return t->head[0];
}

static inline struct mem_key *memtable_last(const struct memtable *t)
{
    return t->last;
}

static inline struct mem_key *mem_key_next(const struct mem_key *k)
{
    return k->next[0];
}

static inline struct mem_key *mem_key_prev(const struct mem_key *k)
{
    return k->prev;
}

/* Newest version at or below `at`, or NULL. */
static inline struct mem_version *mem_key_at(const struct mem_key *k, uint64_t at)
{
    struct mem_version *v = k->newest;
    while (v != NULL && v->ts > at) {
        v = v->older;
    }
    return v;
}

#endif
