/* The write buffer against a model: an array of every key's value, with whole copies for marks. */
#include "base/alloc.h"
#include "base/limits.h"
#include "coordinator/route/write_buffer.h"

#include <criterion/criterion.h>

#define KEYS  40
#define MARKS 8

struct entry {
    bool there;
    bool tombstone;
    uint64_t value;
};

struct model {
    struct entry e[KEYS];
};

static struct slice key_of(uint8_t *b, unsigned k)
{
    b[0] = 1;
    b[1] = (uint8_t)(k * 5 + 3); /* gaps between keys, for seeks */
    return slice_of(b, 2);
}

static void check(const struct write_buffer *w, const struct model *m, uint64_t seed)
{
    uint8_t b[2];
    struct txn_write x;
    size_t count = 0;
    for (unsigned k = 0; k < KEYS; k++) {
        bool got = write_buffer_get(w, key_of(b, k), &x);
        cr_assert_eq(got, m->e[k].there, "seed %llu key %u", (unsigned long long)seed, k);
        if (got) {
            count++;
            cr_assert_eq(x.tombstone, m->e[k].tombstone);
            if (!x.tombstone) {
                cr_assert_eq(x.value.size, sizeof m->e[k].value);
                cr_assert_eq(memcmp(x.value.data, &m->e[k].value, x.value.size), 0);
            }
        }
    }
    cr_assert_eq(w->count, count);
    /* Seeks, from keys and from between them. */
    for (unsigned v = 0; v < 256; v++) {
        uint8_t at[2] = {1, (uint8_t)v};
        int up = -1;
        int above = -1;
        int down = -1;
        for (unsigned k = 0; k < KEYS; k++) {
            unsigned kv = k * 5 + 3;
            up = m->e[k].there && kv >= v && up < 0 ? (int)kv : up;
            above = m->e[k].there && kv > v && above < 0 ? (int)kv : above;
            down = m->e[k].there && kv < v ? (int)kv : down;
        }
        cr_assert_eq(write_buffer_seek(w, slice_of(at, 2), false, &x), up >= 0);
        cr_assert(up < 0 || x.key.data[1] == up);
        cr_assert_eq(write_buffer_seek(w, slice_of(at, 2), true, &x), above >= 0);
        cr_assert(above < 0 || x.key.data[1] == above);
        cr_assert_eq(write_buffer_seek_before(w, slice_of(at, 2), &x), down >= 0);
        cr_assert(down < 0 || x.key.data[1] == down);
    }
    struct txn_write *all = span_calloc(count + 1, sizeof *all);
    write_buffer_list(w, all);
    for (size_t i = 1; i < count; i++) {
        cr_assert(slice_cmp(all[i - 1].key, all[i].key) < 0);
    }
    cr_assert_eq(write_buffer_seek_before(w, slice_of(NULL, 0), &x), count > 0);
    cr_assert(count == 0 || slice_eq(x.key, all[count - 1].key));
    span_free(all);
}

Test(write_buffer, behaves_like_an_array_with_copies_for_marks)
{
    for (uint64_t seed = 1; seed <= 60; seed++) {
        struct rng r;
        struct write_buffer w;
        struct model m = {0};
        struct model copies[MARKS];
        size_t marks[MARKS];
        size_t mark_count = 0;
        uint8_t b[2];
        rng_init(&r, seed);
        write_buffer_init(&w);
        for (int i = 0; i < 400; i++) {
            unsigned k = (unsigned)rng_below(&r, KEYS);
            uint64_t what = rng_below(&r, 20);
            if (what < 10) {
                uint64_t v = rng_u64(&r);
                cr_assert_eq(write_buffer_put(&w, key_of(b, k), slice_of(&v, sizeof v)), SPAN_OK);
                m.e[k] = (struct entry){true, false, v};
            } else if (what < 15) {
                cr_assert_eq(write_buffer_del(&w, key_of(b, k)), SPAN_OK);
                m.e[k] = (struct entry){true, true, 0};
            } else if (what < 18 && mark_count < MARKS) {
                copies[mark_count] = m;
                marks[mark_count++] = write_buffer_mark(&w);
            } else if (mark_count > 0) {
                size_t to = rng_below(&r, mark_count);
                write_buffer_rollback_to(&w, marks[to]);
                m = copies[to];
                mark_count =
                    rng_below(&r, 2) == 0 ? to : to + 1; /* released, or kept for another time */
            }
            if (i % 20 == 0) {
                check(&w, &m, seed);
            }
        }
        check(&w, &m, seed);
        write_buffer_clear(&w);
        m = (struct model){0};
        check(&w, &m, seed);
        write_buffer_deinit(&w);
    }
}

Test(write_buffer, a_hot_key_keeps_one_version_between_marks)
{
    struct write_buffer w;
    uint8_t value[1000] = {0};
    write_buffer_init(&w);
    (void)write_buffer_mark(&w);
    for (int i = 0; i < 100000; i++) {
        cr_assert_eq(write_buffer_put(&w, slice_str("k"), slice_of(value, sizeof value)), SPAN_OK);
    }
    cr_assert_lt(w.bytes, 2000);
    write_buffer_deinit(&w);
}

Test(write_buffer, refuses_what_passes_a_limit_and_keeps_the_rest)
{
    struct write_buffer w;
    uint8_t *value = span_calloc(1, LIMIT_ROW_BYTES + 1);
    uint8_t key[LIMIT_KEY_BYTES + 1] = {1};
    struct txn_write x;
    write_buffer_init(&w);
    cr_assert_eq(write_buffer_put(&w, slice_of(key, sizeof key), slice_str("v")), SPAN_TOO_LARGE);
    cr_assert_eq(write_buffer_put(&w, slice_str("k"), slice_of(value, LIMIT_ROW_BYTES + 1)),
                 SPAN_TOO_LARGE);
    span_status st = SPAN_OK;
    unsigned n = 0;
    while (st == SPAN_OK) {
        uint32_t k = n++;
        st = write_buffer_put(&w, slice_of(&k, sizeof k), slice_of(value, LIMIT_ROW_BYTES));
    }
    cr_assert_eq(st, SPAN_TOO_LARGE);
    cr_assert_eq(w.count, 63); /* 64 MiB less what versions cost themselves */
    cr_assert_leq(w.bytes, LIMIT_TXN_WRITE_BYTES);
    uint32_t first = 0;
    cr_assert(write_buffer_get(&w, slice_of(&first, sizeof first), &x));
    write_buffer_deinit(&w);
    span_free(value);
}
