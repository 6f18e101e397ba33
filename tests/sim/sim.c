/* One seed: draws the configuration, boots, runs clients and faults, then demands that everything
 * ends and checks the history. See sim.h and sim_world.h. */
#include "tests/sim/sim.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "tests/sim/sim_script.h"
#include "tests/sim/sim_world.h"

#include <stdio.h>
#include <string.h>

/* ---- scenarios ---- */

static const struct sim_scenario scenarios[] = {
    {"any", "draws one of those below and mixes faults"},
    {"calm", "no faults at all"},
    {"crash", "crashes, power losses, pauses"},
    {"net", "lost, late, doubled and reordered messages, cuts"},
    {"disk", "stalls, failing syncs, full disks, flipped bits, torn writes"},
    {"move", "splits, merges and leadership transfers all the time"},
    {"merge", "splits and merges under crashes, cuts, hand-overs and changes of members"},
    {"late", "messages doubled and very late, clients that write without reading"},
    {"member", "members of ranges leave and come"},
    {"rot", "bits flipped in range files, with crashes and hand-overs"},
    {"rot-change", "the same while ranges split, merge and change members"},
    {"clock", "clocks beyond their bound, crashes, cuts"},
    {"many", "5 to 7 nodes, up to 50 ranges"},
};

const struct sim_scenario *sim_scenario_get(size_t i)
{
    static struct sim_scenario directed;
    size_t drawn = sizeof scenarios / sizeof scenarios[0];
    if (i < drawn) {
        return &scenarios[i];
    }
    const struct sim_script *script = sim_script_get(i - drawn);
    if (script == NULL) {
        return NULL;
    }
    directed = (struct sim_scenario){script->name, script->text};
    return &directed;
}

static const struct sim_tally_info tallies[] = {
#define TALLY_INFO(name, least, text) {#name, least, text},
    SIM_TALLY_TABLE(TALLY_INFO)
#undef TALLY_INFO
};

const struct sim_tally_info *sim_tally_get(size_t i)
{
    return &tallies[i];
}

static bool is(const char *scenario, const char *name)
{
    return strcmp(scenario, name) == 0;
}

/* ---- drawing ---- */

static void draw_sizes(struct sim_world *w, struct rng *r)
{
    static const uint64_t epsilons[] = {100000, 1000000, 4000000, 7000000};
    static const uint64_t segments[] = {32 * KIB, 64 * KIB, 128 * KIB, 512 * KIB};
    static const uint64_t flushes[] = {4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB};
    static const uint64_t tails[] = {1, 10, 100, 2000};
    static const unsigned nodes[] = {3, 3, 3, 3, 3, 4, 5, 5};
    w->opt.epsilon_ns = epsilons[rng_below(r, 4)];
    w->opt.nodes = nodes[rng_below(r, 8)];
    w->opt.net.delay_max_ns = rng_between(r, 100000, 4 * MS_NS);
    w->opt.sync_max_ns = rng_between(r, 50000, 3 * MS_NS);
    w->opt.segment_bytes = segments[rng_below(r, 4)];
    w->opt.flush_bytes = flushes[rng_below(r, 4)];
    w->opt.log_tail = tails[rng_below(r, 4)];
    w->first_splits = rng_below(r, 8);
    w->run_ns = rng_between(r, SEC_NS, 4 * SEC_NS);
}

static void draw_net(struct sim_world *w, struct rng *r, unsigned one_in)
{
    struct sim_net *net = &w->opt.net;
    net->loss = rng_below(r, one_in) == 0 ? 0.01 * (double)rng_between(r, 1, 5) : 0;
    net->slow = rng_below(r, one_in) == 0 ? 0.01 : 0;
    net->slow_ns = rng_below(r, 2) == 0 ? 50 * MS_NS : 700 * MS_NS;
    net->dup = rng_below(r, one_in) == 0 ? 0.05 : 0;
    net->dup_late_ns = rng_below(r, 2) == 0 ? 20 * MS_NS : 2 * SEC_NS;
    net->reorder = rng_below(r, one_in + 1) == 0;
}

/* Readers push floors up and hide what is wrong with them: some histories have none, or none
 * without locks. */
static void draw_clients(struct sim_world *w, struct rng *r)
{
    static const unsigned usual[K_COUNT] = {40, 12, 6, 14, 6, 6, 8, 8, 12, 1, 10, 4};
    for (unsigned k = 0; k < K_COUNT; k++) {
        bool none = k != K_TRANSFER && rng_below(r, 3) == 0;
        none = none || (k == K_LONG && rng_below(r, 3) != 0); /* it holds up all others */
        w->weights[k] = none ? 0 : 1 + (unsigned)rng_below(r, 2 * usual[k]);
    }
    if (rng_below(r, 3) == 0) {
        w->weights[K_AUDIT] = w->weights[K_PAST] = w->weights[K_STALE] = w->weights[K_LIST_READ] =
            0;
    }
    if (rng_below(r, 5) == 0) {
        w->weights[K_PUT] = 100; /* floors alone order blind writes */
    }
    for (unsigned k = 0; k < K_COUNT; k++) {
        w->weight_sum += w->weights[k];
    }
    w->think_ns = rng_below(r, 2) == 0 ? 3 * MS_NS : rng_between(r, MS_NS, 200 * MS_NS);
    w->think_share = (unsigned)rng_below(r, 100);
    w->accounts = 4 + (unsigned)rng_below(r, rng_below(r, 2) == 0 ? 8 : ACCOUNTS_MAX - 4);
    w->lists = 1 + (unsigned)rng_below(r, LISTS_MAX);
    w->client_count = 2 + rng_below(r, CLIENTS_MAX - 2);
}

static void draw_faults(struct sim_world *w, struct rng *r)
{
    static const unsigned usual[FAULT_COUNT] = {
        [FAULT_CRASH] = 8, [FAULT_POWER] = 8,   [FAULT_DEATH] = 12,    [FAULT_CRASH_ALL] = 1,
        [FAULT_PAUSE] = 8, [FAULT_CUT] = 6,     [FAULT_TRANSFER] = 10, [FAULT_SPLIT] = 5,
        [FAULT_MERGE] = 5, [FAULT_MEMBER] = 3,  [FAULT_FLUSH] = 4,     [FAULT_STALL] = 2,
        [FAULT_EIO] = 2,   [FAULT_NO_ROOM] = 2, [FAULT_FLIP] = 2};
    static const unsigned crash[FAULT_COUNT] = {
        [FAULT_CRASH] = 8,     [FAULT_POWER] = 8, [FAULT_DEATH] = 12,
        [FAULT_CRASH_ALL] = 3, [FAULT_PAUSE] = 5, [FAULT_MERGE] = 3};
    static const unsigned net[FAULT_COUNT] = {
        [FAULT_CUT] = 10, [FAULT_PAUSE] = 3, [FAULT_MERGE] = 2};
    static const unsigned disk[FAULT_COUNT] = {
        [FAULT_POWER] = 5,   [FAULT_CRASH] = 3, [FAULT_DEATH] = 5,
        [FAULT_FLUSH] = 3,   [FAULT_STALL] = 4, [FAULT_EIO] = 5,
        [FAULT_NO_ROOM] = 4, [FAULT_FLIP] = 3,  [FAULT_MERGE] = 2};
    static const unsigned move[FAULT_COUNT] = {
        [FAULT_TRANSFER] = 10, [FAULT_SPLIT] = 8, [FAULT_MERGE] = 8, [FAULT_CRASH] = 2};
    static const unsigned late[FAULT_COUNT] = {
        [FAULT_PAUSE] = 2, [FAULT_TRANSFER] = 2, [FAULT_MERGE] = 1};
    static const unsigned merge[FAULT_COUNT] = {
        [FAULT_MERGE] = 20, [FAULT_SPLIT] = 12, [FAULT_TRANSFER] = 4, [FAULT_CRASH] = 4,
        [FAULT_POWER] = 4,  [FAULT_CUT] = 3,    [FAULT_PAUSE] = 3,    [FAULT_CRASH_ALL] = 1,
        [FAULT_MEMBER] = 2, [FAULT_FLUSH] = 3};
    static const unsigned member[FAULT_COUNT] = {
        [FAULT_MEMBER] = 10, [FAULT_TRANSFER] = 3, [FAULT_SPLIT] = 2, [FAULT_MERGE] = 3,
        [FAULT_CRASH] = 2,   [FAULT_POWER] = 2,    [FAULT_CUT] = 1};
    static const unsigned rot[FAULT_COUNT] = {
        [FAULT_ROT] = 10,     [FAULT_CRASH] = 3, [FAULT_POWER] = 2, [FAULT_FLUSH] = 10,
        [FAULT_TRANSFER] = 4, [FAULT_CUT] = 1,   [FAULT_PAUSE] = 1};
    static const unsigned rot_change[FAULT_COUNT] = {
        [FAULT_ROT] = 10,   [FAULT_CRASH] = 3,    [FAULT_POWER] = 2, [FAULT_MERGE] = 3,
        [FAULT_FLUSH] = 10, [FAULT_TRANSFER] = 4, [FAULT_SPLIT] = 2, [FAULT_MEMBER] = 4,
        [FAULT_CUT] = 1,    [FAULT_PAUSE] = 1};
    static const unsigned clocks[FAULT_COUNT] = {[FAULT_CLOCK] = 10,
                                                 [FAULT_CRASH] = 2,
                                                 [FAULT_CUT] = 3,
                                                 [FAULT_PAUSE] = 2,
                                                 [FAULT_TRANSFER] = 3};
    const char *s = w->sim.scenario;
    const unsigned *weights = is(s, "crash")        ? crash
                              : is(s, "net")        ? net
                              : is(s, "disk")       ? disk
                              : is(s, "move")       ? move
                              : is(s, "late")       ? late
                              : is(s, "member")     ? member
                              : is(s, "rot")        ? rot
                              : is(s, "rot-change") ? rot_change
                              : is(s, "clock")      ? clocks
                              : is(s, "merge")      ? merge
                                                    : usual;
    if (weights == disk && rng_below(r, 2) == 0) { /* old segments, where a bit may flip */
        w->opt.segment_bytes = 32 * KIB;
        w->opt.flush_bytes = 256 * KIB;
    }
    w->faults = !is(s, "calm") && rng_below(r, 10) != 0;
    w->fault_gap_ns = rng_below(r, 2) == 0 ? rng_between(r, 50 * MS_NS, 1500 * MS_NS)
                                           : rng_between(r, 40 * MS_NS, 300 * MS_NS);
    for (unsigned f = 0; f < FAULT_COUNT; f++) {
        bool none = weights == usual && f < FAULT_ROT && rng_below(r, 4) == 0;
        w->fault_weights[f] = none ? 0 : weights[f];
    }
    if (w->faults && (is(s, "net") || weights == usual)) {
        draw_net(w, r, is(s, "net") ? 2 : 4);
    }
    if (weights == rot || weights == rot_change) {
        w->opt.flush_bytes = w->opt.flush_bytes > 16 * KIB ? 16 * KIB : w->opt.flush_bytes;
        w->fault_gap_ns /= 4;
        w->opt.nodes = 4 + rng_below(r, 2);
        w->rotten = 1 + (node_id)rng_below(r, w->opt.nodes);
    }
    if (is(s, "late")) {
        struct sim_net *n = &w->opt.net;
        *n = (struct sim_net){.delay_min_ns = n->delay_min_ns,
                              .delay_max_ns = n->delay_max_ns,
                              .slow = 0.05,
                              .slow_ns = 700 * MS_NS,
                              .dup = 0.4,
                              .dup_late_ns = SEC_NS,
                              .reorder = true};
    }
    if (is(s, "move") && rng_below(r, 2) == 0) { /* one range moves while another is waited for */
        w->opt.net.slow = 0.03;
        w->opt.net.slow_ns = 60 * MS_NS;
    }
    if (w->faults && (is(s, "disk") || (weights == usual && rng_below(r, 4) == 0))) {
        w->opt.sync_stall = 0.002 * (double)rng_below(r, 4);
    }
}

/* A written schedule brings its own faults, and counts on a network that is quick in between. */
static void draw_for_script(struct sim_world *w, const struct sim_script *script)
{
    w->opt.nodes = script->nodes;
    w->opt.net = (struct sim_net){.delay_min_ns = 20000, .delay_max_ns = 500000};
    w->opt.sync_max_ns = 300000;
    w->opt.sync_stall = 0;
    w->first_splits = 0;
    w->run_ns = 300 * MS_NS;
    w->opt.segment_bytes = 64 * KIB;
    w->client_count = 6;
    w->readers = 2; /* two audit, four do what was drawn */
    w->think_share /= 4;
    w->faults = false;
}

/* Much of it, and half of the time so fast that what one side gave out lies ahead of the other's
 * clock when they have become one. */
static void draw_merge(struct sim_world *w, struct rng *r)
{
    w->fault_gap_ns = rng_between(r, 20 * MS_NS, 300 * MS_NS);
    if (rng_below(r, 2) == 0) {
        w->opt.epsilon_ns = 20 * MS_NS;
        w->opt.net.delay_max_ns = rng_between(r, 100000, 400000);
        w->opt.sync_max_ns = 100000;
        w->think_ns = 2 * MS_NS;
        w->weights[K_PUT] += 200;
        w->weight_sum += 200;
        w->cells = w->accounts + REGISTERS_MAX;
    }
}

static void draw(struct sim_world *w)
{
    struct rng r;
    rng_init(&r, w->seed * 7919 + 1);
    cluster_options_init(&w->opt, w->seed);
    draw_sizes(w, &r);
    draw_clients(w, &r);
    if (is(w->sim.scenario, "any")) {
        static const char *const mixes[] = {"crash",  "net",   "disk", "move", "late",
                                            "member", "clock", "any",  "any",  "merge"};
        w->sim.scenario = rng_below(&r, 40) == 0 ? "many" : mixes[rng_below(&r, 10)];
    }
    if (is(w->sim.scenario, "many")) {
        w->opt.nodes = 5 + rng_below(&r, 3);
        w->first_splits = 10 + rng_below(&r, 38);
        w->accounts = ACCOUNTS_MAX;
        w->opt.segment_bytes = w->opt.segment_bytes < 256 * KIB ? 256 * KIB : w->opt.segment_bytes;
    }
    w->cells = w->accounts + 1 + (unsigned)rng_below(&r, REGISTERS_MAX);
    if (is(w->sim.scenario, "late")) {
        w->weights[K_PUT] += 300;
        w->weight_sum += 300;
        w->cells = w->accounts + REGISTERS_MAX;
        w->first_splits += 4;
    }
    w->readers = rng_below(&r, 3) == 0 ? 1 + (unsigned)rng_below(&r, 3) : 0;
    draw_faults(w, &r);
    if (is(w->sim.scenario, "merge")) {
        draw_merge(w, &r);
    }
    if (sim_script_find(w->sim.scenario) != NULL) {
        draw_for_script(w, sim_script_find(w->sim.scenario));
    }
    w->opt.trace = w->sim.trace;
}

/* ---- a run ---- */

static void digest_cb(void *ctx)
{
    struct sim_world *w = ctx;
    if (!w->stopping && !world_failed(w)) {
        w->digests += sim_check_digests(w->check);
        sim_check_bounds(w->check, &w->opt, false);
        cluster_at(w->c, cluster_now(w->c) + 700 * MS_NS, digest_cb, w);
    }
}

static bool out_of_steps(void *ctx)
{
    const struct sim_world *w = ctx;
    return w->sim.steps != 0 && cluster_events(w->c) >= w->sim.steps;
}

static void work(struct sim_world *w)
{
    world_set_up(w);
    for (size_t i = 0; i < w->first_splits && !world_failed(w); i++) {
        world_split_at_random(w);
        (void)cluster_run_until(w->c, world_idle, w, 20 * SEC_NS);
    }
    const struct sim_script *script = sim_script_find(w->sim.scenario);
    if (script != NULL && script->quiet) {
        script->run(w);
    }
    sim_clients_start(w);
    if (script != NULL && !script->quiet) {
        script->run(w);
    }
    sim_faults_start(w);
    digest_cb(w);
    (void)cluster_run_until(w->c, out_of_steps, w, w->run_ns);
    if (!world_failed(w)) {
        sim_finish(w);
    }
}

static void sum_up(struct sim_world *w, struct sim_result *out)
{
    const char *why = cluster_failure(w->c);
    out->ok = why == NULL;
    out->trace = cluster_trace(w->c);
    out->events = cluster_events(w->c);
    out->transactions = w->count;
    out->committed = w->committed;
    (void)snprintf(out->why, sizeof out->why, "%s", why == NULL ? "" : why);
    uint64_t *t = out->tally;
    cluster_tally(w->c, t);
    t[TALLY_COMMITTED] = w->committed;
    t[TALLY_RETRIED] = w->retried;
    t[TALLY_UNKNOWN] = w->unknowns;
    t[TALLY_DIGESTS] = w->digests;
    t[TALLY_ROWS_FLIPPED] = w->rots;
    (void)snprintf(out->summary, sizeof out->summary,
                   "%s, %zu nodes, %zu transactions, %zu transfers committed, %zu retried, %zu "
                   "unknown; %llu kills, %llu power losses, %llu pauses, %llu splits, %llu "
                   "merges, %llu hand-overs, %llu member changes, %zu bits of rows; %zu digests "
                   "compared, %llu events%s",
                   w->sim.scenario, w->opt.nodes, w->count, w->committed, w->retried, w->unknowns,
                   (unsigned long long)t[TALLY_KILLS], (unsigned long long)t[TALLY_POWER_LOSSES],
                   (unsigned long long)t[TALLY_PAUSES], (unsigned long long)t[TALLY_SPLITS],
                   (unsigned long long)t[TALLY_MERGES], (unsigned long long)t[TALLY_TRANSFERS],
                   (unsigned long long)t[TALLY_MOVES], w->rots, w->digests,
                   (unsigned long long)out->events, w->untimed ? "; replay left out" : "");
}

void sim_run_seed(const struct sim_options *opt, struct sim_result *out)
{
    struct sim_world *w = SPAN_NEW(struct sim_world);
    *out = (struct sim_result){0};
    w->seed = opt->seed;
    w->sim = *opt;
    span_invariant_set_seed(opt->seed);
    draw(w);
    w->c = cluster_new(&w->opt);
    w->check = sim_check_new(w->c);
    uint64_t begun_ns = cluster_now(w->c);
    cluster_boot(w->c);
    work(w);
    out->virtual_ns = cluster_now(w->c) - begun_ns;
    sum_up(w, out);
    w->stopping = true;
    cluster_free(w->c);
    sim_check_free(w->check);
    sim_clients_free(w);
    span_free(w->op_left);
    for (size_t i = 0; i < w->count; i++) {
        span_free(w->history[i].reads);
        sim_lists_free(&w->history[i]);
    }
    span_free(w->history);
    span_free(w);
}
