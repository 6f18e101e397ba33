/* Offsets, drift and worse; see sim_clock.h. */
#include "tests/sim/sim_clock.h"

#include "base/invariant.h"
#include "base/limits.h"

#define DRIFT_PPB 200000
/* Longer than a promise runs (rule B9), shorter than the product's 5 s, so that runs see it end. */
#define QUIET_NS   (1200 * MS_NS)
#define REFRESH_NS (200 * MS_NS)
#define BACK_PPB   500000000

static int64_t bound_of(const struct sim_clock *c)
{
    return (int64_t)(c->epsilon_ns - c->epsilon_ns / 16);
}

static void os_read(void *ctx, struct clock_raw *out)
{
    const struct sim_clock *c = ctx;
    *out = c->raw;
}

static void os_sample(void *ctx, struct clock_sample *out)
{
    const struct sim_clock *c = ctx;
    *out = (struct clock_sample){.real_ns = c->raw.real_ns,
                                 .mono_ns = c->raw.mono_ns,
                                 .boot_ns = c->raw.mono_ns,
                                 .uncertainty_ns = 50};
}

static void os_error(void *ctx, uint64_t *error_ns, bool *unsynced)
{
    (void)ctx;
    *error_ns = 0;
    *unsynced = false;
}

void sim_clock_init(struct sim_clock *c, struct rng *r, uint64_t epsilon_ns, uint64_t true_ns)
{
    *c = (struct sim_clock){
        .epsilon_ns = epsilon_ns, .read_at_ns = true_ns, .os = {os_read, os_sample, os_error, c}};
    uint64_t how = rng_below(r, 3);
    c->offset_ns = how == 0 ? bound_of(c) : how == 1 ? -bound_of(c) : 0;
    c->drift_ppb = (int64_t)rng_below(r, 2 * DRIFT_PPB) - DRIFT_PPB;
}

static void move(struct sim_clock *c, struct rng *r, uint64_t true_ns, uint64_t mono_ns)
{
    int64_t dt = (int64_t)(true_ns - c->read_at_ns);
    c->read_at_ns = true_ns;
    c->offset_ns += dt / 1000 * c->drift_ppb / 1000000;
    int64_t bound = bound_of(c);
    if (c->offset_ns > bound || c->offset_ns < -bound) {
        c->offset_ns = c->offset_ns > 0 ? bound : -bound;
        int64_t drift = (int64_t)rng_below(r, DRIFT_PPB);
        c->drift_ppb = c->offset_ns > 0 ? -drift : drift;
    }
    int64_t left = c->run_goal_ns - c->run_ns;
    int64_t most = (int64_t)((uint64_t)dt / 1000 * c->run_ppb / 1000000);
    c->run_ns += left > most ? most : left < -most ? -most : left;
    int64_t off = c->offset_ns + c->run_ns + c->step_ns;
    c->raw.real_ns = (uint64_t)((int64_t)true_ns + off);
    c->raw.mono_ns = (uint64_t)((int64_t)mono_ns + c->run_ns);
}

void sim_clock_start(struct sim_clock *c, struct rng *r, uint64_t true_ns, uint64_t mono_ns,
                     unsigned peer_count)
{
    struct clock_options o;
    REQUIRE(c->clock == NULL);
    move(c, r, true_ns, mono_ns);
    clock_options_init(&o);
    o.epsilon_ns = c->epsilon_ns;
    o.quiet_ns = QUIET_NS;
    o.peer_count = peer_count;
    o.os = &c->os;
    bool ok = clock_new(&o, &c->clock, NULL) == SPAN_OK;
    INVARIANT(ok);
    c->refresh_ns = 0;
}

void sim_clock_stop(struct sim_clock *c)
{
    clock_free(c->clock);
    c->clock = NULL;
}

void sim_clock_read(struct sim_clock *c, struct rng *r, uint64_t true_ns, uint64_t mono_ns,
                    struct tt_now *out)
{
    move(c, r, true_ns, mono_ns);
    if (c->clock == NULL) { /* nobody's: the node is down */
        *out = (struct tt_now){
            .tt = {{c->raw.real_ns - c->epsilon_ns}, {c->raw.real_ns + c->epsilon_ns}},
            .state = CLOCK_SYNCED};
    } else {
        clock_now(c->clock, out);
    }
    out->mono_ns = mono_ns;
    if (!c->faulted) {
        INVARIANT(out->tt.earliest.ns <= true_ns);
        INVARIANT(out->tt.latest.ns >= true_ns);
    }
}

void sim_clock_refresh(struct sim_clock *c, const struct tt_now *now)
{
    if (now->mono_ns >= c->refresh_ns) {
        c->refresh_ns = now->mono_ns + REFRESH_NS;
        (void)clock_refresh(c->clock);
    }
}

bool sim_clock_peer(struct sim_clock *c, const struct tt_now *now, unsigned peer,
                    const struct tt_interval *sent, const struct tt_interval *asked)
{
    struct tt_now own = *now;
    own.mono_ns = c->raw.mono_ns; /* the line that the clock itself goes by */
    return asked == NULL ? clock_note_message(c->clock, peer, sent, &own)
                         : clock_note_round_trip(c->clock, peer, asked, sent, &own);
}

/* ---- beyond the bound ---- */

void sim_clock_step(struct sim_clock *c, int64_t by_ns)
{
    c->faulted = true;
    c->step_ns += by_ns;
}

void sim_clock_run(struct sim_clock *c, int64_t goal_ns, uint64_t ppb)
{
    c->faulted = true;
    c->run_goal_ns = goal_ns;
    c->run_ppb = ppb;
    if (ppb == 0) {
        REQUIRE(c->clock == NULL);
        c->run_ns = goal_ns;
    }
}

void sim_clock_repair(struct sim_clock *c)
{
    c->step_ns = 0;
    c->run_goal_ns = 0;
    c->run_ppb = BACK_PPB;
    c->run_ns = c->clock == NULL ? 0 : c->run_ns;
}
