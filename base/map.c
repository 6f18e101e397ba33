/* Hash maps with open addressing and linear probing over a power-of-two table.
 *
 * A removed entry leaves a mark, so that an iteration may remove what it stands on and no chain of
 * probes is cut. Live entries and marks together fill at most 3/4 of the table; when they would
 * fill more, the table is built anew, twice as big if live entries alone fill more than 3/8 of it,
 * else in the same size (only marks go). There is no random seed: iteration order depends on
 * nothing but the operations, which the simulator's repeatability needs. */
#include "base/map.h"

#include "base/alloc.h"
#include "base/invariant.h"

#define MAP_CAP_MIN 16

struct map64_slot {
    uint64_t key;
    void *value; /* NULL: never used; map_gone: removed */
};

struct mapb_slot {
    uint64_t hash;
    uint8_t *key;
    size_t key_size;
    void *value; /* as above */
};

static char gone_mark;
static void *const map_gone = &gone_mark;

uint64_t span_mix64(uint64_t v)
{
    v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9u;
    v = (v ^ v >> 27) * 0x94d049bb133111ebu;
    return v ^ v >> 31;
}

uint64_t span_hash64(const void *p, size_t n)
{
    const uint8_t *at = p;
    uint64_t h = 0x9e3779b97f4a7c15u ^ n;
    uint64_t tail = 0;

    for (; n >= 8; n -= 8, at += 8) {
        uint64_t word = 0;

        memcpy(&word, at, sizeof word);
        h = span_mix64(h ^ word) + 0x9e3779b97f4a7c15u;
    }
    if (n) {
        memcpy(&tail, at, n);
    }
    return span_mix64(h ^ tail);
}

/* The size of the table that takes one entry more, or 0 when the present one does. */
static size_t map_new_cap(size_t cap, size_t count, size_t used)
{
    if ((used + 1) * 4 <= cap * 3) {
        return 0;
    }
    if (cap == 0) {
        return MAP_CAP_MIN;
    }
    return (count + 1) * 8 > cap * 3 ? cap * 2 : cap;
}

static bool map_is_live(const void *value)
{
    return value && value != map_gone;
}

/* ---- u64 -> pointer ---- */

void map64_init(struct map64 *m)
{
    *m = (struct map64){0};
}

void map64_deinit(struct map64 *m)
{
    span_free(m->slots);
    *m = (struct map64){0};
}

/* The slot that holds key, or NULL. */
static struct map64_slot *map64_find(const struct map64 *m, uint64_t key)
{
    if (m->count == 0) {
        return NULL;
    }
    for (size_t i = span_mix64(key) & (m->cap - 1);; i = (i + 1) & (m->cap - 1)) {
        struct map64_slot *s = &m->slots[i];

        if (!s->value) {
            return NULL;
        }
        if (s->key == key && s->value != map_gone) {
            return s;
        }
    }
}

/* The first slot without a live entry on key's way; key is not in the map. */
static struct map64_slot *map64_free_slot(struct map64_slot *slots, size_t cap, uint64_t key)
{
    size_t i = span_mix64(key) & (cap - 1);

    while (map_is_live(slots[i].value)) {
        i = (i + 1) & (cap - 1);
    }
    return &slots[i];
}

static void map64_rebuild(struct map64 *m, size_t cap)
{
    struct map64_slot *slots = span_calloc(cap, sizeof *slots);

    for (size_t i = 0; i < m->cap; i++) {
        if (map_is_live(m->slots[i].value)) {
            *map64_free_slot(slots, cap, m->slots[i].key) = m->slots[i];
        }
    }
    span_free(m->slots);
    m->slots = slots;
    m->cap = cap;
    m->used = m->count;
}

void *map64_get(const struct map64 *m, uint64_t key)
{
    const struct map64_slot *s = map64_find(m, key);

    return s ? s->value : NULL;
}

void *map64_put(struct map64 *m, uint64_t key, void *value)
{
    struct map64_slot *s = map64_find(m, key);
    size_t cap = 0;

    REQUIRE(value != NULL);
    if (s) {
        void *old = s->value;

        s->value = value;
        return old;
    }
    cap = map_new_cap(m->cap, m->count, m->used);
    if (cap) {
        map64_rebuild(m, cap);
    }
    s = map64_free_slot(m->slots, m->cap, key);
    m->used += s->value ? 0 : 1;
    m->count++;
    *s = (struct map64_slot){key, value};
    return NULL;
}

void *map64_remove(struct map64 *m, uint64_t key)
{
    struct map64_slot *s = map64_find(m, key);
    void *old = NULL;

    if (!s) {
        return NULL;
    }
    old = s->value;
    s->value = map_gone;
    m->count--;
    return old;
}

void *map64_next(const struct map64 *m, size_t *pos, uint64_t *key)
{
    while (*pos < m->cap) {
        const struct map64_slot *s = &m->slots[(*pos)++];

        if (map_is_live(s->value)) {
            if (key) {
                *key = s->key;
            }
            return s->value;
        }
    }
    return NULL;
}

/* ---- bytes -> pointer ---- */

void mapb_init(struct mapb *m)
{
    *m = (struct mapb){0};
}

void mapb_deinit(struct mapb *m)
{
    for (size_t i = 0; i < m->cap; i++) {
        if (map_is_live(m->slots[i].value)) {
            span_free(m->slots[i].key);
        }
    }
    span_free(m->slots);
    *m = (struct mapb){0};
}

static struct mapb_slot *mapb_find(const struct mapb *m, struct slice key, uint64_t hash)
{
    if (m->count == 0) {
        return NULL;
    }
    for (size_t i = hash & (m->cap - 1);; i = (i + 1) & (m->cap - 1)) {
        struct mapb_slot *s = &m->slots[i];

        if (!s->value) {
            return NULL;
        }
        if (s->value != map_gone && s->hash == hash &&
            slice_eq((struct slice){s->key, s->key_size}, key)) {
            return s;
        }
    }
}

static struct mapb_slot *mapb_free_slot(struct mapb_slot *slots, size_t cap, uint64_t hash)
{
    size_t i = hash & (cap - 1);

    while (map_is_live(slots[i].value)) {
        i = (i + 1) & (cap - 1);
    }
    return &slots[i];
}

static void mapb_rebuild(struct mapb *m, size_t cap)
{
    struct mapb_slot *slots = span_calloc(cap, sizeof *slots);

    for (size_t i = 0; i < m->cap; i++) {
        if (map_is_live(m->slots[i].value)) {
            *mapb_free_slot(slots, cap, m->slots[i].hash) = m->slots[i];
        }
    }
    span_free(m->slots);
    m->slots = slots;
    m->cap = cap;
    m->used = m->count;
}

void *mapb_get(const struct mapb *m, struct slice key)
{
    const struct mapb_slot *s = mapb_find(m, key, span_hash64(key.data, key.size));

    return s ? s->value : NULL;
}

void *mapb_put(struct mapb *m, struct slice key, void *value)
{
    const uint64_t hash = span_hash64(key.data, key.size);
    struct mapb_slot *s = mapb_find(m, key, hash);
    size_t cap = 0;

    REQUIRE(value != NULL);
    if (s) {
        void *old = s->value;

        s->value = value;
        return old;
    }
    cap = map_new_cap(m->cap, m->count, m->used);
    if (cap) {
        mapb_rebuild(m, cap);
    }
    s = mapb_free_slot(m->slots, m->cap, hash);
    m->used += s->value ? 0 : 1;
    m->count++;
    *s = (struct mapb_slot){hash, span_memdup(key.data, key.size), key.size, value};
    return NULL;
}

void *mapb_remove(struct mapb *m, struct slice key)
{
    struct mapb_slot *s = mapb_find(m, key, span_hash64(key.data, key.size));
    void *old = NULL;

    if (!s) {
        return NULL;
    }
    old = s->value;
    span_free(s->key);
    *s = (struct mapb_slot){.value = map_gone};
    m->count--;
    return old;
}

void *mapb_next(const struct mapb *m, size_t *pos, struct slice *key)
{
    while (*pos < m->cap) {
        const struct mapb_slot *s = &m->slots[(*pos)++];

        if (map_is_live(s->value)) {
            if (key) {
                *key = (struct slice){s->key, s->key_size};
            }
            return s->value;
        }
    }
    return NULL;
}
