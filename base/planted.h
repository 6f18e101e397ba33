/* Planted bugs: the controls of the simulator (tests/sim/README.md). Each is a rule of the protocol
 * that the product breaks on purpose when, and only when, `spanlite sim --plant NAME` asks for it;
 * a simulator that does not find one is not testing. One word of memory, set before anything runs
 * and only by the simulator: no flag, file, variable or message of a node reaches it. Outside the
 * simulator PLANTED costs one load that predicts well.
 *
 * Adding one is a line below and `if (PLANTED(NAME))` where the rule is kept. Columns: name, seeds
 * (counted from 1) within which it must be found, their scenario, what is broken (with the rule).
 */
#ifndef SPAN_BASE_PLANTED_H
#define SPAN_BASE_PLANTED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PLANTED_TABLE(X)                                                                           \
    X(COMMIT_WAIT_SKIPPED, 5, any, "D0: an answer leaves before tt_after of what it shows")        \
    X(LEASE_FORGOTTEN, 100, crash,                                                                 \
      "B3: after a restart a replica votes at once, whatever it promised")                         \
    X(VOTE_NOT_PERSISTED, 100, any, "the vote of a term is not in the hard state")                 \
    X(ACK_BEFORE_SYNC, 100, any, "a follower acknowledges entries that are not synced")            \
    X(FSYNC_LIES, 20, any, "a sync of the log says OK and makes nothing durable")                  \
    X(ABORT_NOT_RECORDED, 20, request,                                                             \
      "C8: a coordinator without a record says aborted, and records nothing")                      \
    X(LOCKS_TIME_OUT, 150, any, "C8: a prepared participant lets its locks go when it asks")       \
    X(SAFE_TIME_IGNORES_PREPARED, 50, any, "A4: safe time passes prepared transactions")           \
    X(READ_ABOVE_LEASE, 30, echoes, "B2: a leader without its lease goes on answering reads")      \
    X(OLD_TERM_COMMITTED, 20, figure8,                                                             \
      "Raft 5.4.2: entries of older terms are committed by counting")                              \
    X(FLOOR_MISSES_OUTCOME, 600, late, "A1: an outcome does not raise the floor")                  \
    X(FLOOR_IGNORED, 50, any, "A2: a commit timestamp is not above the chooser's floor")           \
    X(SEEN_IGNORED, 50, any, "A2: a commit timestamp is not above what the transaction saw")       \
    X(STALE_TIME, 100, any, "A3: the clock is read before the events of a turn")                   \
    X(CLOSED_AT_COMMIT, 50, any, "A4: the closed timestamp comes with the commit index")           \
    X(FLIGHT_IGNORED, 50, any, "A5: a read does not wait for records in flight below it")          \
    X(SERVES_TOO_EARLY, 50, any, "B6: a leader serves before an entry of its own term is applied") \
    X(PROMISE_OF_NO_TERM, 20, pause, "B1: a promise is a node's, whatever the range's term")       \
    X(LEASE_OF_OLD_MEMBERS, 20, grow,                                                              \
      "B4: a lease rests on the members that its leader was elected by")                           \
    X(MEMBERS_TOO_EARLY, 20, erratum,                                                              \
      "B4, Raft: members are changed without a committed entry of the own term")                   \
    X(STANDS_INSIDE_PROMISE, 20, any, "B2: a candidate stands while its own promise runs")         \
    X(READERS_TAKE_NO_PART, 100, move,                                                             \
      "C1: a range that was only read takes no part in the commit")                                \
    X(SPLIT_WAITS_FOR_NOBODY, 150, move,                                                           \
      "C2: a range splits with transactions prepared, and acknowledges for both halves")           \
    X(DECISION_DROPPED, 60, late,                                                                  \
      "C3: a decision is dropped when all have it, and then was an abort")                         \
    X(PREPARED_IS_WOUNDED, 30, any, "wound-wait takes the locks of a prepared transaction")        \
    X(WOUND_STAYS_HERE, 20, wound,                                                                 \
      "C4: the coordinator of a prepared transaction is not told that it is wounded")              \
    X(READ_LOCKS_NOT_RECORDED, 20, reader, "C10: a prepare record holds no read locks")            \
    X(SNAPSHOT_DROPS_PREPARED, 150, crash, "H7: a snapshot leaves prepared transactions out")      \
    X(APPLIED_TWICE, 30, crash, "after a restart the last applied entry is applied again")         \
    X(HARD_STATE_RECYCLED, 40, disk,                                                               \
      "H3: a new segment repeats the ranges' terms, but not their votes")                          \
    X(FAILED_SYNC_RETRIED, 150, disk, "H4: a failed sync of the log is tried again in place")      \
    X(ERROR_NOT_GATED, 20, answers, "D0: an error leaves before tt_after of what it shows")        \
    X(STATUS_EARLY, 20, answers,                                                                   \
      "D0: a transaction's status leaves before tt_after of its commit")                           \
    X(UPDATE_LOOKS_NOTHING_UP, 20, unique,                                                         \
      "G1: an UPDATE does not look up the unique keys it takes")                                   \
    X(VERSIONS_FREED_EARLY, 20, any,                                                               \
      "H6: versions leave memory before the reader sees them in the file")                         \
    X(WIPED_STORE_VOTES, 40, damage,                                                               \
      "F2: a store that lost its disk starts anew under its old id")                               \
    X(PEER_CLOCKS_IGNORED, 20, clock, "B8: what peers' intervals say of a clock is not heard")     \
    X(FENCED_CLOCK_SERVES, 100, clock, "B9: a node whose clock is fenced leads and answers")       \
    X(LOG_NOT_RELEASED, 50, any, "what a flush has made durable is not let go of in the log")      \
    X(TOMBSTONE_NOT_SEEN, 30, any, "D0: what a read did not return does not count as seen")        \
    X(REBUILD_FORGETS, 100, rot, "F2: a rebuilt replica forgets entries that it acknowledged")     \
    X(DAMAGE_SENT_ON, 150, rot, "a damaged replica sends its rows on as if they were sound")       \
    X(MERGE_WAITS_FOR_NOBODY, 30, merge, "F3, C2: ranges merge with transactions in flight")       \
    X(FROZEN_TIMES_OUT, 200, merge,                                                                \
      "F3: the frozen side of a merge goes on by itself when it is not heard of")

enum planted_bug {

#define PLANTED_ENUM(name, seeds, scenario, text) PLANTED_##name,
    PLANTED_TABLE(PLANTED_ENUM)
#undef PLANTED_ENUM
        PLANTED_COUNT
};

extern uint64_t planted_bits; /* by enum planted_bug; written before any thread starts */

#define PLANTED(name) (__builtin_expect((planted_bits & (1ULL << PLANTED_##name)) != 0, 0))

struct planted_info {
    const char *name; /* as in the table; --plant takes it in lower case with dashes */
    unsigned seeds;
    const char *scenario;
    const char *text;
};

/* NULL from PLANTED_COUNT on. */
const struct planted_info *planted_get(size_t i);
/* NULL: no such name. Only for the simulator, before it runs. */
const struct planted_info *planted_set(const char *name);

#endif
