/* The log's state, shared by its three files and by nobody else: wal.c (queue, rounds, interface),
 * wal_prepare.c (segment files made ahead of time and thrown away), wal_recover.c (open and
 * replay).
 *
 * Who touches what: fields under "queue" are guarded by q_mu, under "segments" by s_mu, the rest
 * belongs to the writer. The two mutexes are never held together, and neither during I/O or a
 * callback. */
#ifndef SPAN_SHARD_WAL_WAL_INTERNAL_H
#define SPAN_SHARD_WAL_WAL_INTERNAL_H

#include "base/list.h"
#include "shard/wal/wal.h"
#include "shard/wal/wal_file.h"
#include "shard/wal/wal_index.h"
#include "shard/wal/wal_segment.h"

#include <pthread.h>
#include <stdatomic.h>

#define WAL_RECYCLE_MAX 2U /* files kept for reuse; more are unlinked */

#define WAL_TMP_NAME      "prepare.tmp"
#define WAL_RESERVE_NAME  "reserve"
#define WAL_CLEAN_NAME    "clean"
#define WAL_IDENTITY_NAME "identity"

struct wal_segment {
    struct list link; /* in one of wal.chain, spares, garbage */
    uint64_t id;
    uint64_t bytes;
    uint64_t offset;       /* where the next unit goes */
    struct wal_file *file; /* NULL in garbage */
    struct wal_pins pins;
};

struct wal_job {
    struct list link;
    struct wal_batch batch;
    wal_done_fn *done;
    void *ctx;
    uint64_t cookie;
    uint64_t submit_ns;
};

struct wal {
    struct wal_options opt; /* defaults filled in */
    uint64_t store_id;
    struct wal_fs *fs;       /* what everything goes through */
    struct wal_fs *own_fs;   /* POSIX one made by open, or NULL */
    struct wal_fs *fault_fs; /* fault layer, or NULL */
    bool threads_running;
    pthread_t writer;
    pthread_t preparer;

    /* queue */
    pthread_mutex_t q_mu;
    pthread_cond_t q_cond;
    struct list queue; /* of wal_job */
    struct list pool;  /* spent jobs with their memory */
    size_t pool_count;
    uint64_t queued_sticky_bytes;
    uint64_t inflight_since_ns; /* submit time of the oldest batch being written; 0: none */
    uint64_t mark_due_ns;       /* an empty unit is wanted then; UINT64_MAX: no */
    uint64_t retry_ns;          /* stalled: try again then; 0: not stalled */
    bool writer_idle;
    bool closing;
    bool killed;
    _Atomic uint64_t queued_bytes;
    _Atomic uint64_t sticky_bytes; /* durable sticky state, for the check in submit */
    _Atomic int state;             /* enum wal_state */
    _Atomic bool reserve_used;     /* LOW_SPACE rather than RUNNING */

    /* segments */
    pthread_mutex_t s_mu;
    pthread_cond_t prepare_cond; /* work for the preparer */
    pthread_cond_t spare_cond;   /* a preparation ended */
    struct wal_index index;
    struct list chain;   /* oldest first; the last one is being written */
    struct list spares;  /* by id; the file and its header are durable */
    struct list garbage; /* files nobody needs, to be used again or unlinked */
    size_t garbage_count;
    uint64_t newest; /* greatest id whose file is durably there */
    uint64_t oldest; /* oldest id that a durable unit says is needed */
    bool reserve_present;
    bool tmp_ready;      /* prepare.tmp is a whole file waiting for its header (preparer only) */
    bool prepare_wanted; /* the writer waits: do not sit out the pause after a failure */
    bool prepare_stop;
    uint64_t prepare_attempts;
    span_status prepare_status; /* of the last attempt */
    struct span_error prepare_error;
    uint64_t prepare_retry_ns; /* not before, after a failure */
    uint64_t reserve_retry_ns;
    struct wal_stats stats;

    /* writer */
    struct wal_segment *active; /* last of chain, or NULL */
    struct list trash;    /* segments whose first sync failed: kept until a later one is good */
    bool tainted;         /* a sync of active failed: no more units there (rule H4) */
    unsigned io_failures; /* in a row */
    uint64_t seq;         /* last durable unit */
    uint64_t data_seq;    /* last durable unit that held records */
    uint64_t announced_durable; /* greatest `durable` in a durable unit */
    uint64_t announced_newest;
    struct buf unit;

    struct metric *m_syncs;
    struct metric *m_bytes;
    struct metric *m_batches;
    struct metric *m_stalls;
    struct metric *m_sync_failures;
    struct metric *m_sync_time;
    struct metric *m_segments;
};

/* wal.c */
uint64_t wal_now(const struct wal *w);
/* Wants an empty unit within mark_delay_ns. */
void wal_mark_request(struct wal *w);
/* Changes the state if it is `from`, and tells the owner. Writer and preparer both do. */
void wal_state_move(struct wal *w, enum wal_state from, enum wal_state to, const char *text);

/* wal_prepare.c */
struct wal_segment *wal_segment_new(uint64_t id, uint64_t bytes);
void wal_segment_free(struct wal *w, struct wal_segment *s); /* closes its file */
/* Makes one spare segment now: recycles a file, or fills one with zeros, or takes the reserve. */
SPAN_CHECKED span_status wal_prepare_spare(struct wal *w, struct span_error *err);
/* Replaces a small file as a whole: written beside, synced, renamed, directory synced. */
SPAN_CHECKED span_status wal_write_small(struct wal *w, const char *name, struct slice contents,
                                         struct span_error *err);
/* First spare, waiting for the preparer if there is none (or preparing it here without threads). */
SPAN_CHECKED span_status wal_spare_get(struct wal *w, struct wal_segment **out,
                                       struct span_error *err);
/* Everything the preparer would do now, for logs without threads. True if something was done. */
bool wal_prepare_run(struct wal *w);
void *wal_prepare_main(void *arg);
/* s_mu held: moves a segment that nobody needs from its list to the garbage, or away for good. */
void wal_segment_retire(struct wal *w, struct wal_segment *s);

/* wal_recover.c */
SPAN_CHECKED span_status wal_recover(struct wal *w, wal_replay_fn *replay, void *replay_ctx,
                                     struct span_error *err);

#endif
