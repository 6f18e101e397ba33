/* The write-ahead log of one store (node), shared by all its ranges: Raft entries and the small
 * state a replica must remember, made durable by group commit. One writer thread takes everything
 * that was queued while the previous fdatasync ran, writes it as one append unit and syncs once; no
 * thread waits per caller, completions are called on the writer's thread. Rules H1 to H4, H9, H10.
 * The format on disk is described in wal_segment.h, what survives a crash in README.md.
 *
 * Two classes of records:
 *  - entries (range, index, term, type, payload): an entry at index i replaces every entry of that
 *    range from i on, in log order. They keep their segment alive until wal_release().
 *  - sticky state (range, kind, payload): the latest payload of each (range, kind) wins, for ever;
 * the log keeps it in memory and repeats it at the head of every segment (rule H3), so a caller
 * never writes it again to keep it. A tombstone removes all sticky state and all entries of a
 * range.
 *
 * Threads: submit, release and the queries may be called from any thread; open and close from one.
 */
#ifndef SPAN_SHARD_WAL_WAL_H
#define SPAN_SHARD_WAL_WAL_H

#include "base/buf.h"
#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

struct wal;
struct wal_fs;     /* shard/wal/wal_file.h */
struct wal_faults; /* shard/wal/wal_file.h */
struct metrics;

#define WAL_STICKY_BYTES_MAX                                                                       \
    (64ULL * 1024) /* one sticky payload: it is repeated in every segment */

/* Records as replay gives them. */
enum wal_record_kind { WAL_ENTRY = 1, WAL_STICKY = 2, WAL_TOMBSTONE = 3 };

struct wal_record {
    enum wal_record_kind kind;
    uint8_t type; /* entry type or sticky kind, the caller's numbers */
    uint64_t range;
    uint64_t index; /* entries only */
    uint64_t term;  /* entries only */
    struct slice payload;
};

/* Called inside wal_open for every record that is still in the log, in log order: first the sticky
 * state as it was at the start of the oldest segment, then everything since. Entries may come that
 * were released long ago (skip those at or below the applied index) and entries that a later one
 * replaces. `r` and its payload are valid during the call. A status other than OK stops wal_open,
 * which returns it with the record's file and offset put in front of err's text. Nothing replayed
 * may be acted on before wal_open has returned OK: only then is all of it certainly durable. */
typedef span_status wal_replay_fn(void *ctx, const struct wal_record *r, struct span_error *err);

/* Completion of a batch, called on the log's writer thread, batches in the order they were
 * submitted. It posts to a mailbox and returns: the next sync waits for it. OK: durable. IO or
 * NO_SPACE: the log is dead or closing, the batch may or may not be there after a restart; nothing
 * submitted later will be durable either, so there are never holes. */
typedef void wal_done_fn(void *ctx, uint64_t cookie, span_status st);

enum wal_state {
    WAL_RUNNING,
    WAL_LOW_SPACE, /* disk is full, the reserve is in use: stop taking work, flush and release */
    WAL_STALLED,   /* disk is full and nothing can be written; batches wait, retried by itself */
    WAL_DEAD,      /* a sync failed and writing elsewhere failed too: only a restart helps */
};

/* Told on a thread of the log at each change of state; `text` says why, valid during the call. */
typedef void wal_state_fn(void *ctx, enum wal_state state, const char *text);

struct wal_options {
    uint64_t segment_bytes;    /* multiple of 4096, 8 KiB to 1 GiB; 0: WAL_SEGMENT_BYTES */
    uint64_t queue_bytes_max;  /* wal_has_room() turns false here; 0: 32 MiB */
    uint64_t unit_bytes_max;   /* a round takes about this much from the queue; 0: 1 MiB */
    uint64_t mark_delay_ns;    /* the empty unit of rule H1 follows this long after; 0: 5 ms */
    bool no_reserve;           /* keep no reserve file (small tests) */
    bool manual;               /* no threads: the owner calls wal_run() (simulator) */
    unsigned node;             /* number for log lines */
    struct wal_fs *fs;         /* borrowed, outlives the log; NULL: POSIX files in `dir` */
    struct wal_faults *faults; /* borrowed; faults to inject, settable at run time; or NULL */
    uint64_t (*now_ns)(void *now_ctx); /* monotonic clock; NULL: CLOCK_MONOTONIC */
    void *now_ctx;
    struct metrics *metrics; /* borrowed; or NULL */
    wal_state_fn *on_state;  /* or NULL */
    void *state_ctx;
};

/* Opens (creates, if there is no log yet) the log of store `store_id` in `dir` (created if its
 * parent exists), replays it, cuts a torn tail and starts the threads. `options` may be NULL.
 * Errors, each naming file and, where there is one, offset: CORRUPT (a bad byte below what was
 * acknowledged, a missing segment, a log that does not end where its clean stop says), INVALID
 * (another store's log, bad options), UNSUPPORTED (version), UNAVAILABLE (another process has it
 * open), IO, NO_SPACE. */
SPAN_CHECKED span_status wal_open(const char *dir, uint64_t store_id,
                                  const struct wal_options *options, wal_replay_fn *replay,
                                  void *replay_ctx, struct wal **out, struct span_error *err);

/* Makes everything queued durable (completions are called), writes the clean-stop mark, stops the
 * threads and frees the log. After it no completion is called. Not OK: the log had failed, no mark.
 */
span_status wal_close(struct wal *w);

/* Stops like a crash: what is queued is dropped without completion, no mark. For tests and for a
 * node that stops because of an error. */
void wal_abandon(struct wal *w);

/* ---- Writing ---- */

/* Records of one worker turn, embedded by the caller and reused: wal_submit leaves it empty. One
 * thread at a time. */
struct wal_batch {
    struct buf bytes; /* encoded records */
    struct wal_batch_op *ops;
    size_t op_count;
    size_t op_cap;
    uint32_t record_count;
    size_t sticky_bytes;
    bool too_large; /* an add was over a limit: submit refuses the batch */
};

void wal_batch_init(struct wal_batch *b);
void wal_batch_deinit(struct wal_batch *b);
void wal_batch_clear(struct wal_batch *b);
bool wal_batch_is_empty(const struct wal_batch *b);
size_t wal_batch_bytes(const struct wal_batch *b);
/* Copy their payloads. A payload over LIMIT_ENTRY_BYTES or WAL_STICKY_BYTES_MAX makes the submit
 * fail with TOO_LARGE. Rule H3: add a range's hard state before the entries it belongs to. index >
 * 0. */
void wal_batch_add_entry(struct wal_batch *b, uint64_t range, uint64_t index, uint64_t term,
                         uint8_t type, struct slice payload);
void wal_batch_add_sticky(struct wal_batch *b, uint64_t range, uint8_t kind, struct slice payload);
void wal_batch_add_tombstone(struct wal_batch *b, uint64_t range);

/* Hands the batch to the writer; `done` is called exactly once, after its sync, unless this returns
 * an error (then never, and the batch is unchanged). An empty batch is a barrier: it completes
 * after all before it. A batch is durable wholly or not at all. Errors: TOO_LARGE (half a segment
 * less a little, see wal_batch_bytes_max; or too much sticky state), OVERLOADED (twice
 * queue_bytes_max is queued: ask wal_has_room() before stepping), IO (dead), CLOSED. */
SPAN_CHECKED span_status wal_submit(struct wal *w, struct wal_batch *batch, wal_done_fn *done,
                                    void *ctx, uint64_t cookie);

size_t wal_batch_bytes_max(const struct wal *w);
/* Back-pressure: false from queue_bytes_max on, and while the log is stalled or dead. One atomic.
 */
bool wal_has_room(const struct wal *w);
uint64_t wal_queued_bytes(const struct wal *w);
enum wal_state wal_state_get(const struct wal *w);

/* ---- Reading state and freeing space ---- */

/* Latest durable sticky payload of (range, kind), appended to out. False: none. */
bool wal_sticky_get(struct wal *w, uint64_t range, uint8_t kind, struct buf *out);

/* Entries of the range at or below index are not needed from the log any more: flushed AND
 * checkpointed (rule H3). Segments that nobody needs are recycled, oldest first. Not to be called
 * with the index of an earlier life of the range after its tombstone was submitted. */
void wal_release(struct wal *w, uint64_t range, uint64_t index);

struct wal_pin {
    uint64_t range;
    uint64_t index; /* releasing up to here lets the oldest segment go, as far as this range goes */
};

/* Ranges whose entries keep the oldest segment alive (at most `max` of them); flush these to free
 * it. 0 while the oldest segment is the one being written: then there is nothing to gain. */
size_t wal_oldest_pinned(struct wal *w, struct wal_pin *out, size_t max);

/* Age of the oldest batch submitted and not yet durable, 0 if there is none (rule H10: a leader
 * whose value exceeds a lease length hands its leases over). */
uint64_t wal_oldest_unsynced_ns(struct wal *w);

struct wal_stats {
    uint64_t syncs; /* fdatasyncs of units, empty ones too */
    uint64_t units; /* append units made durable, heads and empty ones too */
    uint64_t empty_units;
    uint64_t batches;
    uint64_t bytes; /* of units, with headers and padding */
    uint64_t rotations;
    uint64_t recycled; /* segment files used again */
    uint64_t created;  /* segment files zero-filled anew */
    uint64_t sync_failures;
    uint64_t stalls;
    uint64_t segments_live; /* files that hold needed records, the one being written included */
    uint64_t sync_ns_total;
    uint64_t sync_ns_max;
    uint64_t recovered_units;     /* found by wal_open */
    uint64_t recovered_cut_bytes; /* a torn tail's first bad unit to the end of what was found, 0:
                                     none */
};

void wal_stats_get(struct wal *w, struct wal_stats *out);

/* ---- Without threads (options.manual) ---- */

/* One round: takes what is queued, writes, syncs, calls completions; or writes the empty unit if it
 * is due; prepares segments. True if something was done. */
bool wal_run(struct wal *w);
/* When wal_run has something to do next: 0 at once, UINT64_MAX nothing, else the clock's time. */
uint64_t wal_next_run_ns(struct wal *w);

#endif
