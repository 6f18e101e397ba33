/* A node's clock: on clocks made by hand where something must happen to them, on the machine's own
 * clocks with threads where it matters that nothing goes wrong. */
#include "base/alloc.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/rng.h"
#include "truetime/clock.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

#define QUIET (5 * SEC_NS)

/* ---- clocks made by hand ---- */

struct hand {
    uint64_t mono_ns;
    int64_t line_ns; /* real - mono */
    uint64_t slept_ns;
    uint64_t stopped_ns; /* between the two readings of `read` */
    uint64_t error_ns;
    bool unsynced;
    unsigned samples;
};

static void hand_read(void *ctx, struct clock_raw *out)
{
    const struct hand *h = ctx;

    out->mono_ns = h->mono_ns + h->stopped_ns;
    out->real_ns = h->mono_ns + (uint64_t)h->line_ns;
}

static void hand_sample(void *ctx, struct clock_sample *out)
{
    struct hand *h = ctx;

    h->samples++;
    *out = (struct clock_sample){.real_ns = h->mono_ns + (uint64_t)h->line_ns,
                                 .mono_ns = h->mono_ns,
                                 .boot_ns = h->mono_ns + h->slept_ns,
                                 .uncertainty_ns = 50};
}

static void hand_error(void *ctx, uint64_t *error_ns, bool *unsynced)
{
    const struct hand *h = ctx;

    *error_ns = h->error_ns;
    *unsynced = h->unsynced;
}

struct fixture {
    struct hand hand;
    struct clock_os os;
    struct clock *clock;
};

static struct fixture *fixture_new(enum clock_source source)
{
    struct fixture *f = SPAN_NEW(struct fixture);
    struct clock_options o;

    log_set_level(LOG_ERROR);
    f->hand = (struct hand){.mono_ns = 7 * SEC_NS, .line_ns = 1700000000 * (int64_t)SEC_NS};
    f->os = (struct clock_os){hand_read, hand_sample, hand_error, &f->hand};
    clock_options_init(&o);
    o.source = source;
    o.peer_count = 2;
    o.quiet_ns = QUIET;
    o.os = &f->os;
    cr_assert_eq(clock_new(&o, &f->clock, NULL), SPAN_OK);
    return f;
}

static void fixture_free(struct fixture *f)
{
    clock_free(f->clock);
    span_free(f);
}

static struct tt_now now_of(struct fixture *f)
{
    struct tt_now now = {0};

    clock_now(f->clock, &now);
    return now;
}

/* Seconds go by, with a look each second as the node does; returns the state at the end. */
static enum clock_state pass(struct fixture *f, unsigned seconds)
{
    for (unsigned i = 0; i < seconds; i++) {
        f->hand.mono_ns += SEC_NS;
        (void)now_of(f);
        (void)clock_refresh(f->clock);
    }
    return now_of(f).state;
}

static uint64_t real_of(const struct fixture *f)
{
    return f->hand.mono_ns + (uint64_t)f->hand.line_ns;
}

static const char *reason_of(struct fixture *f)
{
    static struct clock_info info;

    clock_info_get(f->clock, &info);
    return info.reason;
}

/* ---- reading ---- */

Test(clock, interval_is_the_emulated_reading_and_epsilon_on_both_sides)
{
    struct fixture *f = fixture_new(CLOCK_SOURCE_EMULATED);
    struct tt_now now = now_of(f);
    struct clock_info info;

    cr_assert_eq(now.tt.earliest.ns, real_of(f) - MS_NS);
    cr_assert_eq(now.tt.latest.ns, real_of(f) + MS_NS);
    cr_assert_eq(now.mono_ns, f->hand.mono_ns);
    cr_assert_eq(now.state, CLOCK_SYNCED);
    cr_assert_eq(clock_set_error(f->clock, 600000, 100000, NULL), SPAN_OK);
    f->hand.mono_ns += SEC_NS;
    now = now_of(f);
    cr_assert_eq(now.tt.latest.ns, real_of(f) + MS_NS + 700000);
    cr_assert_eq(clock_true_now(f->clock).ns, real_of(f));
    clock_info_get(f->clock, &info);
    cr_assert_eq(info.offset_ns, 700000);
    cr_assert_eq(info.drift_ppb, 100000);
    cr_assert_eq(info.epsilon_ns, MS_NS);
    cr_assert_eq(info.peers, 2);
    fixture_free(f);
}

Test(clock, a_thread_stopped_between_two_readings_is_no_jump)
{
    struct fixture *f = fixture_new(CLOCK_SOURCE_EMULATED);

    f->hand.stopped_ns = 20 * MS_NS;
    cr_assert_eq(now_of(f).state, CLOCK_SYNCED);
    cr_assert_eq(now_of(f).tt.latest.ns, real_of(f) + MS_NS);
    cr_assert_eq(clock_refresh(f->clock), CLOCK_SYNCED);
    fixture_free(f);
}

Test(clock, the_usual_reading_needs_no_careful_sample)
{
    struct fixture *f = fixture_new(CLOCK_SOURCE_EMULATED);
    const unsigned before = f->hand.samples;

    for (int i = 0; i < 100; i++) {
        f->hand.mono_ns += MS_NS;
        (void)now_of(f);
    }
    cr_assert_eq(f->hand.samples, before);
    fixture_free(f);
}

Test(clock, epsilon_rises_at_once_and_falls_behind_the_old_bound)
{
    struct fixture *f = fixture_new(CLOCK_SOURCE_EMULATED);
    struct span_error err;
    struct clock_info info;

    cr_assert_eq(clock_set_epsilon(f->clock, 7 * MS_NS, &err), SPAN_OK);
    cr_assert_eq(now_of(f).tt.latest.ns, real_of(f) + 7 * MS_NS);
    cr_assert_eq(clock_set_epsilon(f->clock, 2 * MS_NS, &err), SPAN_OK);
    cr_assert_eq(now_of(f).tt.latest.ns, real_of(f) + 7 * MS_NS);
    clock_info_get(f->clock, &info);
    cr_assert_eq(info.epsilon_ns, 7 * MS_NS);
    cr_assert_eq(info.epsilon_wanted_ns, 2 * MS_NS);
    f->hand.mono_ns += 14 * MS_NS + 1;
    cr_assert_eq(now_of(f).tt.latest.ns, real_of(f) + 2 * MS_NS);
    cr_assert_eq(clock_set_epsilon(f->clock, EPSILON_NS_MAX + 1, &err), SPAN_INVALID);
    cr_assert_str_eq(err.text, "epsilon 25.000 ms is above epsilon_max 25.000 ms");
    fixture_free(f);
}

Test(clock, options_and_settings_are_checked)
{
    struct clock_options o;
    struct clock *c = NULL;
    struct span_error err;
    enum clock_source source = CLOCK_SOURCE_FIXED;
    struct fixture *f = fixture_new(CLOCK_SOURCE_SYSTEM);

    clock_options_init(&o);
    o.epsilon_ns = o.epsilon_max_ns + 1;
    cr_assert_eq(clock_new(&o, &c, &err), SPAN_INVALID);
    cr_assert_null(c);
    clock_options_init(&o);
    o.source = CLOCK_SOURCE_SYSTEM;
    o.offset_ns = 1;
    cr_assert_eq(clock_new(&o, &c, &err), SPAN_INVALID);
    cr_assert_not_null(strstr(err.text, "emulated only, not on system"));
    cr_assert_eq(clock_set_error(f->clock, 1, 0, &err), SPAN_UNSUPPORTED);
    cr_assert_eq(clock_fixed_set(f->clock, 1, 1), SPAN_UNSUPPORTED);
    cr_assert_eq(clock_epsilon_check(25 * MS_NS, 250 * MS_NS, &err), SPAN_OK);
    cr_assert_eq(clock_epsilon_check(20 * MS_NS, 199 * MS_NS, &err), SPAN_INVALID);
    cr_assert_eq(clock_epsilon_check(0, 250 * MS_NS, &err), SPAN_INVALID);
    cr_assert_eq(clock_epsilon_check(EPSILON_NS_MAX + 1, SEC_NS, &err), SPAN_INVALID);
    cr_assert(clock_source_parse("system", &source));
    cr_assert_eq(source, CLOCK_SOURCE_SYSTEM);
    cr_assert(!clock_source_parse("sundial", &source));
    fixture_free(f);
}

/* ---- bad clocks ---- */

Test(clock, a_step_fences_the_reading_that_would_have_used_it)
{
    struct fixture *f = fixture_new(CLOCK_SOURCE_EMULATED);
    const uint64_t line = (uint64_t)f->hand.line_ns;
    struct tt_now now = {0};

    (void)pass(f, 3);
    f->hand.line_ns += 3600 * (int64_t)SEC_NS;
    now = now_of(f);
    cr_assert_eq(now.state, CLOCK_FENCED);
    cr_assert_eq(now.tt.latest.ns, f->hand.mono_ns + line + MS_NS, "along the old line");
    cr_assert_not_null(strstr(reason_of(f), "CLOCK_REALTIME jumped by +3600.0"), "%s",
                       reason_of(f));
    cr_assert_eq(pass(f, 3), CLOCK_FENCED);
    cr_assert_eq(now_of(f).tt.latest.ns, f->hand.mono_ns + line + MS_NS);
    cr_assert_eq(now_of(f).mono_ns, f->hand.mono_ns, "patience goes on");
    f->hand.line_ns = (int64_t)line; /* the administrator undoes it */
    cr_assert_eq(pass(f, 5), CLOCK_FENCED);
    cr_assert_not_null(strstr(reason_of(f), "quiet after: CLOCK_REALTIME jumped"));
    cr_assert_eq(pass(f, 1), CLOCK_SYNCED);
    cr_assert_str_eq(reason_of(f), "");
    fixture_free(f);
}

Test(clock, a_step_that_nobody_read_is_found_by_the_refresh)
{
    struct fixture *f = fixture_new(CLOCK_SOURCE_EMULATED);

    f->hand.line_ns -= 2 * (int64_t)MS_NS;
    f->hand.mono_ns += SEC_NS;
    cr_assert_eq(clock_refresh(f->clock), CLOCK_FENCED);
    fixture_free(f);
}

Test(clock, a_step_there_and_back_between_two_looks_still_counts)
{
    struct fixture *f = fixture_new(CLOCK_SOURCE_EMULATED);

    f->hand.line_ns += (int64_t)SEC_NS;
    (void)now_of(f);
    f->hand.line_ns -= (int64_t)SEC_NS;
    cr_assert_eq(now_of(f).state, CLOCK_FENCED);
    cr_assert_eq(clock_refresh(f->clock), CLOCK_FENCED);
    cr_assert_not_null(strstr(reason_of(f), "jumped by +1.0"));
    cr_assert_eq(pass(f, 6), CLOCK_SYNCED);
    fixture_free(f);
}

Test(clock, a_step_that_stays_is_adopted_and_watched_for_as_long_again)
{
    struct fixture *f = fixture_new(CLOCK_SOURCE_EMULATED);
    unsigned seconds = 0;

    f->hand.line_ns += 30 * (int64_t)SEC_NS;
    while (pass(f, 1) == CLOCK_FENCED) {
        cr_assert(++seconds < 60);
    }
    cr_assert(seconds >= 10 && seconds <= 12, "%u", seconds);
    cr_assert_eq(now_of(f).tt.latest.ns, real_of(f) + MS_NS);
    fixture_free(f);
}

Test(clock, a_step_back_that_stays_holds_until_earliest_is_met_again)
{
    struct fixture *f = fixture_new(CLOCK_SOURCE_EMULATED);
    uint64_t kept = now_of(f).tt.earliest.ns;
    unsigned seconds = 0;

    f->hand.line_ns -= 30 * (int64_t)SEC_NS;
    while (pass(f, 1) == CLOCK_FENCED) {
        const struct tt_now now = now_of(f);

        cr_assert(now.tt.earliest.ns >= kept);
        cr_assert(now.tt.latest.ns >= now.tt.earliest.ns);
        kept = now.tt.earliest.ns;
        cr_assert(++seconds < 90);
    }
    /* 5 s on the old line, 30 s to meet it again, 5 s quiet. */
    cr_assert(seconds >= 39 && seconds <= 43, "%u", seconds);
    fixture_free(f);
}

Test(clock, sleep_fences_but_the_clock_is_believed_at_once)
{
    struct fixture *f = fixture_new(CLOCK_SOURCE_EMULATED);

    f->hand.slept_ns += 30 * SEC_NS;
    f->hand.line_ns += 30 * (int64_t)SEC_NS;
    cr_assert_eq(now_of(f).state, CLOCK_FENCED);
    cr_assert_eq(now_of(f).tt.latest.ns, real_of(f) + MS_NS);
    cr_assert_not_null(strstr(reason_of(f), "slept for 30.000 s"), "%s", reason_of(f));
    cr_assert_eq(pass(f, 5), CLOCK_FENCED);
    cr_assert_eq(pass(f, 1), CLOCK_SYNCED);
    fixture_free(f);
}

Test(clock, an_error_that_shrinks_from_beyond_the_bound_shows_itself)
{
    struct fixture *f = fixture_new(CLOCK_SOURCE_EMULATED);
    struct tt_now now = {0};
    uint64_t kept = 0;

    cr_assert_eq(clock_set_error(f->clock, 2 * (int64_t)SEC_NS, 0, NULL), SPAN_OK);
    now = now_of(f);
    cr_assert_eq(now.state, CLOCK_SYNCED, "nothing shows it yet");
    kept = now.tt.earliest.ns;
    cr_assert_eq(clock_set_error(f->clock, 0, 0, NULL), SPAN_OK);
    now = now_of(f);
    cr_assert_eq(now.state, CLOCK_FENCED);
    cr_assert_eq(now.tt.earliest.ns, kept, "once past is past");
    cr_assert_eq(now.tt.latest.ns, kept);
    cr_assert_not_null(strstr(reason_of(f), "said had passed"), "%s", reason_of(f));
    cr_assert_eq(pass(f, 6), CLOCK_FENCED);
    cr_assert_eq(pass(f, 2), CLOCK_SYNCED);
    cr_assert_eq(now_of(f).tt.earliest.ns, real_of(f) - MS_NS);
    fixture_free(f);
}

/* ---- peers ---- */

static struct tt_interval around(uint64_t ns, uint64_t half)
{
    return (struct tt_interval){tt_ts_of(ns - half), tt_ts_of(ns + half)};
}

Test(clock, one_message_shows_that_we_are_slow_to_a_majority)
{
    struct fixture *f = fixture_new(CLOCK_SOURCE_EMULATED);
    struct tt_now now = {0};
    struct tt_interval sent;

    cr_assert_eq(clock_set_error(f->clock, -10 * (int64_t)MS_NS, 0, NULL), SPAN_OK);
    f->hand.mono_ns += 20 * MS_NS; /* or the step back itself would show */
    now = now_of(f);
    sent = around(real_of(f) - MS_NS / 10, MS_NS);
    cr_assert(!clock_note_message(f->clock, 1, &sent, &now), "its timestamps are refused");
    cr_assert_eq(now_of(f).state, CLOCK_SYNCED, "one of two peers may be the wrong one");
    cr_assert(!clock_note_message(f->clock, 1, &sent, &now));
    cr_assert_eq(now_of(f).state, CLOCK_SYNCED, "the same peer twice is one peer");
    cr_assert(!clock_note_message(f->clock, 3, &sent, &now));
    cr_assert_eq(now_of(f).state, CLOCK_FENCED);
    cr_assert_eq(clock_refresh(f->clock), CLOCK_FENCED);
    cr_assert_not_null(strstr(reason_of(f), "2 of 2 peers"));
    cr_assert_eq(pass(f, 7), CLOCK_FENCED, "while the evidence stands");

    cr_assert_eq(clock_set_error(f->clock, 0, 0, NULL), SPAN_OK);
    now = now_of(f);
    sent = around(real_of(f), MS_NS);
    cr_assert(clock_note_message(f->clock, 1, &sent, &now));
    cr_assert_eq(pass(f, 5), CLOCK_FENCED);
    cr_assert_eq(pass(f, 1), CLOCK_SYNCED);
    fixture_free(f);
}

Test(clock, a_round_trip_shows_that_we_are_fast)
{
    struct fixture *f = fixture_new(CLOCK_SOURCE_EMULATED);
    struct tt_now asked = {0};
    struct tt_now now = {0};
    struct tt_interval answer;

    cr_assert_eq(clock_set_error(f->clock, 10 * (int64_t)MS_NS, 0, NULL), SPAN_OK);
    for (unsigned peer = 1; peer <= 2; peer++) {
        asked = now_of(f);
        f->hand.mono_ns += MS_NS / 10;
        answer = around(real_of(f), MS_NS);
        f->hand.mono_ns += MS_NS / 10;
        now = now_of(f);
        cr_assert(clock_note_message(f->clock, peer, &answer, &now), "not by the answer alone");
        cr_assert(!clock_note_round_trip(f->clock, peer, &asked.tt, &answer, &now));
        cr_assert(clock_note_message(f->clock, peer, &answer, &now));
        cr_assert_eq(now_of(f).state, peer == 2 ? CLOCK_FENCED : CLOCK_SYNCED,
                     "and a message does not wipe out what a round trip showed");
    }
    fixture_free(f);
}

Test(clock, a_message_takes_back_only_what_a_message_showed)
{
    struct fixture *f = fixture_new(CLOCK_SOURCE_EMULATED);
    const struct tt_now now = now_of(f);
    const struct tt_interval slow = around(real_of(f) - 10 * MS_NS, MS_NS);
    const struct tt_interval fast = around(real_of(f) + 10 * MS_NS, MS_NS);
    struct clock_info info;

    cr_assert(!clock_note_round_trip(f->clock, 1, &now.tt, &slow, &now));
    cr_assert(!clock_note_message(f->clock, 1, &fast, &now));
    cr_assert(clock_note_message(f->clock, 1, &now.tt, &now));
    clock_info_get(f->clock, &info);
    cr_assert_eq(info.conflicts, 1, "what the round trip showed stands");
    cr_assert(clock_note_round_trip(f->clock, 1, &now.tt, &now.tt, &now));
    clock_info_get(f->clock, &info);
    cr_assert_eq(info.conflicts, 0);
    fixture_free(f);
}

Test(clock, a_step_forward_does_not_make_an_old_bound_pass)
{
    struct fixture *f = fixture_new(CLOCK_SOURCE_EMULATED);
    struct clock_info info;

    cr_assert_eq(clock_set_epsilon(f->clock, MS_NS / 2, NULL), SPAN_OK);
    f->hand.line_ns += (int64_t)SEC_NS;
    cr_assert_eq(clock_refresh(f->clock), CLOCK_FENCED);
    clock_info_get(f->clock, &info);
    cr_assert_eq(info.epsilon_ns, MS_NS);
    fixture_free(f);
}

Test(clock, evidence_of_silent_peers_runs_out)
{
    struct fixture *f = fixture_new(CLOCK_SOURCE_EMULATED);
    struct tt_now now = now_of(f);
    const struct tt_interval sent = around(real_of(f) + SEC_NS, MS_NS);

    cr_assert(!clock_note_message(f->clock, 1, &sent, &now));
    cr_assert(!clock_note_message(f->clock, 2, &sent, &now));
    cr_assert_eq(pass(f, 14), CLOCK_FENCED);
    cr_assert_eq(pass(f, 2), CLOCK_SYNCED);
    fixture_free(f);
}

Test(clock, a_promise_holds_the_return_until_it_has_passed)
{
    struct fixture *f = fixture_new(CLOCK_SOURCE_EMULATED);

    clock_note_promise(f->clock, tt_ts_of(real_of(f) + 9 * SEC_NS));
    clock_note_promise(f->clock, tt_ts_of(real_of(f) + 2 * SEC_NS));
    f->hand.slept_ns += SEC_NS / 10;
    f->hand.line_ns += (int64_t)SEC_NS / 10;
    cr_assert_eq(clock_refresh(f->clock), CLOCK_FENCED);
    cr_assert_eq(pass(f, 8), CLOCK_FENCED);
    cr_assert_not_null(strstr(reason_of(f), "a promise to pass"), "%s", reason_of(f));
    cr_assert_eq(pass(f, 1), CLOCK_SYNCED);
    fixture_free(f);
}

/* ---- sources ---- */

Test(clock, system_takes_the_kernels_bound_and_says_when_there_is_none)
{
    struct fixture *f = fixture_new(CLOCK_SOURCE_SYSTEM);
    struct tt_now now = {0};

    f->hand.error_ns = 3 * MS_NS;
    cr_assert_eq(clock_refresh(f->clock), CLOCK_WIDENED);
    now = now_of(f);
    cr_assert_eq(now.tt.latest.ns, real_of(f) + 3 * MS_NS);
    f->hand.mono_ns += 2 * SEC_NS; /* grows by 500 ppm between polls */
    cr_assert_eq(now_of(f).tt.latest.ns, real_of(f) + 4 * MS_NS);
    f->hand.error_ns = 100000;
    cr_assert_eq(clock_refresh(f->clock), CLOCK_SYNCED);
    cr_assert_eq(now_of(f).tt.latest.ns, real_of(f) + MS_NS, "never below the configured bound");
    f->hand.error_ns = 26 * MS_NS;
    cr_assert_eq(clock_refresh(f->clock), CLOCK_STALE_READS_ONLY);
    f->hand.error_ns = MS_NS;
    f->hand.unsynced = true;
    cr_assert_eq(clock_refresh(f->clock), CLOCK_STALE_READS_ONLY);
    cr_assert_not_null(strstr(reason_of(f), "not synchronised"));
    f->hand.error_ns = 16 * SEC_NS;
    cr_assert_eq(clock_refresh(f->clock), CLOCK_FENCED);
    f->hand.error_ns = MS_NS;
    f->hand.unsynced = false;
    cr_assert_eq(pass(f, 5), CLOCK_FENCED);
    cr_assert_eq(pass(f, 1), CLOCK_SYNCED);
    fixture_free(f);
}

Test(clock, fixed_says_what_it_was_told_and_checks_nothing)
{
    struct fixture *f = fixture_new(CLOCK_SOURCE_FIXED);
    struct tt_now now = {0};

    cr_assert_eq(now_of(f).tt.latest.ns, real_of(f) + MS_NS);
    cr_assert_eq(clock_fixed_set(f->clock, 2 * real_of(f), 50), SPAN_OK);
    now = now_of(f);
    cr_assert_eq(now.tt.earliest.ns, 2 * real_of(f) - MS_NS);
    cr_assert_eq(now.mono_ns, 50);
    cr_assert_eq(clock_true_now(f->clock).ns, 2 * real_of(f));
    cr_assert_eq(clock_fixed_set(f->clock, real_of(f), 60), SPAN_OK);
    now = now_of(f);
    cr_assert_eq(now.tt.earliest.ns, 2 * real_of(f) - MS_NS, "still never backward");
    cr_assert_eq(now.state, CLOCK_SYNCED);
    cr_assert_eq(clock_refresh(f->clock), CLOCK_SYNCED);
    fixture_free(f);
}

/* ---- on the machine's own clocks, with threads ---- */

struct shared {
    struct clock *clock;
    atomic_bool stop;
    _Atomic uint64_t earliest; /* the largest that any thread has been given */
    atomic_uint failures;
    char first[256];
    atomic_flag said;
};

static void fail(struct shared *s, const char *what, const struct tt_now *now, uint64_t other)
{
    atomic_fetch_add(&s->failures, 1);
    if (!atomic_flag_test_and_set(&s->said)) {
        (void)snprintf(s->first, sizeof s->first, "%s: [%llu, %llu] against %llu", what,
                       (unsigned long long)now->tt.earliest.ns,
                       (unsigned long long)now->tt.latest.ns, (unsigned long long)other);
    }
}

static void *reader(void *arg)
{
    struct shared *s = arg;
    struct tt_now now = {0};
    struct tt_now last = {0};

    while (!atomic_load(&s->stop)) {
        const uint64_t seen = atomic_load(&s->earliest);
        const uint64_t before = clock_true_now(s->clock).ns;
        uint64_t after = 0;
        uint64_t raised = 0;

        clock_now(s->clock, &now);
        after = clock_true_now(s->clock).ns;
        if (now.tt.earliest.ns > after) {
            fail(s, "earliest after true time", &now, after);
        }
        if (now.tt.latest.ns < before) {
            fail(s, "latest before true time", &now, before);
        }
        if (now.tt.earliest.ns < seen) {
            fail(s, "earliest ran backward", &now, seen);
        }
        if (now.mono_ns < last.mono_ns) {
            fail(s, "mono ran backward", &now, last.mono_ns);
        }
        if (now.state > CLOCK_WIDENED) {
            fail(s, "state got bad", &now, (uint64_t)now.state);
        }
        last = now;
        raised = atomic_load(&s->earliest);
        while (raised < now.tt.earliest.ns &&
               !atomic_compare_exchange_weak(&s->earliest, &raised, now.tt.earliest.ns)) {
        }
    }
    return NULL;
}

/* True time is inside the interval at each call, and earliest never runs backward in any thread's
 * eyes, while the bound and the error inside it are changed at random as fast as it goes. */
Test(clock, holds_true_time_under_threads_and_random_settings, .timeout = 60)
{
    enum { READERS = 3, CHANGES = 30000 };
    struct shared *s = SPAN_NEW(struct shared);
    const uint64_t seed = rng_os_u64();
    pthread_t threads[READERS];
    struct clock_options o;
    struct rng r;

    cr_log_info("seed %llu", (unsigned long long)seed);
    rng_init(&r, seed);
    clock_options_init(&o);
    o.epsilon_ns = 5 * MS_NS;
    o.peer_count = 2;
    cr_assert_eq(clock_new(&o, &s->clock, NULL), SPAN_OK);
    for (int i = 0; i < READERS; i++) {
        cr_assert_eq(pthread_create(&threads[i], NULL, reader, s), 0);
    }
    for (int i = 0; i < CHANGES && atomic_load(&s->failures) == 0; i++) {
        const uint64_t bound = rng_between(&r, 1, EPSILON_NS_MAX);
        struct clock_info info;

        clock_info_get(s->clock, &info);
        if (rng_below(&r, 2)) {
            /* First the error shrinks, then the bound (rule B10). */
            if (bound < info.epsilon_wanted_ns) {
                cr_assert_eq(clock_set_error(s->clock, 0, 0, NULL), SPAN_OK);
            }
            cr_assert_eq(clock_set_epsilon(s->clock, bound, NULL), SPAN_OK);
        } else {
            const uint64_t e = info.epsilon_wanted_ns;

            cr_assert_eq(
                clock_set_error(s->clock, (int64_t)rng_between(&r, 0, 2 * e) - (int64_t)e, 0, NULL),
                SPAN_OK);
        }
        if (rng_below(&r, 16) == 0) {
            (void)clock_refresh(s->clock);
        }
    }
    atomic_store(&s->stop, true);
    for (int i = 0; i < READERS; i++) {
        cr_assert_eq(pthread_join(threads[i], NULL), 0);
    }
    cr_assert_eq(atomic_load(&s->failures), 0, "%u, first %s", atomic_load(&s->failures), s->first);
    clock_free(s->clock);
    span_free(s);
}

Test(clock, two_nodes_agree_on_true_time_to_the_nanosecond)
{
    struct clock_options o;
    struct clock *a = NULL;
    struct clock *b = NULL;

    clock_options_init(&o);
    cr_assert_eq(clock_new(&o, &a, NULL), SPAN_OK);
    o.offset_ns = 700000;
    cr_assert_eq(clock_new(&o, &b, NULL), SPAN_OK);
    for (int i = 0; i < 1000; i++) {
        struct tt_now first = {0};
        struct tt_now between = {0};
        struct tt_now second = {0};
        uint64_t middle = 0;

        clock_now(a, &first);
        clock_now(b, &between);
        clock_now(a, &second);
        middle = between.tt.latest.ns - 700000;
        cr_assert(first.tt.latest.ns <= middle);
        cr_assert(middle <= second.tt.latest.ns);
    }
    clock_free(a);
    clock_free(b);
}

Test(clock, reads_the_machines_clocks)
{
    struct clock_raw raw = {0};
    struct clock_sample s = {0};
    uint64_t error = 0;
    bool unsynced = false;
    const uint64_t before = clock_os_mono_ns();

    clock_os()->read(clock_os()->ctx, &raw);
    clock_os()->sample(clock_os()->ctx, &s);
    clock_os()->kernel_error(clock_os()->ctx, &error, &unsynced);
    cr_assert(raw.mono_ns >= before);
    cr_assert(s.mono_ns >= raw.mono_ns);
    cr_assert(s.boot_ns + s.uncertainty_ns >= s.mono_ns);
    cr_assert(raw.real_ns > 1700000000 * SEC_NS);
    cr_assert(unsynced || error < 16 * SEC_NS);
}
