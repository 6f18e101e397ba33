/* Interval arithmetic against a simulated true time: true time inside at every reading through
 * random changes of the bound and of the error, earliest never backward, the rules for changing
 * epsilon. */
#include "base/limits.h"
#include "base/rng.h"
#include "truetime/clock_model.h"

#include <criterion/criterion.h>

#define T0 1700000000000000000ULL

static struct clock_raw raw_at(uint64_t since_ns)
{
    return (struct clock_raw){T0 + since_ns, 5000 + since_ns};
}

static uint64_t width(const struct clock_model *m, uint64_t since_ns)
{
    const struct clock_raw raw = raw_at(since_ns);

    return clock_model_epsilon(m, &raw);
}

static void set_epsilon(struct clock_model *m, uint64_t since_ns, uint64_t epsilon_ns)
{
    const struct clock_raw raw = raw_at(since_ns);

    clock_model_set_epsilon(m, &raw, epsilon_ns);
}

Test(clock_model, raises_epsilon_at_once_and_lowers_it_behind_the_old_bound)
{
    struct clock_model m = {0};

    set_epsilon(&m, 0, 4 * MS_NS);
    cr_assert_eq(width(&m, 0), 4 * MS_NS);
    set_epsilon(&m, 10, 7 * MS_NS);
    cr_assert_eq(width(&m, 10), 7 * MS_NS);
    set_epsilon(&m, 20, 1 * MS_NS);
    cr_assert_eq(clock_model_epsilon_wanted(&m), 1 * MS_NS);
    cr_assert_eq(width(&m, 20), 7 * MS_NS);
    /* latest was 20 + 7 ms; earliest passes it 7 ms later. */
    cr_assert_eq(width(&m, 20 + 14 * MS_NS), 7 * MS_NS);
    cr_assert_eq(width(&m, 21 + 14 * MS_NS), 1 * MS_NS);
}

Test(clock_model, a_new_setting_replaces_one_still_to_come)
{
    struct clock_model m = {0};

    set_epsilon(&m, 0, 10 * MS_NS);
    set_epsilon(&m, 0, 1 * MS_NS);
    set_epsilon(&m, 5 * MS_NS, 4 * MS_NS); /* still lower than what is in force */
    cr_assert_eq(width(&m, 20 * MS_NS + 1), 10 * MS_NS);
    cr_assert_eq(width(&m, 25 * MS_NS + 1), 4 * MS_NS);
    set_epsilon(&m, 30 * MS_NS, 1 * MS_NS);
    set_epsilon(&m, 31 * MS_NS, 4 * MS_NS); /* back to what is in force */
    cr_assert_eq(width(&m, 60 * MS_NS), 4 * MS_NS);
    set_epsilon(&m, 70 * MS_NS, 1 * MS_NS);
    set_epsilon(&m, 71 * MS_NS, 9 * MS_NS);
    cr_assert_eq(width(&m, 71 * MS_NS), 9 * MS_NS);
    cr_assert_eq(width(&m, 100 * MS_NS), 9 * MS_NS);
}

Test(clock_model, a_passed_bound_does_not_come_back_when_the_reading_steps_back)
{
    struct clock_model m = {0};
    struct clock_raw raw = raw_at(3 * MS_NS);

    set_epsilon(&m, 0, 1 * MS_NS);
    set_epsilon(&m, 0, MS_NS / 2);
    clock_model_settle(&m, &raw);
    cr_assert_eq(m.next_after_ns, 0);
    clock_model_set_error(&m, &raw, -5 * (int64_t)MS_NS, 0);
    cr_assert_eq(width(&m, 3 * MS_NS), MS_NS / 2);
}

Test(clock_model, measured_error_is_a_saw_tooth_over_the_configured_bound)
{
    struct clock_model m = {0};
    struct clock_raw raw = raw_at(0);

    set_epsilon(&m, 0, 1 * MS_NS);
    clock_model_synced(&m, &raw, 900000, 200000); /* 0.9 ms, growing by 200 us a second */
    cr_assert_eq(width(&m, 0), 1 * MS_NS);
    cr_assert_eq(width(&m, 10 * SEC_NS), 2900000);
    raw = raw_at(10 * SEC_NS);
    clock_model_synced(&m, &raw, 1200000, 200000);
    cr_assert_eq(width(&m, 10 * SEC_NS), 1200000);
    cr_assert_eq(width(&m, 11 * SEC_NS), 1400000);
}

Test(clock_model, wild_errors_saturate)
{
    struct clock_model m = {0};
    const struct clock_raw raw = raw_at(0);
    const struct clock_raw end = {UINT64_MAX, UINT64_MAX};
    struct tt_interval i;

    clock_model_set_epsilon(&m, &raw, UINT64_MAX);
    clock_model_set_error(&m, &raw, INT64_MAX, INT64_MAX);
    i = clock_model_interval(&m, &end);
    cr_assert_eq(i.latest.ns, UINT64_MAX);
    clock_model_set_error(&m, &raw, INT64_MIN, INT64_MIN);
    i = clock_model_interval(&m, &end);
    cr_assert_eq(i.earliest.ns, 0);
    clock_model_synced(&m, &raw, UINT64_MAX, UINT64_MAX);
    cr_assert_eq(clock_model_epsilon(&m, &end), UINT64_MAX);
}

Test(clock_model, keeps_earliest_and_reports_an_impossible_reading)
{
    struct tt_interval i = {tt_ts_of(100), tt_ts_of(120)};

    cr_assert(clock_model_keep_earliest(&i, tt_ts_of(90)));
    cr_assert_eq(i.earliest.ns, 100);
    cr_assert(clock_model_keep_earliest(&i, tt_ts_of(120)));
    cr_assert_eq(i.earliest.ns, 120);
    cr_assert_eq(i.latest.ns, 120);
    cr_assert(!clock_model_keep_earliest(&i, tt_ts_of(121)));
    cr_assert_eq(i.earliest.ns, 121);
    cr_assert_eq(i.latest.ns, 121, "an interval never ends before it begins");
}

Test(clock_model, tells_when_a_timer_should_fire)
{
    const struct tt_now now = {{tt_ts_of(1000), tt_ts_of(1200)}, 50, CLOCK_SYNCED};
    const struct tt_now late = {{tt_ts_of(1000), tt_ts_of(1200)}, 5000, CLOCK_SYNCED};

    cr_assert_eq(clock_mono_when_after(&now, tt_ts_of(999)), 50);
    cr_assert_eq(clock_mono_when_after(&now, tt_ts_of(1000)), 51, "after is strict");
    cr_assert_eq(clock_mono_when_after(&now, tt_ts_of(1500)), 551);
    cr_assert_eq(clock_mono_when_after(&late, tt_ts_of(UINT64_MAX)), UINT64_MAX, "never");
    cr_assert_eq(clock_mono_of(&now, tt_ts_of(1100)), 50);
    cr_assert_eq(clock_mono_of(&now, tt_ts_of(1130)), 80);
    cr_assert_eq(clock_mono_of(&now, tt_ts_of(1070)), 20);
    cr_assert_eq(clock_mono_of(&now, tt_ts_of(7)), 0);
}

/* A cluster operator's life: the real error is moved only inside the bound that is in force and the
 * one that is coming; the bound changes at random (rule B10's assert). */
Test(clock_model, holds_true_time_through_random_changes)
{
    struct rng r;
    const uint64_t seed = rng_os_u64();
    struct clock_model m = {0};
    uint64_t t = 0;
    uint64_t kept = 0;

    cr_log_info("seed %llu", (unsigned long long)seed);
    rng_init(&r, seed);
    set_epsilon(&m, 0, 5 * MS_NS);
    for (int step = 0; step < 200000; step++) {
        struct clock_raw raw;
        struct tt_interval i;
        uint64_t bound = 0;

        t += rng_below(&r, MS_NS / 2);
        raw = raw_at(t);
        if (rng_below(&r, 50) == 0) {
            const uint64_t wanted = rng_between(&r, 1, 25 * MS_NS);
            const int64_t error = clock_model_error(&m, &raw);

            if ((uint64_t)(error < 0 ? -error : error) > wanted) {
                clock_model_set_error(&m, &raw, 0, 0); /* first offsets shrink, then epsilon */
            }
            clock_model_set_epsilon(&m, &raw, wanted);
        }
        bound = clock_model_epsilon_wanted(&m);
        if (rng_below(&r, 20) == 0) {
            clock_model_set_error(&m, &raw, (int64_t)rng_between(&r, 0, 2 * bound) - (int64_t)bound,
                                  0);
        }
        if (rng_below(&r, 30) == 0) {
            clock_model_settle(&m, &raw);
        }
        i = clock_model_interval(&m, &raw);
        cr_assert(clock_model_keep_earliest(&i, tt_ts_of(kept)), "step %d", step);
        cr_assert(i.earliest.ns <= raw.real_ns, "step %d: earliest after true time", step);
        cr_assert(i.latest.ns >= raw.real_ns, "step %d: latest before true time", step);
        cr_assert(i.earliest.ns >= kept, "step %d: earliest ran backward", step);
        kept = i.earliest.ns;
    }
}

/* With drift: the bound of the drift's lifetime is respected by the caller; the model must add no
 * more than the drift says. */
Test(clock_model, drift_grows_linearly_and_without_overflow)
{
    struct clock_model m = {0};
    struct clock_raw raw = raw_at(0);

    clock_model_set_error(&m, &raw, 1000, -50000); /* -50 us a second */
    raw = raw_at(SEC_NS / 2);
    cr_assert_eq(clock_model_error(&m, &raw), 1000 - 25000);
    raw = raw_at(86400 * SEC_NS * 365);
    cr_assert_eq(clock_model_error(&m, &raw), 1000 - 50000 * 86400LL * 365);
    cr_assert_eq(clock_model_reading(&m, &raw), raw.real_ns + 1000 - 50000 * 86400ULL * 365);
}
