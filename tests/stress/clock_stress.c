/* A node's clock under threads, for ThreadSanitizer (Criterion does not run under it): readers
 * against writers of every setting. Checks what tests/unit/clock_test.c checks: true time inside
 * the interval, earliest never backward; and that a reading never uses half of a setting. Exits 0
 * if all held. Usage: clock_stress [changes] [seed]
 */
#include "base/limits.h"
#include "base/log.h"
#include "base/rng.h"
#include "truetime/clock.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#define READERS      3
#define ERROR_NS_MAX ((int64_t)MS_NS)

static struct clock *shared_clock;
static atomic_bool stop;
static _Atomic uint64_t earliest_seen;
static atomic_uint failures;
static _Atomic uint64_t reads;

static void *read_all_the_time(void *arg)
{
    uint64_t n = 0;

    (void)arg;
    while (!atomic_load(&stop)) {
        const uint64_t seen = atomic_load(&earliest_seen);
        const uint64_t before = clock_true_now(shared_clock).ns;
        struct tt_now now;
        uint64_t raised = 0;

        clock_now(shared_clock, &now);
        if (now.tt.earliest.ns > clock_true_now(shared_clock).ns || now.tt.latest.ns < before ||
            now.tt.earliest.ns < seen) {
            atomic_fetch_add(&failures, 1);
        }
        (void)clock_note_message(shared_clock, 1 + (unsigned)(n % 4), &now.tt, &now);
        (void)clock_note_round_trip(shared_clock, 1 + (unsigned)(n % 4), &now.tt, &now.tt, &now);
        clock_note_promise(shared_clock, now.tt.latest);
        raised = atomic_load(&earliest_seen);
        while (raised < now.tt.earliest.ns &&
               !atomic_compare_exchange_weak(&earliest_seen, &raised, now.tt.earliest.ns)) {
        }
        n++;
    }
    atomic_fetch_add(&reads, n);
    return NULL;
}

/* The two values of a fixed clock are always set so far apart: half of one setting and half of
 * another would show. */
#define FIXED_APART_NS 1000000000000ULL

static void *read_fixed_pairs(void *arg)
{
    struct clock *fixed = arg;

    while (!atomic_load(&stop)) {
        struct tt_now now;

        clock_now(fixed, &now);
        if (now.tt.latest.ns - now.mono_ns != FIXED_APART_NS + EPSILON_NS_MAX) {
            atomic_fetch_add(&failures, 1);
        }
    }
    return NULL;
}

static int check_whole_settings(unsigned long changes)
{
    struct clock_options o;
    struct clock *fixed = NULL;
    pthread_t threads[READERS];

    clock_options_init(&o);
    o.source = CLOCK_SOURCE_FIXED;
    o.epsilon_ns = EPSILON_NS_MAX;
    if (clock_new(&o, &fixed, NULL) != SPAN_OK ||
        clock_fixed_set(fixed, FIXED_APART_NS + 1, 1) != SPAN_OK) {
        return 2;
    }
    atomic_store(&stop, false);
    for (int i = 0; i < READERS; i++) {
        if (pthread_create(&threads[i], NULL, read_fixed_pairs, fixed) != 0) {
            return 2;
        }
    }
    /* One ns a time: a late reading stays inside epsilon, so that earliest's maximum moves nothing.
     */
    for (unsigned long t = 2; t < changes && atomic_load(&failures) == 0; t++) {
        if (clock_fixed_set(fixed, FIXED_APART_NS + t, t) != SPAN_OK) {
            return 2;
        }
    }
    atomic_store(&stop, true);
    for (int i = 0; i < READERS; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    clock_free(fixed);
    return 0;
}

static void change_one_thing(struct rng *r)
{
    struct clock_info info;

    switch (rng_below(r, 4)) {
    case 0:
        if (clock_set_epsilon(shared_clock, rng_between(r, MS_NS, EPSILON_NS_MAX), NULL)) {
            atomic_fetch_add(&failures, 1);
        }
        break;
    case 1:
        if (clock_set_error(shared_clock, (int64_t)rng_between(r, 0, 2 * MS_NS) - ERROR_NS_MAX, 0,
                            NULL)) {
            atomic_fetch_add(&failures, 1);
        }
        break;
    case 2:
        (void)clock_refresh(shared_clock);
        break;
    default:
        clock_info_get(shared_clock, &info);
        if (info.state > CLOCK_WIDENED) {
            atomic_fetch_add(&failures, 1);
        }
        break;
    }
}

int main(int argc, char **argv)
{
    const unsigned long changes = argc > 1 ? strtoul(argv[1], NULL, 10) : 100000;
    const uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : rng_os_u64();
    struct clock_options o;
    pthread_t threads[READERS];
    struct rng r;

    printf("seed %llu\n", (unsigned long long)seed);
    rng_init(&r, seed);
    clock_options_init(&o);
    o.epsilon_ns = 2 * MS_NS;
    o.peer_count = 4;
    if (clock_new(&o, &shared_clock, NULL) != SPAN_OK) {
        return 2;
    }
    for (int i = 0; i < READERS; i++) {
        if (pthread_create(&threads[i], NULL, read_all_the_time, NULL) != 0) {
            return 2;
        }
    }
    for (unsigned long i = 0; i < changes && atomic_load(&failures) == 0; i++) {
        change_one_thing(&r);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < READERS; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    clock_free(shared_clock);
    if (check_whole_settings(changes) != 0) {
        return 2;
    }
    printf("%lu changes, %llu reads, %u failures\n", changes, (unsigned long long)reads,
           atomic_load(&failures));
    return atomic_load(&failures) ? 1 : 0;
}
