/* Failpoints: named places where a test makes the process die, stall or fail (tests/cluster/
 * failpoints). Off, a point costs one relaxed load. They are armed only where a node was started
 * with --enable-faults, by --failpoints (SPANLITE_FAILPOINTS) or POST /debug/failpoints.
 *
 *     NAME[:nth]=kill        SIGKILL to the own process at the nth passage (default 1)
 *     NAME[:nth]=stall MS    the thread that passes sleeps
 *     NAME[:nth]=error       the call there fails as if the system had refused it; only at points
 *                            that may fail
 *
 * Each is done once, then the point is off again. Several are separated by commas, all or nothing.
 *
 * Where they stand. Protocol cores stay pure, so their points are where an effect leaves or enters
 * them, by kind (shard/node_points.c):
 *
 *     log.KIND.submit     a record of the kind is in the turn's batch, the log does not have it
 *     log.KIND.durable    it is synced, and nobody has been told
 *     msg.KIND.send       a message of the kind is in a peer's outbox
 *     msg.KIND.sent       the transport took it; a kill leaves it the time to get away
 *     msg.KIND.got        one came and is not handled yet
 *
 * What does its own I/O (wal, engine) has points between its steps.
 *
 * The names are tests' interface: tests/cluster/failpoints knows for each how to reach it, and
 * fails when one is new or can not be reached. Any thread. */
#ifndef SPAN_BASE_FAILPOINT_H
#define SPAN_BASE_FAILPOINT_H

#include "base/buf.h"
#include "base/status.h"

#include <stdatomic.h>
#include <stdbool.h>

/* X(ID, name, may fail, where) */
#define FAILPOINT_LOG(X, ID, name)                                                                 \
    X(LOG_##ID##_SUBMIT, "log." name ".submit", false, "record, before the log gets it")           \
    X(LOG_##ID##_DURABLE, "log." name ".durable", false, "record, synced but nobody told")

#define FAILPOINT_MSG(X, ID, name)                                                                 \
    X(MSG_##ID##_SEND, "msg." name ".send", false, "message, before it leaves")                    \
    X(MSG_##ID##_SENT, "msg." name ".sent", false, "message, after it left")                       \
    X(MSG_##ID##_GOT, "msg." name ".got", false, "message, before it is handled")

/* shard/node_points.c relies on the first and last kind of both. */
#define FAILPOINTS_OF_LOG(X)                                                                       \
    FAILPOINT_LOG(X, OPEN, "open")                                                                 \
    FAILPOINT_LOG(X, COMMIT1, "commit1")                                                           \
    FAILPOINT_LOG(X, PREPARE, "prepare")                                                           \
    FAILPOINT_LOG(X, DECISION, "decision")                                                         \
    FAILPOINT_LOG(X, OUTCOME, "outcome")                                                           \
    FAILPOINT_LOG(X, RESOLVED, "resolved")                                                         \
    FAILPOINT_LOG(X, MAINTAIN, "maintain")                                                         \
    FAILPOINT_LOG(X, SPLIT, "split")                                                               \
    FAILPOINT_LOG(X, CONF, "conf")                                                                 \
    FAILPOINT_LOG(X, GONE, "gone")                                                                 \
    FAILPOINT_LOG(X, DAMAGED, "damaged")                                                           \
    FAILPOINT_LOG(X, FREEZE, "freeze")                                                             \
    FAILPOINT_LOG(X, MERGE, "merge")                                                               \
    FAILPOINT_LOG(X, HARD_STATE, "hard_state")                                                     \
    FAILPOINT_LOG(X, FILE, "file")                                                                 \
    FAILPOINT_LOG(X, PEER_STORE, "peer_store")

#define FAILPOINTS_OF_MSG(X)                                                                       \
    FAILPOINT_MSG(X, COMMIT1, "commit1")                                                           \
    FAILPOINT_MSG(X, COORDINATE, "coordinate")                                                     \
    FAILPOINT_MSG(X, PREPARE, "prepare")                                                           \
    FAILPOINT_MSG(X, VALIDATE, "validate")                                                         \
    FAILPOINT_MSG(X, RELEASE, "release")                                                           \
    FAILPOINT_MSG(X, STATUS, "status")                                                             \
    FAILPOINT_MSG(X, SPLIT, "split")                                                               \
    FAILPOINT_MSG(X, MERGE, "merge")                                                               \
    FAILPOINT_MSG(X, COMMIT1_ANSWER, "commit1_answer")                                             \
    FAILPOINT_MSG(X, COORDINATE_ANSWER, "coordinate_answer")                                       \
    FAILPOINT_MSG(X, VALIDATE_ANSWER, "validate_answer")                                           \
    FAILPOINT_MSG(X, STATUS_ANSWER, "status_answer")                                               \
    FAILPOINT_MSG(X, SPLIT_ANSWER, "split_answer")                                                 \
    FAILPOINT_MSG(X, MEMBERS, "members")                                                           \
    FAILPOINT_MSG(X, MEMBERS_ANSWER, "members_answer")                                             \
    FAILPOINT_MSG(X, PROBE, "probe")                                                               \
    FAILPOINT_MSG(X, GONE, "gone")                                                                 \
    FAILPOINT_MSG(X, REBUILD, "rebuild")                                                           \
    FAILPOINT_MSG(X, MERGE_ANSWER, "merge_answer")                                                 \
    FAILPOINT_MSG(X, TXN_VOTE, "txn_vote")                                                         \
    FAILPOINT_MSG(X, OUTCOME, "outcome")                                                           \
    FAILPOINT_MSG(X, OUTCOME_ACK, "outcome_ack")                                                   \
    FAILPOINT_MSG(X, TXN_QUERY, "txn_query")                                                       \
    FAILPOINT_MSG(X, WOUND, "wound")                                                               \
    FAILPOINT_MSG(X, WOUNDED, "wounded")                                                           \
    FAILPOINT_MSG(X, APPEND, "append")                                                             \
    FAILPOINT_MSG(X, APPEND_ACK, "append_ack")                                                     \
    FAILPOINT_MSG(X, VOTE, "vote")                                                                 \
    FAILPOINT_MSG(X, VOTE_ACK, "vote_ack")                                                         \
    FAILPOINT_MSG(X, TIMEOUT_NOW, "timeout_now")                                                   \
    FAILPOINT_MSG(X, HEARTBEAT, "heartbeat")                                                       \
    FAILPOINT_MSG(X, HEARTBEAT_ACK, "heartbeat_ack")                                               \
    FAILPOINT_MSG(X, SNAPSHOT, "snapshot")                                                         \
    FAILPOINT_MSG(X, SNAPSHOT_ACK, "snapshot_ack")

#define FAILPOINTS(X)                                                                              \
    FAILPOINTS_OF_LOG(X)                                                                           \
    FAILPOINTS_OF_MSG(X)                                                                           \
    X(WAL_WRITE, "wal.write", true, "a unit, before it is written")                                \
    X(WAL_SYNC, "wal.sync", true, "a unit, written and not synced")                                \
    X(WAL_DURABLE, "wal.durable", false, "a unit, synced, before anybody is told")                 \
    X(WAL_SWITCH_WRITE, "wal.switch.write", true, "the first unit of a segment, before")           \
    X(WAL_SWITCH_SYNC, "wal.switch.sync", true, "the first unit of a segment, not synced")         \
    X(WAL_SWITCH_DURABLE, "wal.switch.durable", false, "the first unit of a segment, synced")      \
    X(WAL_SPARE_ZERO, "wal.spare.zero", true, "before a file is filled with zeros")                \
    X(WAL_SPARE_HEADER, "wal.spare.header", true, "before a spare's header is written")            \
    X(WAL_SPARE_RENAME, "wal.spare.rename", true, "before a spare gets its name")                  \
    X(WAL_SPARE_NAMED, "wal.spare.named", false, "a spare has its name, not synced")               \
    X(WAL_SPARE_READY, "wal.spare.ready", false, "a spare is durable, the log does not know it")   \
    X(WAL_RECYCLE_RENAME, "wal.recycle.rename", true, "before an old segment loses its name")      \
    X(WAL_RECYCLE_RENAMED, "wal.recycle.renamed", false, "an old segment lost it, not synced")     \
    X(WAL_RESERVE, "wal.reserve", true, "before the reserve file is made")                         \
    X(WAL_CLEAN_MARK, "wal.clean_mark", true, "a clean stop, before its mark")                     \
    X(WAL_CLEAN_MARKED, "wal.clean_marked", false, "a clean stop, after its mark")                 \
    X(ENGINE_FLUSH_BEGIN, "engine.flush.begin", true, "a flush, before its transaction")           \
    X(ENGINE_FLUSH_COMMIT, "engine.flush.commit", true, "a flush, written, before COMMIT")         \
    X(ENGINE_FLUSH_COMMITTED, "engine.flush.committed", false, "a flush, committed")               \
    X(ENGINE_CHECKPOINT, "engine.checkpoint.begin", true, "before a checkpoint")                   \
    X(ENGINE_CHECKPOINTED, "engine.checkpoint.done", false, "after a checkpoint")                  \
    X(ENGINE_TRUNCATE, "engine.truncate.begin", true, "before SQLite's log is truncated")          \
    X(ENGINE_TRUNCATED, "engine.truncate.done", false, "after SQLite's log was truncated")         \
    X(ENGINE_BUILD_MARKED, "engine.build.marked", false, "a new file is marked unfinished")        \
    X(ENGINE_BUILD_COMMIT, "engine.build.commit", true, "a new file is filled, before COMMIT")     \
    X(ENGINE_BUILD_SYNC, "engine.build.sync", true, "a new file is whole, not synced")             \
    X(ENGINE_BUILD_UNMARK, "engine.build.unmark", true, "a new file is synced, still marked")      \
    X(ENGINE_BUILT, "engine.build.done", false, "a new file is complete")                          \
    X(ENGINE_SPLIT_BEGIN, "engine.split.begin", true, "before the right side is made")             \
    X(ENGINE_SPLIT_DONE, "engine.split.done", false, "the right side's file is complete")          \
    X(ENGINE_MERGE_BEGIN, "engine.merge.begin", true, "before a right side's rows are taken in")   \
    X(ENGINE_MERGE_DONE, "engine.merge.done", false, "a right side's rows are in memory")          \
    X(ENGINE_REMOVE, "engine.remove.begin", false, "before files of a range are removed")          \
    X(ENGINE_REMOVED, "engine.remove.done", false, "files of a range are removed")                 \
    X(ENGINE_ASIDE, "engine.aside.begin", false, "before a damaged file is set aside")             \
    X(ENGINE_ASIDE_DONE, "engine.aside.done", false, "a damaged file is set aside, not synced")    \
    X(SNAPSHOT_OPEN, "snapshot.open", true, "before a snapshot's content is pinned")               \
    X(SNAPSHOT_READ, "snapshot.read", true, "before a chunk is read")                              \
    X(SNAPSHOT_BEGIN, "snapshot.begin", true, "before the file of a received one is made")         \
    X(SNAPSHOT_FEED, "snapshot.feed", true, "before a chunk is stored")                            \
    X(SNAPSHOT_FED, "snapshot.fed", false, "after a chunk was stored")                             \
    X(SNAPSHOT_FINISH, "snapshot.finish", true, "before a received file is completed")             \
    X(SNAPSHOT_FINISHED, "snapshot.finished", false, "a received file is complete")

enum failpoint {

#define X(id, name, may_fail, where) FP_##id,
    FAILPOINTS(X)
#undef X
        FAILPOINT_COUNT
};

extern atomic_uint
    failpoint_active; /* private to the two below: points armed, + 1 while counting */

/* Nothing is armed: the one load a passage costs. */
#define FAILPOINT_IS_ACTIVE()                                                                      \
    (__builtin_expect(atomic_load_explicit(&failpoint_active, memory_order_relaxed) != 0, 0))

/* Passes the point. True: fail here (only where `may fail` is set). */
#define FAILPOINT(id) (FAILPOINT_IS_ACTIVE() && failpoint_pass(FP_##id))

/* For a point that can not fail. */
#define FAILPOINT_MARK(id) ((void)FAILPOINT(id))

bool failpoint_pass(enum failpoint p);

/* Arms every one of "NAME[:nth]=ACTION,...". INVALID names what is wrong, and nothing was armed. */
SPAN_CHECKED span_status failpoint_arm(const char *list, struct span_error *err);
void failpoint_clear(void); /* disarms all; counts stay */
/* Passages are counted only while something is armed or this is on. */
void failpoint_count(bool on);

/* "NAME  can: kill stall error  WHERE" lines, and "NAME passages armed" lines. */
void failpoint_list(struct buf *out);
void failpoint_report(struct buf *out);

#endif
