/* The two pure machines: steps of CLOCK_REALTIME, and what a clock may be used for. */
#include "base/limits.h"
#include "base/rng.h"
#include "truetime/clock_state.h"

#include <criterion/criterion.h>

#define QUIET (5 * SEC_NS)

static struct clock_observation good_at(uint64_t s)
{
    return (struct clock_observation){.mono_ns = 1000 * SEC_NS + s * SEC_NS,
                                      .epsilon_ns = MS_NS,
                                      .epsilon_usual_ns = MS_NS,
                                      .epsilon_max_ns = 25 * MS_NS,
                                      .peers = 2};
}

static enum clock_state step(struct clock_health *h, const struct clock_observation *o)
{
    return clock_health_step(h, o, QUIET);
}

Test(clock_state, starts_as_the_first_observation_deserves)
{
    struct clock_health h;
    struct clock_observation o = good_at(0);

    clock_health_init(&h);
    cr_assert_eq(step(&h, &o), CLOCK_SYNCED);
    cr_assert_str_eq(h.reason, "");
    cr_assert_eq(h.changes, 0);
    clock_health_init(&h);
    o.unsynced = true;
    cr_assert_eq(step(&h, &o), CLOCK_STALE_READS_ONLY);
    clock_health_init(&h);
    o.unbounded = true;
    cr_assert_eq(step(&h, &o), CLOCK_FENCED);
    cr_assert_not_null(strstr(h.reason, "adjtimex"));
}

Test(clock_state, epsilon_decides_between_synced_widened_and_stale_reads)
{
    struct clock_health h;
    struct clock_observation o = good_at(0);

    clock_health_init(&h);
    (void)step(&h, &o);
    o = good_at(1);
    o.epsilon_ns = 2 * MS_NS;
    cr_assert_eq(step(&h, &o), CLOCK_WIDENED);
    cr_assert_str_eq(h.reason, "epsilon 2.000 ms is above the usual 1.000 ms");
    o = good_at(2);
    cr_assert_eq(step(&h, &o), CLOCK_SYNCED, "these two may do the same: no waiting");
    o = good_at(3);
    o.epsilon_ns = 25 * MS_NS;
    cr_assert_eq(step(&h, &o), CLOCK_WIDENED);
    o.epsilon_ns++;
    cr_assert_eq(step(&h, &o), CLOCK_STALE_READS_ONLY);
    cr_assert_not_null(strstr(h.reason, "epsilon_max"));
    o = good_at(7);
    cr_assert_eq(step(&h, &o), CLOCK_STALE_READS_ONLY);
    cr_assert_not_null(strstr(h.reason, "0.0 of 5.0 s quiet after: epsilon 25.000 ms"));
    o = good_at(12);
    o.epsilon_ns = 3 * MS_NS;
    cr_assert_eq(step(&h, &o), CLOCK_WIDENED, "back to what it deserves now");
}

struct fence {
    struct clock_observation add;
    const char *reason;
};

Test(clock_state, everything_that_shows_a_bad_clock_fences_at_once)
{
    static const struct fence table[] = {
        {{.jump_ns = -3600 * (int64_t)SEC_NS}, "jumped by -3600.000000 s"},
        {{.slept_ns = 2 * SEC_NS}, "slept for 2.000 s"},
        {{.behind_ns = 1}, "before a time"},
        {{.conflicts = 2}, "2 of 2 peers"},
        {{.unbounded = true}, "no bound"},
    };

    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct clock_health h;
        struct clock_observation o = good_at(0);

        clock_health_init(&h);
        (void)step(&h, &o);
        o.jump_ns = table[i].add.jump_ns;
        o.slept_ns = table[i].add.slept_ns;
        o.behind_ns = table[i].add.behind_ns;
        o.conflicts = table[i].add.conflicts;
        o.unbounded = table[i].add.unbounded;
        cr_assert_eq(step(&h, &o), CLOCK_FENCED, "case %zu", i);
        cr_assert_not_null(strstr(h.reason, table[i].reason), "%s", h.reason);
        cr_assert_eq(h.changes, 1);
    }
}

Test(clock_state, only_a_majority_of_all_peers_fences)
{
    for (unsigned peers = 1; peers <= 6; peers++) {
        for (unsigned conflicts = 0; conflicts <= peers; conflicts++) {
            struct clock_health h;
            struct clock_observation o = good_at(0);

            clock_health_init(&h);
            o.peers = peers;
            o.conflicts = conflicts;
            cr_assert_eq(step(&h, &o) == CLOCK_FENCED, conflicts > peers / 2, "%u of %u", conflicts,
                         peers);
        }
    }
}

Test(clock_state, comes_back_after_a_quiet_time_without_one_bad_look)
{
    struct clock_health h;
    struct clock_observation o = good_at(0);

    clock_health_init(&h);
    o.conflicts = 2;
    (void)step(&h, &o);
    for (uint64_t s = 1; s <= 5; s++) {
        o = good_at(s);
        cr_assert_eq(step(&h, &o), CLOCK_FENCED);
    }
    o = good_at(6);
    o.conflicts = 2; /* once more: the time starts again */
    cr_assert_eq(step(&h, &o), CLOCK_FENCED);
    for (uint64_t s = 7; s <= 11; s++) {
        o = good_at(s);
        cr_assert_eq(step(&h, &o), CLOCK_FENCED, "at %d", (int)s);
    }
    cr_assert_not_null(strstr(h.reason, "4.0 of 5.0 s quiet after: the intervals of 2 of 2"));
    o = good_at(12);
    o.promised = true; /* rule B9: after all its promises have passed */
    cr_assert_eq(step(&h, &o), CLOCK_FENCED);
    cr_assert_not_null(strstr(h.reason, "promise"));
    o = good_at(13);
    cr_assert_eq(step(&h, &o), CLOCK_SYNCED);
    cr_assert_str_eq(h.reason, "");
    cr_assert_eq(h.since_mono_ns, o.mono_ns);
}

Test(clock_state, stale_reads_can_get_worse_and_fenced_passes_through_nothing)
{
    struct clock_health h;
    struct clock_observation o = good_at(0);

    clock_health_init(&h);
    o.unsynced = true;
    cr_assert_eq(step(&h, &o), CLOCK_STALE_READS_ONLY);
    o.jump_ns = 1;
    cr_assert_eq(step(&h, &o), CLOCK_FENCED);
    o = good_at(1);
    o.unsynced = true;
    cr_assert_eq(step(&h, &o), CLOCK_FENCED, "better, but not for long enough");
    o = good_at(6);
    o.unsynced = true;
    cr_assert_eq(step(&h, &o), CLOCK_STALE_READS_ONLY);
}

/* Whatever is observed: never better than the observation, never out of the two bad states before
 * the quiet time is over. */
Test(clock_state, random_observations_never_bring_it_back_early)
{
    struct rng r;
    const uint64_t seed = rng_os_u64();
    struct clock_health h;
    struct clock_observation o = good_at(0);
    uint64_t bad_at = 0; /* last look that deserved no better than the state */

    cr_log_info("seed %llu", (unsigned long long)seed);
    rng_init(&r, seed);
    clock_health_init(&h);
    (void)step(&h, &o);
    for (int i = 0; i < 100000; i++) {
        const enum clock_state before = h.state;
        enum clock_state deserves = CLOCK_SYNCED;
        enum clock_state after = CLOCK_SYNCED;

        o.mono_ns += rng_below(&r, 2 * SEC_NS);
        o.jump_ns = rng_below(&r, 40) == 0 ? -5 : 0;
        o.unsynced = rng_below(&r, 20) == 0;
        o.epsilon_ns = rng_below(&r, 10) == 0 ? 2 * MS_NS : MS_NS;
        o.promised = rng_below(&r, 10) == 0;
        deserves = o.jump_ns              ? CLOCK_FENCED
                   : o.unsynced           ? CLOCK_STALE_READS_ONLY
                   : o.epsilon_ns > MS_NS ? CLOCK_WIDENED
                                          : CLOCK_SYNCED;
        after = step(&h, &o);
        cr_assert(after >= deserves);
        if (deserves >= before) {
            bad_at = o.mono_ns;
        }
        if (before >= CLOCK_STALE_READS_ONLY && after < before) {
            cr_assert(o.mono_ns - bad_at >= QUIET);
            cr_assert(!o.promised);
            cr_assert_eq(after, deserves);
        }
        if (before <= CLOCK_WIDENED || deserves >= before) {
            cr_assert_eq(after, deserves);
        }
    }
}

/* ---- jumps ---- */

static struct clock_sample sample_at(uint64_t s, int64_t stepped_ns, uint64_t slept_ns)
{
    const uint64_t mono = 100 * SEC_NS + s * SEC_NS;

    return (struct clock_sample){.real_ns =
                                     1700000000 * SEC_NS + mono + slept_ns + (uint64_t)stepped_ns,
                                 .mono_ns = mono,
                                 .boot_ns = mono + 7 + slept_ns,
                                 .uncertainty_ns = 100};
}

Test(clock_jump, follows_what_is_inside_the_drift_bound)
{
    struct clock_jump j;
    struct clock_sample s = sample_at(0, 0, 0);
    int64_t off = 0;

    clock_jump_init(&j, &s);
    for (uint64_t t = 1; t < 1000; t++) {
        off += 200000;
        s = sample_at(t, off, 0);
        cr_assert_eq(clock_jump_step(&j, &s, QUIET), 0, "at %d", (int)t);
    }
    s = sample_at(1000, off + 400000, 0);
    cr_assert_eq(clock_jump_step(&j, &s, QUIET), 400000);
    cr_assert(j.jumped);
}

Test(clock_jump, is_noticed_however_late_the_look_comes)
{
    struct clock_jump j;
    struct clock_sample s = sample_at(0, 0, 0);

    clock_jump_init(&j, &s);
    s = sample_at(86400, 3 * (int64_t)MS_NS, 0);
    cr_assert_eq(clock_jump_size(&j, &s), 3 * (int64_t)MS_NS);
    s = sample_at(86400, -3 * (int64_t)MS_NS, 0);
    cr_assert_eq(clock_jump_size(&j, &s), -3 * (int64_t)MS_NS);
}

Test(clock_jump, goes_on_along_the_old_line_until_that_is_met_again)
{
    struct clock_jump j;
    struct clock_sample s = sample_at(0, 0, 0);
    const struct clock_sample straight = sample_at(2, 0, 0);

    clock_jump_init(&j, &s);
    s = sample_at(2, 3600 * (int64_t)SEC_NS, 0);
    cr_assert_eq(clock_jump_step(&j, &s, QUIET), 3600 * (int64_t)SEC_NS);
    cr_assert_eq(clock_jump_real(&j, &s), straight.real_ns);
    s = sample_at(4, 3600 * (int64_t)SEC_NS, 0);
    cr_assert_neq(clock_jump_step(&j, &s, QUIET), 0);
    s = sample_at(5, 0, 0);
    cr_assert_eq(clock_jump_step(&j, &s, QUIET), 0);
    cr_assert(!j.jumped);
}

Test(clock_jump, a_new_line_is_adopted_when_it_was_kept)
{
    struct clock_jump j;
    struct clock_sample s = sample_at(0, 0, 0);

    clock_jump_init(&j, &s);
    for (uint64_t t = 1; t <= 5; t++) {
        s = sample_at(t, -9 * (int64_t)SEC_NS, 0);
        cr_assert_neq(clock_jump_step(&j, &s, QUIET), 0);
    }
    s = sample_at(6, -8 * (int64_t)SEC_NS, 0); /* moved again: the time starts anew */
    cr_assert_neq(clock_jump_step(&j, &s, QUIET), 0);
    s = sample_at(10, -8 * (int64_t)SEC_NS, 0);
    cr_assert_neq(clock_jump_step(&j, &s, QUIET), 0);
    s = sample_at(11, -8 * (int64_t)SEC_NS, 0);
    cr_assert_eq(clock_jump_step(&j, &s, QUIET), 0);
    s = sample_at(12, -8 * (int64_t)SEC_NS, 0);
    cr_assert_eq(clock_jump_step(&j, &s, QUIET), 0);
    cr_assert_eq(clock_jump_real(&j, &s), s.real_ns);
}

/* spanlite sim --seed 99, when it was found: after it was set right the node stayed fenced for
 * ever, because the line drifted by more than the slack in a quiet time, and began anew. */
Test(clock_jump, a_new_line_that_drifts_inside_the_bound_is_adopted)
{
    for (int64_t drift = -200000; drift <= 200000; drift += 400000) {
        struct clock_jump j;
        struct clock_sample s = sample_at(0, 0, 0);
        int64_t left = 1;

        clock_jump_init(&j, &s);
        for (uint64_t t = 1; t <= 6; t++) {
            s = sample_at(t, -538 * (int64_t)MS_NS + (int64_t)t * drift, 0);
            left = clock_jump_step(&j, &s, QUIET);
            cr_assert(t == 6 || left != 0, "at %d", (int)t);
        }
        cr_assert_eq(left, 0);
        cr_assert_eq(clock_jump_real(&j, &s), s.real_ns);
    }
}

Test(clock_jump, sleep_is_told_from_a_step)
{
    struct clock_jump j;
    struct clock_sample s = sample_at(0, 0, 0);

    clock_jump_init(&j, &s);
    s = sample_at(1, 0, 30 * SEC_NS);
    cr_assert_eq(clock_jump_slept(&j, &s), 30 * SEC_NS);
    cr_assert_eq(clock_jump_size(&j, &s), 0);
    cr_assert_eq(clock_jump_real(&j, &s), s.real_ns);
    cr_assert_eq(clock_jump_step(&j, &s, QUIET), 0);
    cr_assert_eq(clock_jump_slept(&j, &s), 0, "it is told once");
    s = sample_at(2, SEC_NS, 60 * SEC_NS);
    cr_assert_eq(clock_jump_slept(&j, &s), 30 * SEC_NS);
    cr_assert_eq(clock_jump_size(&j, &s), SEC_NS);
}

Test(clock_jump, an_uncertain_sample_proves_nothing)
{
    struct clock_jump j;
    struct clock_sample s = sample_at(0, 0, 0);

    clock_jump_init(&j, &s);
    s = sample_at(1, 9 * (int64_t)MS_NS, 0);
    s.uncertainty_ns = 10 * MS_NS; /* stopped between the readings */
    cr_assert_eq(clock_jump_size(&j, &s), 0);
}
