/* See clock_model.h. All sums saturate: a wild offset from a fault hook gives a wild interval,
 * never an overflow. */
#include "truetime/clock_model.h"

#define PPB         1000000000
#define SECONDS_MAX 9000000000 /* 285 years: times PPB it fits 63 bits */

static uint64_t add_sat(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

static uint64_t sub_sat(uint64_t a, uint64_t b)
{
    return a < b ? 0 : a - b;
}

/* elapsed * ppb / 1e9, without overflow for |ppb| <= 1e9. */
static int64_t drift_over(uint64_t elapsed_ns, int64_t ppb)
{
    const uint64_t whole_s = elapsed_ns / PPB;
    const int64_t s = (int64_t)(whole_s < SECONDS_MAX ? whole_s : SECONDS_MAX);
    const int64_t rest = (int64_t)(elapsed_ns % PPB);

    return s * ppb + rest * ppb / PPB;
}

int64_t clock_model_error(const struct clock_model *m, const struct clock_raw *raw)
{
    int64_t sum = 0;
    const int64_t drift = drift_over(sub_sat(raw->mono_ns, m->drift_since_ns), m->drift_ppb);

    if (__builtin_add_overflow(m->offset_ns, drift, &sum)) {
        return drift > 0 ? INT64_MAX : INT64_MIN + 1;
    }
    return sum;
}

uint64_t clock_model_reading(const struct clock_model *m, const struct clock_raw *raw)
{
    const int64_t error = clock_model_error(m, raw);

    return error >= 0 ? add_sat(raw->real_ns, (uint64_t)error)
                      : sub_sat(raw->real_ns, -(uint64_t)error);
}

/* The configured bound at a reading: the smaller one that follows is in force as soon as earliest
 * under the present one has passed next_after_ns. */
static uint64_t configured_epsilon(const struct clock_model *m, uint64_t reading)
{
    if (m->next_after_ns != 0 && sub_sat(reading, m->epsilon_ns) > m->next_after_ns) {
        return m->next_epsilon_ns;
    }
    return m->epsilon_ns;
}

static uint64_t measured_epsilon(const struct clock_model *m, uint64_t mono_ns)
{
    const uint64_t age = sub_sat(mono_ns, m->error_since_ns);

    if (m->error_grow_ppb == 0) {
        return m->error_ns;
    }
    return add_sat(m->error_ns, (uint64_t)drift_over(age, (int64_t)m->error_grow_ppb));
}

static uint64_t epsilon_at(const struct clock_model *m, uint64_t reading, uint64_t mono_ns)
{
    const uint64_t configured = configured_epsilon(m, reading);
    const uint64_t measured = measured_epsilon(m, mono_ns);

    return configured > measured ? configured : measured;
}

uint64_t clock_model_epsilon(const struct clock_model *m, const struct clock_raw *raw)
{
    return epsilon_at(m, clock_model_reading(m, raw), raw->mono_ns);
}

struct tt_interval clock_model_interval(const struct clock_model *m, const struct clock_raw *raw)
{
    const uint64_t reading = clock_model_reading(m, raw);
    const uint64_t epsilon = epsilon_at(m, reading, raw->mono_ns);

    return (struct tt_interval){tt_ts_of(sub_sat(reading, epsilon)),
                                tt_ts_of(add_sat(reading, epsilon))};
}

uint64_t clock_model_epsilon_wanted(const struct clock_model *m)
{
    return m->next_after_ns != 0 ? m->next_epsilon_ns : m->epsilon_ns;
}

void clock_model_set_epsilon(struct clock_model *m, const struct clock_raw *raw,
                             uint64_t epsilon_ns)
{
    const uint64_t reading = clock_model_reading(m, raw);

    m->epsilon_ns = configured_epsilon(m, reading);
    m->next_epsilon_ns = 0;
    m->next_after_ns = 0;
    if (epsilon_ns >= m->epsilon_ns) {
        m->epsilon_ns = epsilon_ns;
        return;
    }
    m->next_epsilon_ns = epsilon_ns;
    m->next_after_ns = add_sat(reading, epsilon_at(m, reading, raw->mono_ns));
}

void clock_model_settle(struct clock_model *m, const struct clock_raw *raw)
{
    if (m->next_after_ns != 0 &&
        configured_epsilon(m, clock_model_reading(m, raw)) == m->next_epsilon_ns) {
        m->epsilon_ns = m->next_epsilon_ns;
        m->next_epsilon_ns = 0;
        m->next_after_ns = 0;
    }
}

void clock_model_set_error(struct clock_model *m, const struct clock_raw *raw, int64_t offset_ns,
                           int64_t drift_ppb)
{
    m->offset_ns = offset_ns;
    m->drift_ppb = drift_ppb > PPB ? PPB : drift_ppb < -PPB ? -PPB : drift_ppb;
    m->drift_since_ns = raw->mono_ns;
}

void clock_model_synced(struct clock_model *m, const struct clock_raw *raw, uint64_t error_ns,
                        uint64_t grow_ppb)
{
    m->error_ns = error_ns;
    m->error_grow_ppb = grow_ppb > PPB ? PPB : grow_ppb;
    m->error_since_ns = raw->mono_ns;
}

bool clock_model_keep_earliest(struct tt_interval *i, struct tt_ts kept)
{
    const bool possible = tt_le(kept, i->latest);

    i->earliest = tt_max(i->earliest, kept);
    i->latest = tt_max(i->latest, kept);
    return possible;
}

uint64_t clock_mono_when_after(const struct tt_now *now, struct tt_ts t)
{
    if (tt_after(&now->tt, t)) {
        return now->mono_ns;
    }
    return add_sat(now->mono_ns, add_sat(t.ns - now->tt.earliest.ns, 1));
}

uint64_t clock_mono_of(const struct tt_now *now, struct tt_ts t)
{
    const uint64_t middle = now->tt.earliest.ns + (now->tt.latest.ns - now->tt.earliest.ns) / 2;

    return t.ns >= middle ? add_sat(now->mono_ns, t.ns - middle)
                          : sub_sat(now->mono_ns, middle - t.ns);
}
