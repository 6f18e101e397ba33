/* The two maps and the heap against naive models under random operations; the random numbers
 * themselves; status and invariant. */
#include "base/alloc.h"
#include "base/heap.h"
#include "base/invariant.h"
#include "base/list.h"
#include "base/map.h"
#include "base/rng.h"
#include "base/status.h"

#include <criterion/criterion.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#define KEYS 300

static uint64_t seed_of_run(void)
{
    const uint64_t seed = rng_os_u64();

    cr_log_info("seed %llu", (unsigned long long)seed);
    return seed;
}

static char cells[KEYS * 4]; /* values are addresses */

static uint64_t key64(size_t i)
{
    /* 0, the largest, neighbours, and keys that differ in high bits only. */
    return i == 0 ? 0 : i == 1 ? UINT64_MAX : i % 2 ? i : (uint64_t)i << 50;
}

static size_t check_map64(const struct map64 *m, void *const *model)
{
    size_t pos = 0;
    size_t seen = 0;
    uint64_t key = 0;
    const void *v = NULL;

    while ((v = map64_next(m, &pos, &key))) {
        size_t i = 0;

        while (i < KEYS && key64(i) != key) {
            i++;
        }
        cr_assert(i < KEYS);
        cr_assert_eq(model[i], v);
        seen++;
    }
    return seen;
}

Test(map64, behaves_like_an_array_of_all_keys)
{
    struct rng r;
    struct map64 m;
    void *model[KEYS] = {0};
    size_t count = 0;

    rng_init(&r, seed_of_run());
    map64_init(&m);
    for (int step = 0; step < 60000; step++) {
        /* Phases that mostly add and phases that mostly remove, so that it grows and empties. */
        const bool add = rng_below(&r, 10) < (step / 3000 % 2 ? 3u : 7u);
        const size_t i = (size_t)rng_below(&r, KEYS);

        cr_assert_eq(map64_get(&m, key64(i)), model[i]);
        if (add) {
            void *value = &cells[rng_below(&r, sizeof cells)];

            cr_assert_eq(map64_put(&m, key64(i), value), model[i]);
            count += model[i] ? 0 : 1;
            model[i] = value;
        } else {
            cr_assert_eq(map64_remove(&m, key64(i)), model[i]);
            count -= model[i] ? 1 : 0;
            model[i] = NULL;
        }
        cr_assert_eq(m.count, count);
        if (step % 500 == 0) {
            cr_assert_eq(check_map64(&m, model), count);
        }
    }
    map64_deinit(&m);
}

Test(map64, churn_of_few_keys_does_not_make_it_grow)
{
    struct map64 m = {0};
    struct mapb b = {0};

    for (uint64_t i = 0; i < 100000; i++) {
        const uint64_t gone = i - 10;

        map64_put(&m, i, &cells[0]);
        mapb_put(&b, slice_of(&i, sizeof i), &cells[0]);
        if (i >= 10) {
            cr_assert_not_null(map64_remove(&m, gone));
            cr_assert_not_null(mapb_remove(&b, slice_of(&gone, sizeof gone)));
        }
    }
    cr_assert(m.cap <= 64, "%zu", m.cap);
    cr_assert(b.cap <= 64, "%zu", b.cap);
    map64_deinit(&m);
    mapb_deinit(&b);
}

Test(map64, lets_an_iteration_remove_what_it_stands_on)
{
    struct map64 m = {0};
    size_t pos = 0;
    uint64_t key = 0;
    size_t seen = 0;

    for (uint64_t i = 0; i < 1000; i++) {
        map64_put(&m, i, &cells[i % sizeof cells]);
    }
    while (map64_next(&m, &pos, &key)) {
        seen++;
        if (key % 2) {
            cr_assert_not_null(map64_remove(&m, key));
        }
    }
    cr_assert_eq(seen, 1000);
    cr_assert_eq(m.count, 500);
    cr_assert_null(map64_get(&m, 7));
    cr_assert_not_null(map64_get(&m, 8));
    map64_deinit(&m);
}

static struct slice keyb(size_t i, uint8_t text[16])
{
    /* Empty, with NULs inside, and prefixes of each other. */
    const size_t n = i == 0 ? 0 : 1 + i % 12;

    memset(text, 0, 16);
    for (size_t k = 0; k < n; k++) {
        text[k] = (uint8_t)(k < 2 ? (i >> (8 * k)) : k);
    }
    return (struct slice){text, i == 0 ? 0 : n + 2};
}

Test(mapb, behaves_like_an_array_of_all_keys)
{
    struct rng r;
    struct mapb m;
    void *model[KEYS] = {0};
    size_t count = 0;
    size_t pos = 0;
    struct slice key = {0};
    size_t seen = 0;

    rng_init(&r, seed_of_run());
    mapb_init(&m);
    for (int step = 0; step < 60000; step++) {
        const bool add = rng_below(&r, 10) < (step / 3000 % 2 ? 3u : 7u);
        const size_t i = (size_t)rng_below(&r, KEYS);
        uint8_t text[16];
        const struct slice k = keyb(i, text);

        cr_assert_eq(mapb_get(&m, k), model[i]);
        if (add) {
            void *value = &cells[rng_below(&r, sizeof cells)];

            cr_assert_eq(mapb_put(&m, k, value), model[i]);
            count += model[i] ? 0 : 1;
            model[i] = value;
        } else {
            cr_assert_eq(mapb_remove(&m, k), model[i]);
            count -= model[i] ? 1 : 0;
            model[i] = NULL;
        }
        cr_assert_eq(m.count, count);
    }
    while (mapb_next(&m, &pos, &key)) {
        cr_assert_not_null(mapb_get(&m, key));
        seen++;
    }
    cr_assert_eq(seen, count);
    mapb_deinit(&m);
}

Test(map64, iterates_in_an_order_that_depends_on_operations_only)
{
    struct map64 a = {0};
    struct map64 b = {0};
    size_t pa = 0;
    size_t pb = 0;
    uint64_t ka = 0;
    uint64_t kb = 0;

    for (uint64_t i = 0; i < 100; i++) {
        map64_put(&a, i * 977, &cells[i]);
        map64_put(&b, i * 977, &cells[i]);
    }
    while (map64_next(&a, &pa, &ka)) {
        cr_assert_not_null(map64_next(&b, &pb, &kb));
        cr_assert_eq(ka, kb);
    }
    map64_deinit(&a);
    map64_deinit(&b);
}

struct timer_model {
    struct heap_node node;
    bool in;
    uint64_t key;
    uint64_t order;
};

static struct timer_model *model_min(struct timer_model *t, size_t n)
{
    struct timer_model *best = NULL;

    for (size_t i = 0; i < n; i++) {
        if (t[i].in && (!best || t[i].key < best->key ||
                        (t[i].key == best->key && t[i].order < best->order))) {
            best = &t[i];
        }
    }
    return best;
}

Test(heap, behaves_like_a_search_for_the_smallest)
{
    struct rng r;
    struct heap h;
    struct timer_model t[60] = {0};
    uint64_t order = 0;
    size_t count = 0;

    rng_init(&r, seed_of_run());
    heap_init(&h);
    for (int step = 0; step < 50000; step++) {
        struct timer_model *x = &t[rng_below(&r, 60)];
        struct timer_model *best = NULL;

        switch (rng_below(&r, 4)) {
        case 0:
        case 1: /* also re-keys */
            count += x->in ? 0 : 1;
            x->in = true;
            x->key = rng_below(&r, 20); /* many ties */
            x->order = order++;
            heap_insert(&h, &x->node, x->key);
            break;
        case 2:
            count -= x->in ? 1 : 0;
            x->in = false;
            heap_remove(&h, &x->node);
            break;
        default:
            best = model_min(t, 60);
            if (best) {
                heap_remove(&h, heap_min(&h));
                best->in = false;
                count--;
                cr_assert(!heap_node_in(&best->node));
            }
            break;
        }
        best = model_min(t, 60);
        cr_assert_eq(heap_min(&h), best ? &best->node : NULL);
        cr_assert_eq(h.count, count);
        cr_assert_eq(heap_node_in(&x->node), x->in);
    }
    heap_deinit(&h);
    cr_assert(!heap_node_in(&t[0].node));
}

Test(list, keeps_order_and_survives_removal_twice)
{
    struct list head;
    struct list n[5];
    size_t at = 1;

    list_init(&head);
    cr_assert(list_is_empty(&head));
    for (size_t i = 1; i < 5; i++) {
        list_push_back(&head, &n[i]);
    }
    list_push_front(&head, &n[0]);
    list_remove(&n[0]);
    list_remove(&n[0]);
    LIST_EACH_SAFE(it, next, &head)
    {
        cr_assert_eq(it, &n[at++]);
        list_remove(it);
    }
    cr_assert_eq(at, 5);
    cr_assert(list_is_empty(&head));
}

Test(rng, repeats_for_a_seed_on_every_machine)
{
    struct rng r;

    /* xoshiro256** from the splitmix64 state of seed 0; a change would void every kept seed. */
    rng_init(&r, 0);
    cr_assert_eq(r.s[0], 0xe220a8397b1dcdafu);
    cr_assert_eq(r.s[1], 0x6e789e6aa1b965f4u);
    cr_assert_eq(rng_u64(&r), 0x99ec5f36cb75f2b4u);
    cr_assert_eq(rng_u64(&r), 0xbf6e1f784956452au);
}

Test(rng, stays_in_range_and_reaches_all_of_it)
{
    struct rng r;
    unsigned hits[7] = {0};

    rng_init(&r, seed_of_run());
    for (int i = 0; i < 70000; i++) {
        const double d = rng_double(&r);

        hits[rng_below(&r, 7)]++;
        cr_assert(d >= 0 && d < 1);
        cr_assert(rng_between(&r, 5, 6) - 5 < 2);
    }
    for (int i = 0; i < 7; i++) {
        cr_assert(hits[i] > 9000 && hits[i] < 11000, "%d: %u", i, hits[i]);
    }
    cr_assert_eq(rng_below(&r, 1), 0);
    (void)rng_between(&r, 0, UINT64_MAX);
    cr_assert_neq(rng_os_u64(), rng_os_u64());
}

Test(status, has_text_name_and_kind_for_every_code)
{
    cr_assert_str_eq(span_status_name(SPAN_NOT_LEADER), "NOT_LEADER");
    cr_assert_str_eq(span_status_text(SPAN_OK), "ok");
    cr_assert_str_eq(span_status_text((span_status)999), "unknown status");
    cr_assert_eq(span_status_kind(SPAN_OK), SPAN_KIND_NONE);
    cr_assert_eq(span_status_kind(SPAN_CONFLICT), SPAN_KIND_RETRY);
    cr_assert_eq(span_status_kind(SPAN_UNKNOWN_OUTCOME), SPAN_KIND_UNKNOWN);
    cr_assert_eq(span_status_kind(SPAN_CORRUPT), SPAN_KIND_CORRUPT);
    cr_assert_eq(span_status_from_wire(3), SPAN_NOT_LEADER);
    cr_assert_eq(span_status_from_wire(49), SPAN_INTERNAL);
    cr_assert_eq(span_status_from_wire(4000000000u), SPAN_INTERNAL);
}

Test(status, fail_fills_the_text_and_cuts_it)
{
    struct span_error err;
    char *longer = span_malloc(3000);

    memset(longer, 'x', 2999);
    longer[2999] = 0;
    cr_assert_eq(span_fail(&err, SPAN_IO, "cannot open %s", "wal/7"), SPAN_IO);
    cr_assert_eq(err.code, SPAN_IO);
    cr_assert_str_eq(err.text, "cannot open wal/7");
    cr_assert_eq(span_fail(&err, SPAN_INVALID, "%s", longer), SPAN_INVALID);
    cr_assert_eq(strlen(err.text), sizeof err.text - 1);
    cr_assert_eq(span_fail(NULL, SPAN_CLOSED, "nobody listens"), SPAN_CLOSED);
    span_free(longer);
}

Test(invariant, failure_names_place_build_and_seed_and_aborts)
{
    int ends[2] = {-1, -1};
    char text[512] = {0};
    int status = 0;
    pid_t child = 0;

    cr_assert_eq(pipe(ends), 0);
    child = fork();
    if (child == 0) {
        (void)dup2(ends[1], STDERR_FILENO);
        (void)signal(SIGABRT, SIG_DFL);
        span_invariant_set_seed(4711);
        INVARIANT(ends[0] == -2);
    }
    close(ends[1]);
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFSIGNALED(status));
    cr_assert_eq(WTERMSIG(status), SIGABRT);
    cr_assert(read(ends[0], text, sizeof text - 1) > 0);
    close(ends[0]);
    cr_assert_not_null(strstr(text, "ends[0] == -2 at "), "%s", text);
    cr_assert_not_null(strstr(text, "base_containers_test.c:"));
    cr_assert_not_null(strstr(text, "build " SPAN_VERSION));
    cr_assert_not_null(strstr(text, "seed 4711\n"));
}
