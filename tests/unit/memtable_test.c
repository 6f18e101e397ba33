/* The memory table against a naive sorted array. */
#include "base/alloc.h"
#include "base/rng.h"
#include "shard/engine/memtable.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#define KEYS     400
#define VERSIONS 3000

struct naive_key {
    char text[24];
    size_t size;
    uint64_t ts[VERSIONS];
    size_t count;
};

static int naive_cmp(const void *a, const void *b)
{
    const struct naive_key *x = *(const struct naive_key *const *)a;
    const struct naive_key *y = *(const struct naive_key *const *)b;
    return slice_cmp(slice_of(x->text, x->size), slice_of(y->text, y->size));
}

static struct slice text_of(uint64_t ts, char out[32])
{
    return slice_of(out, (size_t)snprintf(out, 32, "value %llu", (unsigned long long)ts));
}

static void check_version(const struct mem_version *v, uint64_t ts)
{
    char text[32];
    cr_assert_eq(v->ts, ts);
    cr_assert_eq(v->tombstone, ts % 5 == 0);
    cr_assert(slice_eq(mem_version_slice(v), v->tombstone ? (struct slice){0} : text_of(ts, text)));
}

static void check_against(const struct memtable *t, struct naive_key **used, size_t count)
{
    const struct mem_key *k = memtable_first(t);
    for (size_t i = 0; i < count; i++, k = mem_key_next(k)) {
        struct slice key = slice_of(used[i]->text, used[i]->size);
        cr_assert(slice_eq(mem_key_slice(k), key));
        cr_assert_eq(memtable_find(t, key), k);
        cr_assert_eq(memtable_seek(t, key), k);
        const struct mem_key *below = memtable_seek_below(t, key);
        cr_assert_eq(below, mem_key_prev(k));
        cr_assert(i == 0 ? below == NULL : mem_key_next(below) == k);
        const struct mem_version *v = k->newest;
        for (size_t n = used[i]->count; n-- > 0; v = v->older) {
            check_version(v, used[i]->ts[n]);
            cr_assert_eq(mem_key_at(k, used[i]->ts[n]), v);
            cr_assert_eq(mem_key_at(k, used[i]->ts[n] - 1), v->older);
        }
        cr_assert_null(v);
    }
    cr_assert_null(k);
    cr_assert(count == 0 || mem_key_next(memtable_last(t)) == NULL);
}

Test(memtable, agrees_with_a_sorted_array_of_versions)
{
    uint64_t seed = rng_os_u64();
    printf("seed %llu\n", (unsigned long long)seed);
    struct rng r;
    rng_init(&r, seed);
    struct naive_key *keys = span_calloc(KEYS, sizeof *keys);
    for (size_t i = 0; i < KEYS; i++) {
        keys[i].size = (size_t)snprintf(keys[i].text, sizeof keys[i].text, "%llx",
                                        (unsigned long long)(i * i * 7919 % 1000003));
    }
    struct memtable t;
    memtable_init(&t);
    for (uint64_t ts = 1; ts <= VERSIONS; ts++) {
        struct naive_key *k = &keys[rng_below(&r, KEYS)];
        char text[32];
        memtable_add(&t, slice_of(k->text, k->size), ts, text_of(ts, text), ts % 5 == 0);
        k->ts[k->count++] = ts;
        if (ts % 500 == 0 || ts < 20) {
            struct naive_key *used[KEYS];
            size_t count = 0;
            for (size_t i = 0; i < KEYS; i++) {
                if (keys[i].count != 0) {
                    used[count++] = &keys[i];
                }
            }
            qsort(used, count, sizeof used[0], naive_cmp);
            check_against(&t, used, count);
            cr_assert_eq(t.version_count, ts);
        }
    }
    cr_assert_null(memtable_find(&t, slice_str("no such key")));
    cr_assert_null(memtable_seek(&t, slice_str("zzz")));
    cr_assert_eq(memtable_seek_below(&t, slice_str("zzz")), memtable_last(&t));
    cr_assert_null(memtable_seek_below(&t, slice_str("")));
    cr_assert_eq(memtable_seek(&t, slice_str("")), memtable_first(&t));
    memtable_deinit(&t);
    span_free(keys);
}

Test(memtable, replaces_a_value_in_place_and_gives_large_ones_back)
{
    struct memtable t;
    memtable_init(&t);
    struct slice key = slice_str("transaction");
    struct buf big = {0};
    memset(buf_grow(&big, 100000), 'x', 100000);
    memtable_set(&t, key, slice_str("small"), false);
    uint64_t before = t.bytes;
    for (int i = 0; i < 1000; i++) {
        memtable_set(&t, key, buf_slice(&big), false);
        cr_assert(slice_eq(mem_version_slice(memtable_find(&t, key)->newest), buf_slice(&big)));
        memtable_set(&t, key, (struct slice){0}, true);
        cr_assert(memtable_find(&t, key)->newest->tombstone);
    }
    cr_assert_eq(t.bytes, before, "%llu bytes grew to %llu", (unsigned long long)before,
                 (unsigned long long)t.bytes);
    memtable_set(&t, key, slice_str("again"), false);
    cr_assert(slice_eq(mem_version_slice(memtable_find(&t, key)->newest), slice_str("again")));
    /* A part of the value as the new value. */
    memtable_set(&t, key, buf_slice(&big), false);
    struct slice now = mem_version_slice(memtable_find(&t, key)->newest);
    memtable_set(&t, key, slice_of(now.data + 1, now.size - 1), false);
    cr_assert_eq(memtable_find(&t, key)->newest->size, 99999);
    buf_deinit(&big);
    memtable_deinit(&t);
}

Test(memtable, an_empty_table_holds_no_memory)
{
    struct memtable t;
    memtable_init(&t);
    cr_assert_eq(t.bytes, 0);
    cr_assert(memtable_is_empty(&t));
    cr_assert_null(memtable_first(&t));
    cr_assert_null(memtable_last(&t));
    cr_assert_null(memtable_find(&t, slice_str("a")));
    cr_assert_null(memtable_seek(&t, slice_str("a")));
    memtable_deinit(&t);
}
