/* Two hash maps, both deterministic (iteration order depends only on the operations): u64 ->
 * pointer and bytes -> pointer. Values are borrowed; byte keys are copied by the map. */
#ifndef SPAN_BASE_MAP_H
#define SPAN_BASE_MAP_H

#include "base/buf.h"

struct map64 {
    struct map64_slot *slots;
    size_t cap;
    size_t count;
    size_t used; /* live and deleted slots */
};

void map64_init(struct map64 *m);
void map64_deinit(struct map64 *m);
void *map64_get(const struct map64 *m, uint64_t key); /* NULL when absent */
void *map64_put(struct map64 *m, uint64_t key,
                void *value); /* returns the value replaced, or NULL; value is not NULL */
void *map64_remove(struct map64 *m, uint64_t key); /* returns the value removed, or NULL */
/* Iteration: *pos = 0, then until it returns NULL. Removing the current entry is allowed
 * (it frees a mapb's *key), adding is not. key may be NULL. */
void *map64_next(const struct map64 *m, size_t *pos, uint64_t *key);

struct mapb {
    struct mapb_slot *slots;
    size_t cap;
    size_t count;
    size_t used;
};

void mapb_init(struct mapb *m);
void mapb_deinit(struct mapb *m);
void *mapb_get(const struct mapb *m, struct slice key);
void *mapb_put(struct mapb *m, struct slice key, void *value);
void *mapb_remove(struct mapb *m, struct slice key);
void *mapb_next(const struct mapb *m, size_t *pos, struct slice *key);

/* 64-bit hash of bytes; not for untrusted keys that may be chosen to collide across a network
 * bound. */
uint64_t span_hash64(const void *p, size_t n);
uint64_t span_mix64(uint64_t v);

#endif
