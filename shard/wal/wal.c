/* The log's queue, its rounds and its interface.
 *
 * A ROUND takes batches from the queue up to unit_bytes_max, lays their records into one append
 * unit (one memcpy each, one CRC over it), writes it with one pwrite, syncs once and calls the
 * completions. Batches submitted meanwhile are the next round. If the unit does not fit, the round
 * takes the next spare segment and writes [head unit][unit] there, still one pwrite and one sync.
 * Bookkeeping (sticky state, pins) changes only after the sync, so that a round which fails can be
 * written again anywhere.
 *
 * FAILURES. A failed write or sync never completes a batch (rule H4). What was being written goes,
 * from memory, to the next spare segment; the old segment gets no more units ("tainted") and the
 * new head takes the same seq, which tells recovery to ignore what the failed sync may have left. A
 * second failure in a row kills the log: every batch fails from then on. ENOSPC is different: the
 * batches go back to the head of the queue and the round is tried again (WAL_STALLED) until there
 * is room or the log is closed; nothing is dropped in between, as a hole in a range's entries would
 * be worse than a late answer. Rule H10 makes the node hand its leases over meanwhile.
 *
 * THE EMPTY UNIT (rule H1). After a round, if nothing else comes within mark_delay_ns, an empty
 * unit says that the last one is durable. It is skipped when a later unit has said so. It also
 * carries `oldest` and `newest` when those changed and nothing else is written. */
#include "shard/wal/wal.h"

#include "base/alloc.h"
#include "base/failpoint.h"
#include "base/invariant.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/planted.h"
#include "shard/wal/wal_internal.h"

#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#define POOL_MAX           64U         /* spent jobs kept */
#define POOL_JOB_BYTES_MAX (256 * KIB) /* bigger ones give their memory back */
#define STALL_RETRY_NS     (200 * MS_NS)
#define QUEUE_BYTES        (32 * MIB)
#define UNIT_BYTES         (1 * MIB)
#define MARK_DELAY_NS      (5 * MS_NS)

uint64_t wal_now(const struct wal *w)
{
    if (w->opt.now_ns != NULL) {
        return w->opt.now_ns(w->opt.now_ctx);
    }
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * SEC_NS + (uint64_t)ts.tv_nsec;
}

void wal_state_move(struct wal *w, enum wal_state from, enum wal_state to, const char *text)
{
    int expected = (int)from;
    if (from == to || !atomic_compare_exchange_strong(&w->state, &expected, (int)to)) {
        return;
    }
    static const char *const names[] = {"running", "low on space", "stalled: no space", "dead"};
    if (to == WAL_RUNNING) {
        SPAN_LOG(INFO, "log state", "state=\"%s\" reason=\"%s\"", names[to], text);
    } else {
        SPAN_LOG(ERROR, "log state", "state=\"%s\" reason=\"%s\"", names[to], text);
    }
    if (w->opt.on_state != NULL) {
        w->opt.on_state(w->opt.state_ctx, to, text);
    }
}

/* From whatever it is. DEAD is for ever. */
static void state_force(struct wal *w, enum wal_state to, const char *text)
{
    enum wal_state from;
    while ((from = wal_state_get(w)) != to && from != WAL_DEAD) {
        wal_state_move(w, from, to, text);
    }
}

enum wal_state wal_state_get(const struct wal *w)
{
    return (enum wal_state)atomic_load_explicit(&w->state, memory_order_relaxed);
}

/* ---- Queue ---- */

/* q_mu held. */
static void writer_wake(struct wal *w)
{
    if (w->writer_idle) {
        w->writer_idle = false;
        pthread_cond_signal(&w->q_cond);
    }
}

void wal_mark_request(struct wal *w)
{
    uint64_t due = wal_now(w) + w->opt.mark_delay_ns;
    pthread_mutex_lock(&w->q_mu);
    if (due < w->mark_due_ns) {
        w->mark_due_ns = due;
        writer_wake(w);
    }
    pthread_mutex_unlock(&w->q_mu);
}

static uint64_t half_segment(const struct wal *w)
{
    /* Head unit and batch unit must fit one segment together, with a sector left for a closing
     * unit. */
    return (w->opt.segment_bytes - 4ULL * SEG_SECTOR_BYTES) / 2 - UNIT_HEADER_BYTES;
}

size_t wal_batch_bytes_max(const struct wal *w)
{
    return (size_t)half_segment(w);
}

uint64_t wal_queued_bytes(const struct wal *w)
{
    return atomic_load_explicit(&w->queued_bytes, memory_order_relaxed);
}

bool wal_has_room(const struct wal *w)
{
    enum wal_state state = wal_state_get(w);
    return state != WAL_STALLED && state != WAL_DEAD &&
           wal_queued_bytes(w) < w->opt.queue_bytes_max;
}

/* q_mu held. Is there anything against taking this batch? */
static span_status submit_check(struct wal *w, const struct wal_batch *b)
{
    if (w->closing || w->killed) {
        return SPAN_CLOSED;
    }
    if (wal_state_get(w) == WAL_DEAD) {
        return SPAN_IO;
    }
    if (b->too_large || b->bytes.size > half_segment(w)) {
        return SPAN_TOO_LARGE;
    }
    uint64_t sticky = atomic_load_explicit(&w->sticky_bytes, memory_order_relaxed);
    if (b->sticky_bytes != 0 && sticky + b->sticky_bytes > half_segment(w)) {
        return SPAN_TOO_LARGE;
    }
    /* Counts what is queued as if it replaced nothing: refused, it can be tried again. */
    if (b->sticky_bytes != 0 &&
        sticky + w->queued_sticky_bytes + b->sticky_bytes > half_segment(w)) {
        return SPAN_OVERLOADED;
    }
    uint64_t queued = wal_queued_bytes(w);
    if (queued != 0 && queued + b->bytes.size > 2 * w->opt.queue_bytes_max) {
        return SPAN_OVERLOADED;
    }
    return SPAN_OK;
}

static struct wal_job *job_get(struct wal *w)
{
    if (list_is_empty(&w->pool)) {
        struct wal_job *j = SPAN_NEW(struct wal_job);
        list_init(&j->link);
        return j;
    }
    struct wal_job *j = LIST_ENTRY(w->pool.next, struct wal_job, link);
    list_remove(&j->link);
    w->pool_count--;
    return j;
}

static void job_free(struct wal_job *j)
{
    list_remove(&j->link);
    wal_batch_deinit(&j->batch);
    span_free(j);
}

span_status wal_submit(struct wal *w, struct wal_batch *batch, wal_done_fn *done, void *ctx,
                       uint64_t cookie)
{
    REQUIRE(done != NULL);
    uint64_t now = wal_now(w);
    pthread_mutex_lock(&w->q_mu);
    span_status st = submit_check(w, batch);
    if (st != SPAN_OK) {
        pthread_mutex_unlock(&w->q_mu);
        return st;
    }
    struct wal_job *j = job_get(w);
    struct wal_batch spent = j->batch;
    j->batch = *batch;
    *batch = spent; /* cleared memory of an earlier batch */
    j->done = done;
    j->ctx = ctx;
    j->cookie = cookie;
    j->submit_ns = now;
    list_push_back(&w->queue, &j->link);
    w->queued_sticky_bytes += j->batch.sticky_bytes;
    atomic_fetch_add_explicit(&w->queued_bytes, j->batch.bytes.size, memory_order_relaxed);
    if (w->retry_ns == 0) {
        writer_wake(w);
    }
    pthread_mutex_unlock(&w->q_mu);
    return SPAN_OK;
}

uint64_t wal_oldest_unsynced_ns(struct wal *w)
{
    uint64_t now = wal_now(w);
    pthread_mutex_lock(&w->q_mu);
    uint64_t since = w->inflight_since_ns;
    if (since == 0 && !list_is_empty(&w->queue)) {
        since = LIST_ENTRY(w->queue.next, struct wal_job, link)->submit_ns;
    }
    pthread_mutex_unlock(&w->q_mu);
    return since == 0 || since > now ? 0 : now - since;
}

/* q_mu held: what a round takes goes to `jobs`. */
static void queue_take(struct wal *w, struct list *jobs)
{
    uint64_t bytes = 0;
    uint64_t max =
        w->opt.unit_bytes_max < half_segment(w) ? w->opt.unit_bytes_max : half_segment(w);
    while (!list_is_empty(&w->queue)) {
        struct wal_job *j = LIST_ENTRY(w->queue.next, struct wal_job, link);
        if (bytes != 0 && bytes + j->batch.bytes.size > max) {
            break;
        }
        bytes += j->batch.bytes.size;
        list_remove(&j->link);
        list_push_back(jobs, &j->link);
        w->inflight_since_ns = w->inflight_since_ns == 0 ? j->submit_ns : w->inflight_since_ns;
    }
}

/* Completes the round's batches and keeps their memory for the next ones. */
static void jobs_finish(struct wal *w, struct list *jobs, span_status st)
{
    uint64_t bytes = 0;
    uint64_t sticky = 0;
    LIST_EACH(it, jobs)
    {
        struct wal_job *j = LIST_ENTRY(it, struct wal_job, link);
        bytes += j->batch.bytes.size;
        sticky += j->batch.sticky_bytes;
        j->done(j->ctx, j->cookie, st);
    }
    pthread_mutex_lock(&w->q_mu);
    w->inflight_since_ns = 0;
    w->queued_sticky_bytes -= sticky;
    atomic_fetch_sub_explicit(&w->queued_bytes, bytes, memory_order_relaxed);
    LIST_EACH_SAFE(it, tmp, jobs)
    {
        struct wal_job *j = LIST_ENTRY(it, struct wal_job, link);
        if (w->pool_count >= POOL_MAX || j->batch.bytes.cap > POOL_JOB_BYTES_MAX) {
            job_free(j);
            continue;
        }
        list_remove(&j->link);
        wal_batch_clear(&j->batch);
        list_push_front(&w->pool, &j->link);
        w->pool_count++;
    }
    pthread_mutex_unlock(&w->q_mu);
}

/* ---- One unit ---- */

/* s_mu held. The oldest segment that is still needed, once segments before it without pins are
 * gone; the one being written is always needed, as the next head will link to it. */
static uint64_t oldest_needed(const struct wal *w, uint64_t if_none)
{
    for (const struct list *it = w->chain.next; it != &w->chain; it = it->next) {
        const char *base = (const char *)it - offsetof(struct wal_segment, link);
        const struct wal_segment *s = (const struct wal_segment *)(const void *)base;
        if (!wal_pins_is_empty(&s->pins) || it->next == &w->chain) {
            return s->id;
        }
    }
    return if_none;
}

/* Lays the round out in w->unit: [head][unit] in a fresh segment, else [unit]. A fresh segment with
 * nothing to write gets the head alone. Fills `u` with the last unit. */
static void unit_build(struct wal *w, const struct wal_segment *seg, bool fresh,
                       const struct list *jobs, struct unit *u, unsigned *units)
{
    *u = (struct unit){.seq = w->seq, .durable = w->seq};
    *units = 0;
    buf_clear(&w->unit);
    pthread_mutex_lock(&w->s_mu);
    u->oldest = oldest_needed(w, seg->id);
    u->newest = w->newest;
    if (fresh) {
        size_t at = unit_begin(&w->unit);
        wal_index_encode(&w->index, &w->unit);
        u->record_count = w->index.sticky_count;
        u->seq++;
        u->flags = UNIT_HEAD;
        u->prev = w->active == NULL ? 0 : w->active->id;
        unit_seal(&w->unit, at, seg->id, w->store_id, u);
        ++*units;
    }
    pthread_mutex_unlock(&w->s_mu);
    if (fresh && list_is_empty(jobs)) {
        return;
    }
    size_t at = unit_begin(&w->unit);
    u->seq++;
    u->flags = 0;
    u->prev = 0;
    u->record_count = 0;
    for (const struct list *it = jobs->next; it != jobs; it = it->next) {
        const char *base = (const char *)it - offsetof(struct wal_job, link);
        const struct wal_job *j = (const struct wal_job *)(const void *)base;
        buf_append_slice(&w->unit, buf_slice(&j->batch.bytes));
        u->record_count += j->batch.record_count;
    }
    unit_seal(&w->unit, at, seg->id, w->store_id, u);
    ++*units;
}

/* After the sync: bookkeeping of what is now durable. */
static void unit_durable(struct wal *w, struct wal_segment *seg, bool fresh, struct list *jobs,
                         const struct unit *u, unsigned units, uint64_t sync_ns)
{
    uint64_t batches = 0;
    pthread_mutex_lock(&w->s_mu);
    if (fresh) {
        list_remove(&seg->link);
        list_push_back(&w->chain, &seg->link);
        w->active = seg;
        w->tainted = false;
        w->stats.rotations++;
        /* A segment whose first sync failed may go only now: until a later head is durable,
         * recovery would miss a file that an earlier unit announced. */
        LIST_EACH_SAFE(it, tmp, &w->trash)
        {
            wal_segment_retire(w, LIST_ENTRY(it, struct wal_segment, link));
        }
        pthread_cond_signal(&w->prepare_cond);
    }
    seg->offset += w->unit.size;
    LIST_EACH(it, jobs)
    {
        struct wal_job *j = LIST_ENTRY(it, struct wal_job, link);
        wal_index_apply(&w->index, &seg->pins, &j->batch);
        batches++;
    }
    w->oldest = u->oldest;
    LIST_EACH_SAFE(it, tmp, &w->chain)
    {
        struct wal_segment *s = LIST_ENTRY(it, struct wal_segment, link);
        if (s->id >= u->oldest) {
            break;
        }
        wal_segment_retire(w, s);
    }
    w->stats.syncs++;
    w->stats.units += units;
    w->stats.empty_units += u->record_count == 0 ? 1 : 0;
    w->stats.batches += batches;
    w->stats.bytes += w->unit.size;
    w->stats.sync_ns_total += sync_ns;
    w->stats.sync_ns_max = sync_ns > w->stats.sync_ns_max ? sync_ns : w->stats.sync_ns_max;
    atomic_store_explicit(&w->sticky_bytes, w->index.sticky_bytes, memory_order_relaxed);
    pthread_mutex_unlock(&w->s_mu);
    w->seq = u->seq;
    w->data_seq = u->record_count != 0 ? u->seq : w->data_seq;
    w->announced_durable = u->durable;
    w->announced_newest = u->newest;
    metric_add(w->m_syncs, 1);
    metric_add(w->m_bytes, w->unit.size);
    metric_add(w->m_batches, batches);
    metric_observe_ns(w->m_sync_time, sync_ns);
}

static span_status injected(struct span_error *err)
{
    return span_fail(err, SPAN_IO, "injected at a failpoint: Input/output error");
}

/* Writes and syncs one unit into seg. *fatal: the segment must not be written to again. */
static span_status unit_put(struct wal *w, struct wal_segment *seg, bool fresh, struct list *jobs,
                            bool *fatal, struct span_error *err)
{
    struct unit u;
    unsigned units;
    unit_build(w, seg, fresh, jobs, &u, &units);
    INVARIANT(seg->offset + w->unit.size <= seg->bytes);
    uint64_t begin = wal_now(w);
    span_status st = fresh && FAILPOINT(WAL_SWITCH_WRITE) ? injected(err) : SPAN_OK;
    if (st == SPAN_OK) {
        st = FAILPOINT(WAL_WRITE) ? injected(err)
                                  : w->fs->ops->write(w->fs, seg->file, seg->offset, w->unit.data,
                                                      w->unit.size, err);
    }
    /* A write that found no room left nothing that a later one in its place does not replace. */
    *fatal = st != SPAN_OK && st != SPAN_NO_SPACE;
    if (st == SPAN_OK) {
        bool fails = (fresh && FAILPOINT(WAL_SWITCH_SYNC)) || FAILPOINT(WAL_SYNC);
        st = fails ? injected(err) : w->fs->ops->sync(w->fs, seg->file, err);
        if (st != SPAN_OK && PLANTED(FAILED_SYNC_RETRIED)) {
            st = w->fs->ops->sync(w->fs, seg->file, err);
        }
        *fatal = st != SPAN_OK;
    }
    if (st != SPAN_OK) {
        return st == SPAN_NO_SPACE ? st : SPAN_IO;
    }
    FAILPOINT_MARK(WAL_DURABLE);
    if (fresh) {
        FAILPOINT_MARK(WAL_SWITCH_DURABLE);
    }
    unit_durable(w, seg, fresh, jobs, &u, units, wal_now(w) - begin);
    return SPAN_OK;
}

/* Names the spare in the old segment before the first unit goes there, unless some unit has. */
static void segment_announce(struct wal *w, const struct wal_segment *spare)
{
    struct list none;
    list_init(&none);
    struct wal_segment *seg = w->active;
    if (seg == NULL || w->tainted || w->announced_newest >= spare->id ||
        seg->bytes - seg->offset < SEG_SECTOR_BYTES) {
        return;
    }
    bool fatal;
    struct span_error err;
    if (unit_put(w, seg, false, &none, &fatal, &err) != SPAN_OK) {
        w->tainted = true; /* what matters is written to the spare next */
    }
}

/* The disk is full, but segments were released: a unit must say so before one of them can be used
 * again, and the sector kept free at the end of the active segment has room for it. */
static bool segment_reclaim(struct wal *w)
{
    struct wal_segment *seg = w->active;
    if (seg == NULL || w->tainted || seg->bytes - seg->offset < SEG_SECTOR_BYTES) {
        return false;
    }
    pthread_mutex_lock(&w->s_mu);
    bool gain = oldest_needed(w, w->oldest) > w->oldest;
    pthread_mutex_unlock(&w->s_mu);
    struct list none;
    list_init(&none);
    bool fatal = false;
    struct span_error err;
    bool done = gain && unit_put(w, seg, false, &none, &fatal, &err) == SPAN_OK;
    w->tainted = w->tainted || fatal;
    return done;
}

/* One attempt at making the jobs durable. */
static span_status commit_once(struct wal *w, struct list *jobs, struct span_error *err)
{
    uint64_t need = 0;
    for (const struct list *it = jobs->next; it != jobs; it = it->next) {
        const char *base = (const char *)it - offsetof(struct wal_job, link);
        need += ((const struct wal_job *)(const void *)base)->batch.bytes.size;
    }
    need = unit_bytes_for(need) + SEG_SECTOR_BYTES; /* one sector stays free for a closing unit */
    struct wal_segment *seg = w->active;
    bool fresh = seg == NULL || w->tainted || seg->bytes - seg->offset < need;
    if (fresh) {
        span_status st = wal_spare_get(w, &seg, err);
        if (st == SPAN_NO_SPACE && segment_reclaim(w)) {
            st = wal_spare_get(w, &seg, err);
        }
        if (st != SPAN_OK) {
            return st == SPAN_NO_SPACE ? st : SPAN_IO;
        }
        segment_announce(w, seg);
    }
    bool fatal;
    span_status st = unit_put(w, seg, fresh, jobs, &fatal, err);
    if (fatal && fresh) {
        pthread_mutex_lock(&w->s_mu);
        list_remove(&seg->link);
        seg->bytes = 0; /* not to be used again */
        list_push_back(&w->trash, &seg->link);
        pthread_cond_signal(&w->prepare_cond);
        pthread_mutex_unlock(&w->s_mu);
    } else if (fatal) {
        w->tainted = true;
    }
    return st;
}

/* ---- Rounds ---- */

enum round_result { ROUND_DONE, ROUND_AGAIN };

static void failure_count(struct wal *w, uint64_t *what, struct metric *m)
{
    pthread_mutex_lock(&w->s_mu);
    ++*what;
    pthread_mutex_unlock(&w->s_mu);
    metric_add(m, 1);
}

/* Makes the jobs durable, or decides that they fail (*st). ROUND_AGAIN: no room, try later. */
static enum round_result round_commit(struct wal *w, struct list *jobs, span_status *st)
{
    for (;;) {
        struct span_error err = {0};
        *st = commit_once(w, jobs, &err);
        if (*st == SPAN_OK) {
            w->io_failures = 0;
            if (wal_state_get(w) == WAL_STALLED) {
                bool low = atomic_load(&w->reserve_used);
                wal_state_move(w, WAL_STALLED, low ? WAL_LOW_SPACE : WAL_RUNNING,
                               "the log could write again");
            }
            return ROUND_DONE;
        }
        if (*st == SPAN_NO_SPACE) {
            if (wal_state_get(w) != WAL_STALLED) {
                failure_count(w, &w->stats.stalls, w->m_stalls);
            }
            state_force(w, WAL_STALLED, err.text);
            return ROUND_AGAIN;
        }
        failure_count(w, &w->stats.sync_failures, w->m_sync_failures);
        w->io_failures++;
        if (w->io_failures >= 2) {
            state_force(w, WAL_DEAD, err.text);
            return ROUND_DONE;
        }
        SPAN_LOG(ERROR, "log write failed, writing again to a fresh segment (rule H4)",
                 "error=\"%s\"", err.text);
    }
}

/* q_mu held: when there is something to do, 0 for now. */
static uint64_t next_due(const struct wal *w)
{
    if (wal_state_get(w) == WAL_DEAD) {
        return list_is_empty(&w->queue) ? UINT64_MAX : 0;
    }
    if (w->retry_ns != 0) {
        return w->closing ? 0 : w->retry_ns;
    }
    return list_is_empty(&w->queue) ? w->mark_due_ns : 0;
}

/* After a round: is an empty unit still owed? */
static void mark_plan(struct wal *w)
{
    bool owed = w->announced_durable < w->data_seq;
    uint64_t due = owed ? wal_now(w) + w->opt.mark_delay_ns : UINT64_MAX;
    pthread_mutex_lock(&w->q_mu);
    w->mark_due_ns = due;
    pthread_mutex_unlock(&w->q_mu);
    pthread_mutex_lock(&w->s_mu);
    owed = w->announced_newest < w->newest || oldest_needed(w, w->oldest) > w->oldest;
    uint64_t live = 0;
    LIST_EACH(it, &w->chain)
    {
        live++;
    }
    w->stats.segments_live = live;
    pthread_mutex_unlock(&w->s_mu);
    metric_set(w->m_segments, (double)live);
    if (owed && due == UINT64_MAX) {
        wal_mark_request(w);
    }
}

static bool jobs_have_records(const struct list *jobs)
{
    for (const struct list *it = jobs->next; it != jobs; it = it->next) {
        const char *base = (const char *)it - offsetof(struct wal_job, link);
        if (((const struct wal_job *)(const void *)base)->batch.record_count != 0) {
            return true;
        }
    }
    return false;
}

static void round_run(struct wal *w, struct list *jobs)
{
    span_status st = SPAN_OK;
    bool barrier_only = !list_is_empty(jobs) && !jobs_have_records(jobs);
    enum round_result result = ROUND_DONE;
    if (wal_state_get(w) == WAL_DEAD) {
        st = SPAN_IO;
    } else if (!barrier_only) {
        result = round_commit(w, jobs, &st);
    }
    pthread_mutex_lock(&w->q_mu);
    bool closing = w->closing;
    w->retry_ns = 0;
    if (result == ROUND_AGAIN && !closing) {
        while (!list_is_empty(jobs)) {
            struct list *last = jobs->prev;
            list_remove(last);
            list_push_front(&w->queue, last);
        }
        w->inflight_since_ns = 0; /* the queue's head has it again */
        w->retry_ns = wal_now(w) + STALL_RETRY_NS;
    }
    pthread_mutex_unlock(&w->q_mu);
    jobs_finish(w, jobs, st);
    if (result == ROUND_AGAIN && closing) {
        /* Nothing later may succeed where this failed: that would leave a hole. */
        state_force(w, WAL_DEAD, "closed while the disk was full");
    } else if (result == ROUND_DONE && st == SPAN_OK) {
        mark_plan(w);
    }
}

/* q_mu held. Waits until `due` on the log's clock, or for a wake-up. */
static void writer_wait(struct wal *w, uint64_t due)
{
    w->writer_idle = true;
    if (due == UINT64_MAX) {
        pthread_cond_wait(&w->q_cond, &w->q_mu);
    } else {
        uint64_t now = wal_now(w);
        struct timespec ts;
        clock_gettime(CLOCK_MONOTONIC, &ts);
        uint64_t until = (uint64_t)ts.tv_sec * SEC_NS + (uint64_t)ts.tv_nsec;
        until += due > now ? due - now : 0;
        ts = (struct timespec){(time_t)(until / SEC_NS), (long)(until % SEC_NS)};
        pthread_cond_timedwait(&w->q_cond, &w->q_mu, &ts);
    }
    w->writer_idle = false;
}

static void *writer_main(void *arg)
{
    struct wal *w = arg;
    prctl(PR_SET_NAME, "wal-writer");
    prctl(PR_SET_TIMERSLACK, 1UL);
    log_set_node(w->opt.node);
    for (;;) {
        struct list jobs;
        list_init(&jobs);
        pthread_mutex_lock(&w->q_mu);
        uint64_t due;
        while (!w->killed && (due = next_due(w)) != 0 &&
               !(w->closing && list_is_empty(&w->queue)) && wal_now(w) < due) {
            writer_wait(w, due);
        }
        if (w->killed || (w->closing && list_is_empty(&w->queue))) {
            pthread_mutex_unlock(&w->q_mu);
            return NULL;
        }
        queue_take(w, &jobs);
        if (list_is_empty(&jobs)) {
            w->mark_due_ns = UINT64_MAX;
        }
        pthread_mutex_unlock(&w->q_mu);
        round_run(w, &jobs);
    }
}

bool wal_run(struct wal *w)
{
    REQUIRE(w->opt.manual);
    struct list jobs;
    list_init(&jobs);
    bool did = wal_prepare_run(w);
    pthread_mutex_lock(&w->q_mu);
    uint64_t due = next_due(w);
    bool now = due == 0 || wal_now(w) >= due;
    if (now) {
        queue_take(w, &jobs);
        w->mark_due_ns = list_is_empty(&jobs) ? UINT64_MAX : w->mark_due_ns;
    }
    pthread_mutex_unlock(&w->q_mu);
    if (now) {
        round_run(w, &jobs);
        (void)wal_prepare_run(w);
    }
    return did || now;
}

uint64_t wal_next_run_ns(struct wal *w)
{
    pthread_mutex_lock(&w->q_mu);
    uint64_t due = next_due(w);
    pthread_mutex_unlock(&w->q_mu);
    return due;
}

/* ---- State and space ---- */

bool wal_sticky_get(struct wal *w, uint64_t range, uint8_t kind, struct buf *out)
{
    struct slice s;
    pthread_mutex_lock(&w->s_mu);
    bool found = wal_index_get(&w->index, range, kind, &s);
    if (found) {
        buf_append_slice(out, s);
    }
    pthread_mutex_unlock(&w->s_mu);
    return found;
}

void wal_release(struct wal *w, uint64_t range, uint64_t index)
{
    pthread_mutex_lock(&w->s_mu);
    wal_index_release(&w->index, range, index);
    bool freed = oldest_needed(w, w->oldest) > w->oldest;
    pthread_mutex_unlock(&w->s_mu);
    if (freed) {
        wal_mark_request(w); /* a unit must say so before the files may go */
    }
}

size_t wal_oldest_pinned(struct wal *w, struct wal_pin *out, size_t max)
{
    size_t n = 0;
    pthread_mutex_lock(&w->s_mu);
    LIST_EACH(it, &w->chain)
    {
        struct wal_segment *s = LIST_ENTRY(it, struct wal_segment, link);
        if (it->next == &w->chain) {
            break;
        }
        n = wal_index_pins(&s->pins, out, max);
        if (n != 0) {
            break;
        }
    }
    pthread_mutex_unlock(&w->s_mu);
    return n;
}

void wal_stats_get(struct wal *w, struct wal_stats *out)
{
    pthread_mutex_lock(&w->s_mu);
    *out = w->stats;
    pthread_mutex_unlock(&w->s_mu);
}

/* ---- Open and close ---- */

static span_status options_check(struct wal_options *o, struct span_error *err)
{
    o->segment_bytes = o->segment_bytes == 0 ? WAL_SEGMENT_BYTES : o->segment_bytes;
    o->queue_bytes_max = o->queue_bytes_max == 0 ? QUEUE_BYTES : o->queue_bytes_max;
    o->unit_bytes_max = o->unit_bytes_max == 0 ? UNIT_BYTES : o->unit_bytes_max;
    o->mark_delay_ns = o->mark_delay_ns == 0 ? MARK_DELAY_NS : o->mark_delay_ns;
    if (o->segment_bytes < SEG_BYTES_MIN || o->segment_bytes > SEG_BYTES_MAX ||
        o->segment_bytes % 4096 != 0) {
        return span_fail(err, SPAN_INVALID,
                         "log segment size %llu is not a multiple of 4096 between %llu and %llu",
                         (unsigned long long)o->segment_bytes, SEG_BYTES_MIN, SEG_BYTES_MAX);
    }
    return SPAN_OK;
}

static void metrics_register(struct wal *w)
{
    struct metrics *m = w->opt.metrics;
    if (m == NULL) {
        return;
    }
    w->m_syncs = metrics_counter(m, "spanlite_wal_syncs_total", "", "fdatasyncs of the log");
    w->m_bytes =
        metrics_counter(m, "spanlite_wal_bytes_total", "", "bytes of the log made durable");
    w->m_batches = metrics_counter(m, "spanlite_wal_batches_total", "", "batches made durable");
    w->m_stalls = metrics_counter(m, "spanlite_wal_stalls_total", "", "times the disk was full");
    w->m_sync_failures =
        metrics_counter(m, "spanlite_wal_sync_failures_total", "", "failed writes and syncs");
    w->m_sync_time = metrics_hist(m, "spanlite_wal_sync_seconds", "", "write and sync of one unit");
    w->m_segments =
        metrics_gauge(m, "spanlite_wal_segments", "", "segments that hold needed records");
}

static struct wal *wal_new(uint64_t store_id, const struct wal_options *opt)
{
    struct wal *w = SPAN_NEW(struct wal);
    w->opt = *opt;
    w->store_id = store_id;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&w->q_mu, NULL);
    pthread_mutex_init(&w->s_mu, NULL);
    pthread_cond_init(&w->q_cond, &monotonic);
    pthread_cond_init(&w->prepare_cond, &monotonic);
    pthread_cond_init(&w->spare_cond, &monotonic);
    pthread_condattr_destroy(&monotonic);
    list_init(&w->queue);
    list_init(&w->pool);
    list_init(&w->chain);
    list_init(&w->spares);
    list_init(&w->garbage);
    list_init(&w->trash);
    wal_index_init(&w->index);
    buf_init(&w->unit);
    w->mark_due_ns = UINT64_MAX;
    return w;
}

static void segments_free(struct wal *w, struct list *l)
{
    LIST_EACH_SAFE(it, tmp, l)
    {
        wal_segment_free(w, LIST_ENTRY(it, struct wal_segment, link));
    }
}

static void jobs_free(struct list *l)
{
    LIST_EACH_SAFE(it, tmp, l)
    {
        job_free(LIST_ENTRY(it, struct wal_job, link));
    }
}

static void wal_free(struct wal *w)
{
    wal_index_deinit(&w->index); /* before the segments its pins are linked to */
    segments_free(w, &w->chain);
    segments_free(w, &w->spares);
    segments_free(w, &w->garbage);
    segments_free(w, &w->trash);
    jobs_free(&w->queue);
    jobs_free(&w->pool);
    buf_deinit(&w->unit);
    if (w->fault_fs != NULL) {
        w->fault_fs->ops->free(w->fault_fs);
    }
    if (w->own_fs != NULL) {
        w->own_fs->ops->free(w->own_fs);
    }
    pthread_cond_destroy(&w->spare_cond);
    pthread_cond_destroy(&w->prepare_cond);
    pthread_cond_destroy(&w->q_cond);
    pthread_mutex_destroy(&w->s_mu);
    pthread_mutex_destroy(&w->q_mu);
    span_free(w);
}

static span_status threads_start(struct wal *w, struct span_error *err)
{
    int e = pthread_create(&w->preparer, NULL, wal_prepare_main, w);
    if (e != 0) {
        return span_fail(err, SPAN_UNAVAILABLE, "cannot start the log's threads: %s", strerror(e));
    }
    w->threads_running = true;
    e = pthread_create(&w->writer, NULL, writer_main, w);
    if (e == 0) {
        return SPAN_OK;
    }
    pthread_mutex_lock(&w->s_mu);
    w->prepare_stop = true;
    pthread_cond_signal(&w->prepare_cond);
    pthread_mutex_unlock(&w->s_mu);
    pthread_join(w->preparer, NULL);
    return span_fail(err, SPAN_UNAVAILABLE, "cannot start the log's threads: %s", strerror(e));
}

span_status wal_open(const char *dir, uint64_t store_id, const struct wal_options *options,
                     wal_replay_fn *replay, void *replay_ctx, struct wal **out,
                     struct span_error *err)
{
    struct wal_options opt = options == NULL ? (struct wal_options){0} : *options;
    struct span_error unused;
    err = err == NULL ? &unused : err;
    span_status st = options_check(&opt, err);
    if (st != SPAN_OK) {
        return st;
    }
    struct wal *w = wal_new(store_id, &opt);
    w->fs = opt.fs;
    if (w->fs == NULL) {
        st = wal_fs_posix_new(dir, &w->own_fs, err);
        w->fs = w->own_fs;
    }
    if (st == SPAN_OK && opt.faults != NULL) {
        w->fault_fs = wal_fs_faulty_new(w->fs, opt.faults);
        w->fs = w->fault_fs;
    }
    if (st == SPAN_OK) {
        st = w->fs->ops->lock(w->fs, err);
    }
    if (st == SPAN_OK) {
        st = wal_recover(w, replay, replay_ctx, err);
    }
    if (st != SPAN_OK) {
        wal_free(w);
        return st;
    }
    metrics_register(w);
    mark_plan(w);
    if (opt.manual) {
        (void)wal_prepare_run(w);
    } else {
        st = threads_start(w, err);
        if (st != SPAN_OK) {
            wal_free(w);
            return st;
        }
    }
    *out = w;
    return SPAN_OK;
}

static void threads_stop(struct wal *w)
{
    if (!w->threads_running) {
        return;
    }
    pthread_mutex_lock(&w->q_mu);
    writer_wake(w);
    pthread_mutex_unlock(&w->q_mu);
    pthread_join(w->writer, NULL); /* may still need the preparer */
    pthread_mutex_lock(&w->s_mu);
    w->prepare_stop = true;
    pthread_cond_signal(&w->prepare_cond);
    pthread_mutex_unlock(&w->s_mu);
    pthread_join(w->preparer, NULL);
    w->threads_running = false;
}

span_status wal_close(struct wal *w)
{
    pthread_mutex_lock(&w->q_mu);
    w->closing = true;
    pthread_mutex_unlock(&w->q_mu);
    while (w->opt.manual && !list_is_empty(&w->queue)) {
        (void)wal_run(w);
    }
    threads_stop(w);
    INVARIANT(list_is_empty(&w->queue));
    span_status st = SPAN_OK;
    if (wal_state_get(w) == WAL_DEAD) {
        st = SPAN_IO;
    } else if (!w->tainted) {
        struct seg_clean clean = {0};
        if (w->active != NULL) {
            clean = (struct seg_clean){w->active->id, w->active->offset, w->seq};
        }
        struct buf bytes = {0};
        struct span_error err = {0};
        clean_encode(&clean, w->store_id, &bytes);
        st = FAILPOINT(WAL_CLEAN_MARK)
                 ? injected(&err)
                 : wal_write_small(w, WAL_CLEAN_NAME, buf_slice(&bytes), &err);
        FAILPOINT_MARK(WAL_CLEAN_MARKED);
        buf_deinit(&bytes);
        if (st != SPAN_OK) {
            SPAN_LOG(WARN, "cannot write the log's clean-stop mark", "error=\"%s\"", err.text);
        }
    }
    wal_free(w);
    return st;
}

void wal_abandon(struct wal *w)
{
    pthread_mutex_lock(&w->q_mu);
    w->killed = true;
    pthread_mutex_unlock(&w->q_mu);
    threads_stop(w);
    wal_free(w);
}
