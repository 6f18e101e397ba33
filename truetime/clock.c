/* The clock of a node: puts clock_model and clock_state under threads.
 *
 * What a reading needs (struct published: the model, the jump anchor, the state) is published as a
 * whole through a small ring of slots. A writer, under the lock, fills the slot after the current
 * one and then moves `current`. A reader copies the current slot and checks its version afterwards;
 * it starts again only if writers went round the whole ring meanwhile. So readers never wait, not
 * even for a writer that was stopped half-way, and never see half of a change.
 *
 * earliest keeps its maximum in one atomic. A reader loads it before it reads the clocks: an
 * interval that lies before a maximum loaded earlier is a proof against the clock, while one that
 * lies before a maximum stored later only shows that this thread was stopped for a while. */
#include "truetime/clock.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/limits.h"
#include "base/log.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#define SLOTS 8

/* The kernel lets maxerror grow by 500 ppm (MAXFREQ) between updates and stops at 16 s. */
#define KERNEL_GROW_PPB     500000
#define KERNEL_ERROR_NS_MAX (16 * SEC_NS)

/* A peer's conflict counts until the peer is heard to agree, or for so long. */
#define EVIDENCE_NS (10 * SEC_NS)

/* 64-bit fields only, all of them: it is copied word by word. */
struct published {
    struct clock_model model;
    int64_t anchor_ns; /* of struct clock_jump */
    uint64_t anchor_mono_ns;
    int64_t asleep_ns;
    uint64_t jumped;
    uint64_t state;         /* enum clock_state */
    uint64_t fixed_real_ns; /* fixed only; 0: not set by hand */
    uint64_t fixed_mono_ns;
};

#define PUBLISHED_WORDS (sizeof(struct published) / sizeof(uint64_t))
_Static_assert(sizeof(struct published) % sizeof(uint64_t) == 0, "copied word by word");

struct slot {
    _Atomic uint64_t version; /* 0 while it is being filled */
    _Atomic uint64_t words[PUBLISHED_WORDS];
};

/* What readers report to the next clock_refresh; any of them makes the clock read as fenced. */
enum alarm { ALARM_JUMP = 1, ALARM_BEHIND = 2, ALARM_CONFLICT = 4 };

/* mono_ns << 2 with two flags of what the peer's intervals showed. */
enum evidence { EVIDENCE_PEER_AHEAD = 1, EVIDENCE_PEER_BEHIND = 2, EVIDENCE_BITS = 2 };

struct clock {
    /* set once */
    enum clock_source source;
    uint64_t epsilon_max_ns;
    uint64_t quiet_ns;
    const struct clock_os *os;

    /* readers */
    _Atomic uint64_t current; /* version of the newest slot */
    struct slot slots[SLOTS];
    _Atomic uint64_t earliest; /* the largest given out */
    _Atomic unsigned alarms;
    _Atomic uint64_t behind_ns; /* of the last ALARM_BEHIND */
    _Atomic int64_t jump_ns;    /* of the last ALARM_JUMP */
    _Atomic uint64_t promised;  /* the end of the last promise */
    _Atomic unsigned peer_count;
    _Atomic uint64_t evidence[LIMIT_PEERS + 1];

    /* writers, under the lock */
    pthread_mutex_t lock;
    struct published now;
    struct clock_jump jump;
    struct clock_health health;
};

/* ---- options ---- */

static const char *const source_names[] = {[CLOCK_SOURCE_EMULATED] = "emulated",
                                           [CLOCK_SOURCE_SYSTEM] = "system",
                                           [CLOCK_SOURCE_FIXED] = "fixed"};

const char *clock_source_name(enum clock_source source)
{
    return source_names[source];
}

bool clock_source_parse(const char *text, enum clock_source *out)
{
    for (size_t i = 0; i < sizeof source_names / sizeof source_names[0]; i++) {
        if (strcmp(text, source_names[i]) == 0) {
            *out = (enum clock_source)i;
            return true;
        }
    }
    return false;
}

void clock_options_init(struct clock_options *o)
{
    *o = (struct clock_options){
        .source = CLOCK_SOURCE_EMULATED,
        .epsilon_ns = EPSILON_NS_DEFAULT,
        .epsilon_max_ns = EPSILON_NS_MAX,
        .quiet_ns = CLOCK_QUIET_NS_DEFAULT,
    };
}

span_status clock_epsilon_check(uint64_t epsilon_ns, uint64_t lease_ns, struct span_error *err)
{
    if (epsilon_ns == 0) {
        return span_fail(err, SPAN_INVALID, "epsilon must be above 0");
    }
    if (epsilon_ns > EPSILON_NS_MAX) {
        return span_fail(err, SPAN_INVALID, "epsilon %.3f ms is above the maximum of %.3f ms",
                         (double)epsilon_ns / 1e6, (double)EPSILON_NS_MAX / 1e6);
    }
    if (lease_ns / 10 < epsilon_ns) {
        return span_fail(err, SPAN_INVALID,
                         "epsilon %.3f ms is above a tenth of the lease length of %.3f ms",
                         (double)epsilon_ns / 1e6, (double)lease_ns / 1e6);
    }
    return SPAN_OK;
}

/* ---- publishing ---- */

/* Under the lock: makes c->now what readers see. */
static void clock_publish(struct clock *c)
{
    const uint64_t version = atomic_load_explicit(&c->current, memory_order_relaxed) + 1;
    struct slot *s = &c->slots[version % SLOTS];
    uint64_t words[PUBLISHED_WORDS];

    memcpy(words, &c->now, sizeof words);
    atomic_store_explicit(&s->version, 0, memory_order_relaxed);
    for (size_t i = 0; i < PUBLISHED_WORDS; i++) {
        /* Release: version 0 is seen before any of the new words is. */
        atomic_store_explicit(&s->words[i], words[i], memory_order_release);
    }
    atomic_store_explicit(&s->version, version, memory_order_release);
    atomic_store_explicit(&c->current, version, memory_order_release);
}

static void clock_load(const struct clock *c, struct published *out)
{
    uint64_t words[PUBLISHED_WORDS];
    uint64_t version = 0;
    const struct slot *s = NULL;

    do {
        version = atomic_load_explicit(&c->current, memory_order_acquire);
        s = &c->slots[version % SLOTS];
        for (size_t i = 0; i < PUBLISHED_WORDS; i++) {
            /* Acquire: the version is looked at after the words. */
            words[i] = atomic_load_explicit(&s->words[i], memory_order_acquire);
        }
    } while (atomic_load_explicit(&s->version, memory_order_acquire) != version);
    memcpy(out, words, sizeof words);
}

static struct clock_jump published_jump(const struct published *p)
{
    return (struct clock_jump){.anchor_ns = p->anchor_ns,
                               .anchor_mono_ns = p->anchor_mono_ns,
                               .asleep_ns = p->asleep_ns,
                               .jumped = p->jumped != 0};
}

/* ---- reading ---- */

/* The clocks do not stand to each other as they did: either this thread was stopped between the two
 * readings, which a careful sample shows, or the clock was stepped. */
static void read_suspect(struct clock *c, const struct clock_jump *jump, struct clock_raw *raw)
{
    struct clock_sample s = {0};
    int64_t size = 0;

    c->os->sample(c->os->ctx, &s);
    raw->mono_ns = s.mono_ns;
    raw->real_ns = s.real_ns;
    if (jump->jumped) {
        raw->real_ns = clock_jump_real(jump, &s); /* known already: the state is fenced */
        return;
    }
    size = clock_jump_size(jump, &s);
    if (size != 0 || clock_jump_slept(jump, &s) != 0) {
        raw->real_ns = clock_jump_real(jump, &s);
        atomic_store_explicit(&c->jump_ns, size, memory_order_relaxed);
        atomic_fetch_or_explicit(&c->alarms, ALARM_JUMP, memory_order_release);
    }
}

static void read_raw(struct clock *c, const struct published *p, struct clock_raw *raw)
{
    const struct clock_jump jump = published_jump(p);
    int64_t off = 0;
    uint64_t size = 0;

    if (c->source == CLOCK_SOURCE_FIXED) {
        if (p->fixed_real_ns != 0) {
            *raw = (struct clock_raw){p->fixed_real_ns, p->fixed_mono_ns};
        } else {
            c->os->read(c->os->ctx, raw);
        }
        return;
    }
    c->os->read(c->os->ctx, raw);
    off = (int64_t)(raw->real_ns - raw->mono_ns) - p->anchor_ns;
    size = off < 0 ? -(uint64_t)off : (uint64_t)off;
    if (jump.jumped || size > clock_jump_allowed(&jump, raw->mono_ns)) {
        read_suspect(c, &jump, raw);
    }
}

static void raise_u64(_Atomic uint64_t *at, uint64_t v)
{
    uint64_t seen = atomic_load_explicit(at, memory_order_relaxed);

    while (seen < v && !atomic_compare_exchange_weak_explicit(at, &seen, v, memory_order_acq_rel,
                                                              memory_order_relaxed)) {
    }
}

void clock_now(struct clock *c, struct tt_now *out)
{
    const uint64_t kept = atomic_load_explicit(&c->earliest, memory_order_acquire);
    unsigned alarms = 0;
    struct published p;
    struct clock_raw raw = {0};
    struct tt_interval i;

    /* Alarms before the state: clock_refresh clears an alarm only after it has published the state
     * that follows from it, so one of the two is seen. And once more after the reading, for an
     * alarm that this call or another one raised meanwhile. */
    alarms = atomic_load_explicit(&c->alarms, memory_order_acquire);
    clock_load(c, &p);
    read_raw(c, &p, &raw);
    i = clock_model_interval(&p.model, &raw);
    if (kept > i.latest.ns && c->source != CLOCK_SOURCE_FIXED) {
        atomic_store_explicit(&c->behind_ns, kept - i.latest.ns, memory_order_relaxed);
        alarms |=
            ALARM_BEHIND | atomic_fetch_or_explicit(&c->alarms, ALARM_BEHIND, memory_order_release);
    }
    (void)clock_model_keep_earliest(&i, tt_ts_of(kept));
    raise_u64(&c->earliest, i.earliest.ns);
    alarms |= atomic_load_explicit(&c->alarms, memory_order_acquire);
    out->tt = i;
    out->mono_ns = raw.mono_ns;
    out->state = alarms != 0 ? CLOCK_FENCED : (enum clock_state)p.state;
}

struct tt_ts clock_true_now(struct clock *c)
{
    struct published p;
    struct clock_raw raw = {0};

    clock_load(c, &p);
    if (c->source == CLOCK_SOURCE_FIXED && p.fixed_real_ns != 0) {
        return tt_ts_of(p.fixed_real_ns);
    }
    c->os->read(c->os->ctx, &raw);
    return tt_ts_of(raw.real_ns);
}

/* ---- evidence ---- */

static unsigned count_conflicts(struct clock *c, uint64_t mono_ns)
{
    unsigned n = 0;

    for (unsigned i = 1; i <= LIMIT_PEERS; i++) {
        const uint64_t e = atomic_load_explicit(&c->evidence[i], memory_order_relaxed);
        const uint64_t flags = e & (EVIDENCE_PEER_AHEAD | EVIDENCE_PEER_BEHIND);

        if (flags != 0 && mono_ns - (e >> EVIDENCE_BITS) < EVIDENCE_NS) {
            n++;
        }
    }
    return n;
}

static bool note_evidence(struct clock *c, unsigned peer, uint64_t looked_at, uint64_t conflict,
                          const struct tt_now *now)
{
    uint64_t old = 0;

    REQUIRE(peer >= 1);
    REQUIRE(peer <= LIMIT_PEERS);
    old = atomic_load_explicit(&c->evidence[peer], memory_order_relaxed);
    if (conflict != 0) {
        const uint64_t flags =
            (old & (EVIDENCE_PEER_AHEAD | EVIDENCE_PEER_BEHIND) & ~looked_at) | conflict;

        atomic_store_explicit(&c->evidence[peer], now->mono_ns << EVIDENCE_BITS | flags,
                              memory_order_relaxed);
        if (c->source != CLOCK_SOURCE_FIXED &&
            count_conflicts(c, now->mono_ns) * 2 >
                atomic_load_explicit(&c->peer_count, memory_order_relaxed)) {
            atomic_fetch_or_explicit(&c->alarms, ALARM_CONFLICT, memory_order_release);
        }
    } else if ((old & looked_at) != 0) {
        atomic_store_explicit(&c->evidence[peer], old & ~looked_at, memory_order_relaxed);
    }
    return conflict == 0;
}

bool clock_note_message(struct clock *c, unsigned peer, const struct tt_interval *sent,
                        const struct tt_now *now)
{
    /* The message was sent before now: its earliest had passed. */
    const bool ahead = tt_lt(now->tt.latest, sent->earliest);

    return note_evidence(c, peer, EVIDENCE_PEER_AHEAD, ahead ? EVIDENCE_PEER_AHEAD : 0, now);
}

bool clock_note_round_trip(struct clock *c, unsigned peer, const struct tt_interval *asked,
                           const struct tt_interval *answer, const struct tt_now *now)
{
    const bool ahead = tt_lt(now->tt.latest, answer->earliest);
    const bool behind = tt_lt(answer->latest, asked->earliest);

    return note_evidence(c, peer, EVIDENCE_PEER_AHEAD | EVIDENCE_PEER_BEHIND,
                         (ahead ? EVIDENCE_PEER_AHEAD : 0U) | (behind ? EVIDENCE_PEER_BEHIND : 0U),
                         now);
}

void clock_note_promise(struct clock *c, struct tt_ts until)
{
    raise_u64(&c->promised, until.ns);
}

/* ---- refresh ---- */

static void publish_jump(struct clock *c)
{
    c->now.anchor_ns = c->jump.anchor_ns;
    c->now.anchor_mono_ns = c->jump.anchor_mono_ns;
    c->now.asleep_ns = c->jump.asleep_ns;
    c->now.jumped = c->jump.jumped ? 1 : 0;
}

/* What the alarms say, for this one step. Their causes may be over by now; they count once. */
static void observe_alarms(struct clock *c, unsigned alarms, struct clock_observation *o)
{
    if ((alarms & ALARM_JUMP) && o->jump_ns == 0 && o->slept_ns == 0) {
        o->jump_ns = atomic_load_explicit(&c->jump_ns, memory_order_relaxed);
    }
    if ((alarms & ALARM_BEHIND) && o->behind_ns == 0) {
        o->behind_ns = atomic_load_explicit(&c->behind_ns, memory_order_relaxed);
    }
    if ((alarms & ALARM_CONFLICT) && o->conflicts * 2 <= o->peers) {
        o->conflicts = o->peers / 2 + 1;
    }
}

/* Under the lock: the state after a look at everything. Not for the source fixed. */
static void refresh_locked(struct clock *c)
{
    const unsigned alarms = atomic_load_explicit(&c->alarms, memory_order_acquire);
    const uint64_t kept = atomic_load_explicit(&c->earliest, memory_order_acquire);
    struct clock_observation o = {0};
    struct clock_sample s = {0};
    struct clock_raw raw = {0};
    struct tt_interval i;

    c->os->sample(c->os->ctx, &s);
    o.slept_ns = clock_jump_slept(&c->jump, &s);
    o.jump_ns = clock_jump_step(&c->jump, &s, c->quiet_ns);
    raw.mono_ns = s.mono_ns;
    raw.real_ns = c->jump.jumped ? clock_jump_real(&c->jump, &s) : s.real_ns;
    if (c->source == CLOCK_SOURCE_SYSTEM) {
        uint64_t error = 0;

        c->os->kernel_error(c->os->ctx, &error, &o.unsynced);
        o.unbounded = error >= KERNEL_ERROR_NS_MAX;
        clock_model_synced(&c->now.model, &raw, error, KERNEL_GROW_PPB);
    }
    clock_model_settle(&c->now.model, &raw);
    i = clock_model_interval(&c->now.model, &raw);
    o.mono_ns = s.mono_ns;
    o.epsilon_ns = clock_model_epsilon(&c->now.model, &raw);
    o.epsilon_usual_ns = clock_model_epsilon_wanted(&c->now.model);
    o.epsilon_max_ns = c->epsilon_max_ns;
    o.behind_ns = kept > i.latest.ns ? kept - i.latest.ns : 0;
    o.conflicts = count_conflicts(c, s.mono_ns);
    o.peers = atomic_load_explicit(&c->peer_count, memory_order_relaxed);
    o.promised = atomic_load_explicit(&c->promised, memory_order_relaxed) >= i.earliest.ns;
    observe_alarms(c, alarms, &o);
    c->now.state = (uint64_t)clock_health_step(&c->health, &o, c->quiet_ns);
    publish_jump(c);
    clock_publish(c);
    /* Only now, see clock_now. One raised again meanwhile is of a cause that the state reflects, or
     * comes again with the next reading. */
    atomic_fetch_and_explicit(&c->alarms, ~alarms, memory_order_release);
}

enum clock_state clock_refresh(struct clock *c)
{
    enum clock_state before = CLOCK_SYNCED;
    enum clock_state after = CLOCK_SYNCED;
    char reason[sizeof c->health.reason];

    if (c->source == CLOCK_SOURCE_FIXED) {
        return CLOCK_SYNCED;
    }
    pthread_mutex_lock(&c->lock);
    before = c->health.state;
    refresh_locked(c);
    after = c->health.state;
    memcpy(reason, c->health.reason, sizeof reason);
    pthread_mutex_unlock(&c->lock);
    /* Between synced and widened nothing changes for anybody: not worth a line. */
    if (after > before && after > CLOCK_WIDENED) {
        SPAN_LOG(WARN, "clock got worse", "state=%s before=%s reason=%s", clock_state_name(after),
                 clock_state_name(before), reason);
    } else if (after < before && before > CLOCK_WIDENED) {
        SPAN_LOG(INFO, "clock got better", "state=%s before=%s reason=%s", clock_state_name(after),
                 clock_state_name(before), reason);
    }
    return after;
}

/* ---- life and settings ---- */

static span_status options_check(const struct clock_options *o, struct span_error *err)
{
    if (o->epsilon_ns > o->epsilon_max_ns) {
        return span_fail(err, SPAN_INVALID, "epsilon %.3f ms is above epsilon_max %.3f ms",
                         (double)o->epsilon_ns / 1e6, (double)o->epsilon_max_ns / 1e6);
    }
    if (o->source != CLOCK_SOURCE_EMULATED && (o->offset_ns != 0 || o->drift_ppb != 0)) {
        return span_fail(err, SPAN_INVALID,
                         "offset and drift can be set on the clock source emulated only, not on %s",
                         clock_source_name(o->source));
    }
    return SPAN_OK;
}

span_status clock_new(const struct clock_options *o, struct clock **out, struct span_error *err)
{
    const span_status st = options_check(o, err);
    struct clock *c = NULL;
    struct clock_sample s = {0};
    struct clock_raw raw = {0};

    *out = NULL;
    if (st != SPAN_OK) {
        return st;
    }
    c = SPAN_NEW(struct clock);
    c->source = o->source;
    c->epsilon_max_ns = o->epsilon_max_ns;
    c->quiet_ns = o->quiet_ns;
    c->os = o->os ? o->os : clock_os();
    atomic_init(&c->peer_count, o->peer_count);
    pthread_mutex_init(&c->lock, NULL);
    clock_health_init(&c->health);
    c->os->sample(c->os->ctx, &s);
    clock_jump_init(&c->jump, &s);
    raw = (struct clock_raw){s.real_ns, s.mono_ns};
    clock_model_set_error(&c->now.model, &raw, o->offset_ns, o->drift_ppb);
    clock_model_set_epsilon(&c->now.model, &raw, o->epsilon_ns);
    if (c->source == CLOCK_SOURCE_FIXED) {
        clock_publish(c);
    } else {
        refresh_locked(c);
    }
    *out = c;
    return SPAN_OK;
}

void clock_free(struct clock *c)
{
    if (c) {
        pthread_mutex_destroy(&c->lock);
        span_free(c);
    }
}

span_status clock_set_epsilon(struct clock *c, uint64_t epsilon_ns, struct span_error *err)
{
    struct clock_raw raw = {0};

    if (epsilon_ns > c->epsilon_max_ns) {
        return span_fail(err, SPAN_INVALID, "epsilon %.3f ms is above epsilon_max %.3f ms",
                         (double)epsilon_ns / 1e6, (double)c->epsilon_max_ns / 1e6);
    }
    pthread_mutex_lock(&c->lock);
    read_raw(c, &c->now, &raw);
    clock_model_set_epsilon(&c->now.model, &raw, epsilon_ns);
    clock_publish(c);
    pthread_mutex_unlock(&c->lock);
    return SPAN_OK;
}

span_status clock_set_error(struct clock *c, int64_t offset_ns, int64_t drift_ppb,
                            struct span_error *err)
{
    struct clock_raw raw = {0};

    if (c->source != CLOCK_SOURCE_EMULATED) {
        return span_fail(err, SPAN_UNSUPPORTED,
                         "offset and drift can be set on the clock source emulated only, not on %s",
                         clock_source_name(c->source));
    }
    pthread_mutex_lock(&c->lock);
    read_raw(c, &c->now, &raw);
    clock_model_set_error(&c->now.model, &raw, offset_ns, drift_ppb);
    clock_publish(c);
    pthread_mutex_unlock(&c->lock);
    return SPAN_OK;
}

span_status clock_fixed_set(struct clock *c, uint64_t real_ns, uint64_t mono_ns)
{
    if (c->source != CLOCK_SOURCE_FIXED) {
        return SPAN_UNSUPPORTED;
    }
    pthread_mutex_lock(&c->lock);
    REQUIRE(mono_ns >= c->now.fixed_mono_ns);
    c->now.fixed_real_ns = real_ns;
    c->now.fixed_mono_ns = mono_ns;
    clock_publish(c);
    pthread_mutex_unlock(&c->lock);
    return SPAN_OK;
}

void clock_set_peer_count(struct clock *c, unsigned peer_count)
{
    atomic_store_explicit(&c->peer_count, peer_count, memory_order_relaxed);
}

void clock_info_get(struct clock *c, struct clock_info *out)
{
    struct clock_raw raw = {0};

    *out = (struct clock_info){.source = c->source, .epsilon_max_ns = c->epsilon_max_ns};
    if (atomic_load_explicit(&c->alarms, memory_order_relaxed) != 0) {
        (void)clock_refresh(c); /* the reason of what the state already shows */
    }
    clock_now(c, &out->now);
    out->state = out->now.state;
    pthread_mutex_lock(&c->lock);
    read_raw(c, &c->now, &raw);
    out->epsilon_ns = clock_model_epsilon(&c->now.model, &raw);
    out->epsilon_wanted_ns = clock_model_epsilon_wanted(&c->now.model);
    out->offset_ns = clock_model_error(&c->now.model, &raw);
    out->drift_ppb = c->now.model.drift_ppb;
    out->state_changes = c->health.changes;
    out->state_for_ns = c->health.started && raw.mono_ns > c->health.since_mono_ns
                            ? raw.mono_ns - c->health.since_mono_ns
                            : 0;
    memcpy(out->reason, c->health.reason, sizeof out->reason);
    pthread_mutex_unlock(&c->lock);
    out->conflicts = count_conflicts(c, out->now.mono_ns);
    out->peers = atomic_load_explicit(&c->peer_count, memory_order_relaxed);
}
