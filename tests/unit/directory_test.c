/* The descriptor cache against a model: an array of points, each owned by the newest descriptor
 * told that covers it. */
#include "base/rng.h"
#include "coordinator/route/directory.h"

#include <criterion/criterion.h>
#include <stdio.h>

static struct slice point(uint8_t *b, unsigned v)
{
    b[0] = 1;
    b[1] = (uint8_t)v;
    return slice_of(b, 2);
}

static bool learn(struct directory *d, range_id id, uint64_t generation, unsigned from, unsigned to,
                  node_id leader)
{
    uint8_t a[2];
    uint8_t b[2];
    struct range_descriptor x = {
        .range = id, .generation = generation, .leader = leader, .member_count = 3};
    x.members[0] = 1;
    x.members[1] = 2;
    x.members[2] = 3;
    x.start = from == 0 ? slice_of(NULL, 0) : point(a, from);
    x.end = to > 255 ? slice_of(NULL, 0) : point(b, to);
    return directory_learn(d, &x);
}

static range_id at(const struct directory *d, unsigned v)
{
    uint8_t b[2];
    const struct dir_range *r = directory_lookup(d, point(b, v));
    return r == NULL ? 0 : r->range;
}

Test(directory, a_split_replaces_what_it_came_from)
{
    struct directory d;
    directory_init(&d);
    cr_assert(learn(&d, 2, 1, 0, 256, 3));
    cr_assert_eq(at(&d, 200), 2);
    cr_assert(learn(&d, 9, 2, 100, 256, 0));
    cr_assert_eq(at(&d, 200), 9);
    cr_assert_eq(at(&d, 50), 0, "the old left side said more than is true now");
    cr_assert(learn(&d, 2, 2, 0, 100, 0));
    cr_assert_eq(at(&d, 50), 2);
    cr_assert_not(learn(&d, 2, 1, 0, 256, 3), "an older one tells nothing");
    cr_assert_eq(at(&d, 200), 9);
    cr_assert_not(learn(&d, 7, 1, 150, 160, 3), "nor does one that a newer range overlaps");
    cr_assert_eq(at(&d, 155), 9);
    directory_deinit(&d);
}

Test(directory, leader_hints_of_older_terms_are_ignored)
{
    struct directory d;
    directory_init(&d);
    learn(&d, 2, 1, 0, 256, 3);
    cr_assert_eq(directory_by_id(&d, 2)->leader, 3);
    cr_assert(directory_hint(&d, 2, 1, 7));
    cr_assert_not(directory_hint(&d, 2, 2, 6));
    cr_assert_eq(directory_by_id(&d, 2)->leader, 1);
    directory_unhint(&d, 2, 3);
    cr_assert_eq(directory_by_id(&d, 2)->leader, 1);
    directory_unhint_node(&d, 1);
    cr_assert_eq(directory_by_id(&d, 2)->leader, 0);
    learn(&d, 2, 1, 0, 256, 2);
    cr_assert_eq(directory_by_id(&d, 2)->leader, 2, "the same descriptor's hint fills a gap");
    cr_assert(directory_hint(&d, 2, 3, 8));
    learn(&d, 2, 2, 0, 100, 0);
    cr_assert_eq(directory_by_id(&d, 2)->leader, 3, "a split does not move the left side's leader");
    directory_deinit(&d);
}

Test(directory, bounds_are_checked)
{
    struct directory d;
    uint8_t a[2];
    uint8_t b[2];
    directory_init(&d);
    learn(&d, 2, 1, 10, 20, 0);
    const struct dir_range *r = directory_by_id(&d, 2);
    cr_assert(dir_range_covers(r, point(a, 10)));
    cr_assert_not(dir_range_covers(r, point(a, 20)));
    cr_assert(dir_range_covers_span(r, point(a, 10), point(b, 20)));
    cr_assert_not(dir_range_covers_span(r, point(a, 10), slice_of(NULL, 0)));
    cr_assert_not(dir_range_covers_span(r, point(a, 9), point(b, 12)));
    cr_assert_not(learn(&d, 3, 1, 30, 30, 0), "an empty range is no range");
    cr_assert_not(learn(&d, 0, 1, 30, 40, 0));
    directory_deinit(&d);
}

struct truth {
    range_id id;
    uint64_t generation;
    unsigned from;
    unsigned to;
};

/* A history of splits; its descriptors are told in any order and again and again. What the
 * directory says of a key is never older than what it said before, and once everything was told it
 * is the truth. */
Test(directory, splits_told_in_any_order_end_in_the_truth)
{
    for (uint64_t seed = 1; seed <= 300; seed++) {
        struct rng r;
        rng_init(&r, seed);
        struct truth all[200];
        struct truth now[64] = {{2, 1, 0, 256}};
        size_t n = 1;
        size_t told = 0;
        all[told++] = now[0];
        for (range_id next = 3; next < 20; next++) {
            struct truth *t = &now[rng_below(&r, n)];
            if (t->to - t->from < 2) {
                continue;
            }
            unsigned cut = t->from + 1 + (unsigned)rng_below(&r, t->to - t->from - 1);
            now[n] = (struct truth){next, t->generation + 1, cut, t->to};
            t->generation++;
            t->to = cut;
            all[told++] = *t;
            all[told++] = now[n++];
        }
        struct directory d;
        directory_init(&d);
        for (size_t i = 0; i < told * 3; i++) {
            const struct truth *t = &all[rng_below(&r, told)];
            learn(&d, t->id, t->generation, t->from, t->to, 0);
            for (size_t k = 1; k < d.count; k++) {
                struct slice end = buf_slice(&d.ranges[k - 1]->end);
                cr_assert(end.size > 0 && slice_cmp(end, buf_slice(&d.ranges[k]->start)) <= 0,
                          "seed %llu: overlap", (unsigned long long)seed);
            }
        }
        for (size_t i = 0; i < n; i++) {
            learn(&d, now[i].id, now[i].generation, now[i].from, now[i].to, 0);
        }
        for (size_t i = 0; i < n;
             i++) { /* twice: a newer one drops what it overlaps, whichever came first */
            learn(&d, now[i].id, now[i].generation, now[i].from, now[i].to, 0);
        }
        for (size_t i = 0; i < n; i++) {
            for (unsigned v = now[i].from; v < now[i].to; v++) {
                cr_assert_eq(at(&d, v), now[i].id, "seed %llu key %u", (unsigned long long)seed, v);
            }
        }
        directory_deinit(&d);
    }
}
