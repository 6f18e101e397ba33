/* See clock_state.h. */
#include "truetime/clock_state.h"

#include "base/invariant.h"
#include "base/limits.h"

#include <stdio.h>
#include <string.h>

/* A sample is due about once a second; with fewer, the drift allowance stops growing here, so that
 * a step is noticed however late the look comes. */
#define JUMP_AGE_NS_MAX (10 * SEC_NS)

const char *clock_state_name(enum clock_state state)
{
    switch (state) {
    case CLOCK_SYNCED:
        return "synced";
    case CLOCK_WIDENED:
        return "widened";
    case CLOCK_STALE_READS_ONLY:
        return "stale-reads-only";
    case CLOCK_FENCED:
        return "fenced";
    }
    return "unknown";
}

/* ---- jumps ---- */

static uint64_t magnitude(int64_t v)
{
    return v < 0 ? -(uint64_t)v : (uint64_t)v;
}

static int64_t real_minus_mono(const struct clock_sample *s)
{
    return (int64_t)(s->real_ns - s->mono_ns);
}

static int64_t boot_minus_mono(const struct clock_sample *s)
{
    return (int64_t)(s->boot_ns - s->mono_ns);
}

static void clock_jump_anchor(struct clock_jump *j, const struct clock_sample *s)
{
    j->anchor_ns = real_minus_mono(s);
    j->anchor_mono_ns = s->mono_ns;
    j->asleep_ns = boot_minus_mono(s);
    j->jumped = false;
}

void clock_jump_init(struct clock_jump *j, const struct clock_sample *s)
{
    *j = (struct clock_jump){0};
    clock_jump_anchor(j, s);
}

uint64_t clock_jump_allowed(const struct clock_jump *j, uint64_t mono_ns)
{
    uint64_t age = mono_ns > j->anchor_mono_ns ? mono_ns - j->anchor_mono_ns : 0;

    if (age > JUMP_AGE_NS_MAX) {
        age = JUMP_AGE_NS_MAX;
    }
    return CLOCK_JUMP_SLACK_NS + age * CLOCK_DRIFT_BOUND_PPB / SEC_NS;
}

uint64_t clock_jump_slept(const struct clock_jump *j, const struct clock_sample *s)
{
    const int64_t slept = boot_minus_mono(s) - j->asleep_ns;

    return slept > 0 && (uint64_t)slept > s->uncertainty_ns + CLOCK_JUMP_SLACK_NS ? (uint64_t)slept
                                                                                  : 0;
}

uint64_t clock_jump_real(const struct clock_jump *j, const struct clock_sample *s)
{
    return s->mono_ns + (uint64_t)j->anchor_ns + clock_jump_slept(j, s);
}

int64_t clock_jump_size(const struct clock_jump *j, const struct clock_sample *s)
{
    const int64_t off = (int64_t)(s->real_ns - clock_jump_real(j, s));

    return magnitude(off) > clock_jump_allowed(j, s->mono_ns) + s->uncertainty_ns ? off : 0;
}

int64_t clock_jump_step(struct clock_jump *j, const struct clock_sample *s, uint64_t quiet_ns)
{
    const int64_t size = clock_jump_size(j, s);
    const int64_t line = real_minus_mono(s);

    if (size == 0) {
        clock_jump_anchor(j, s);
        return 0;
    }
    /* The new line may drift as the old one might: seen from where it began. */
    const struct clock_jump seen = {.anchor_mono_ns = j->seen_since_ns};
    const uint64_t allowed = clock_jump_allowed(&seen, s->mono_ns) + s->uncertainty_ns;

    if (!j->jumped || magnitude(line - j->seen_ns) > allowed) {
        j->jumped = true;
        j->seen_ns = line;
        j->seen_since_ns = s->mono_ns;
    } else if (s->mono_ns - j->seen_since_ns >= quiet_ns) {
        /* The new line has been kept: it is the clock now. The state stays fenced for another quiet
         * time, in which the peers may contradict it. */
        clock_jump_anchor(j, s);
        return 0;
    }
    return size;
}

/* ---- health ---- */

void clock_health_init(struct clock_health *h)
{
    *h = (struct clock_health){0};
}

static double seconds(uint64_t ns)
{
    return (double)ns / 1e9;
}

static double millis(uint64_t ns)
{
    return (double)ns / 1e6;
}

static enum clock_state observe_fence(const struct clock_observation *o, char *cause, size_t size)
{
    if (o->jump_ns != 0) {
        (void)snprintf(cause, size, "CLOCK_REALTIME jumped by %+.6f s against CLOCK_BOOTTIME",
                       (double)o->jump_ns / 1e9);
    } else if (o->slept_ns != 0) {
        (void)snprintf(cause, size, "the machine slept for %.3f s", seconds(o->slept_ns));
    } else if (o->behind_ns != 0) {
        (void)snprintf(cause, size, "the clock reads %.6f s before a time that it said had passed",
                       seconds(o->behind_ns));
    } else if (o->conflicts * 2 > o->peers) {
        (void)snprintf(cause, size, "the intervals of %u of %u peers contradict this node's clock",
                       o->conflicts, o->peers);
    } else if (o->unbounded) {
        (void)snprintf(
            cause, size,
            "the kernel knows no bound for its clock's error (adjtimex: unsynchronised)");
    } else {
        return CLOCK_SYNCED;
    }
    return CLOCK_FENCED;
}

/* The state that this observation alone deserves, and why. */
static enum clock_state observe(const struct clock_observation *o, char *cause, size_t size)
{
    cause[0] = 0;
    if (observe_fence(o, cause, size) == CLOCK_FENCED) {
        return CLOCK_FENCED;
    }
    if (o->unsynced) {
        (void)snprintf(cause, size, "the kernel's clock is not synchronised (adjtimex)");
        return CLOCK_STALE_READS_ONLY;
    }
    if (o->epsilon_ns > o->epsilon_max_ns) {
        (void)snprintf(cause, size, "epsilon %.3f ms is above epsilon_max %.3f ms",
                       millis(o->epsilon_ns), millis(o->epsilon_max_ns));
        return CLOCK_STALE_READS_ONLY;
    }
    if (o->epsilon_ns > o->epsilon_usual_ns) {
        (void)snprintf(cause, size, "epsilon %.3f ms is above the usual %.3f ms",
                       millis(o->epsilon_ns), millis(o->epsilon_usual_ns));
        return CLOCK_WIDENED;
    }
    return CLOCK_SYNCED;
}

static void enter(struct clock_health *h, enum clock_state state, const char *cause,
                  uint64_t mono_ns)
{
    if (h->state != state) {
        h->state = state;
        h->since_mono_ns = mono_ns;
        h->changes++;
    }
    h->better_since_ns = 0;
    (void)snprintf(h->cause, sizeof h->cause, "%s", cause);
    (void)snprintf(h->reason, sizeof h->reason, "%s", cause);
}

enum clock_state clock_health_step(struct clock_health *h, const struct clock_observation *o,
                                   uint64_t quiet_ns)
{
    char cause[sizeof h->cause];
    const enum clock_state deserved = observe(o, cause, sizeof cause);

    if (!h->started) {
        h->started = true;
        h->since_mono_ns = o->mono_ns;
        enter(h, deserved, cause, o->mono_ns);
        h->changes = 0;
        return h->state;
    }
    if (deserved >= h->state || h->state <= CLOCK_WIDENED) {
        enter(h, deserved, cause, o->mono_ns);
        return h->state;
    }
    if (h->better_since_ns == 0) {
        h->better_since_ns = o->mono_ns ? o->mono_ns : 1;
    }
    INVARIANT(o->mono_ns >= h->better_since_ns || h->better_since_ns == 1);
    if (o->mono_ns - h->better_since_ns >= quiet_ns && !o->promised) {
        enter(h, deserved, cause, o->mono_ns);
        return h->state;
    }
    (void)snprintf(h->reason, sizeof h->reason, "%.1f of %.1f s quiet%s after: %s",
                   seconds(o->mono_ns - h->better_since_ns), seconds(quiet_ns),
                   o->promised ? ", a promise to pass," : "", h->cause);
    return h->state;
}
