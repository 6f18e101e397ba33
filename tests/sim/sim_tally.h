/* What happened in a run, counted: a fault that is never drawn tests nothing, and neither does one
 * that is drawn and has no effect. Kept by the cluster for the parts of a run; `spanlite sim` adds
 * the seeds up, tests/sim/soak the processes, and tests/sim/seeds.test demands of 300 seeds what
 * the table says. Counting draws nothing: it changes no history. */
#ifndef SPAN_TESTS_SIM_SIM_TALLY_H
#define SPAN_TESTS_SIM_SIM_TALLY_H

#include <stddef.h>
#include <stdint.h>

/* X(name, how often 300 seeds have to show it, what it is) */
#define SIM_TALLY_TABLE(X)                                                                         \
    X(KILLS, 200, "processes killed")                                                              \
    X(POWER_LOSSES, 200, "machines that lost power")                                               \
    X(LOST_SECTORS, 150, "sectors written, not synced, lost with the power")                       \
    X(LOST_DIR_OPS, 20, "directory operations lost with the power")                                \
    X(CRASHES_OF_ALL, 25, "all nodes at once")                                                     \
    X(LOG_WRITES_CUT, 150, "crashes in the middle of a write of the log")                          \
    X(FLUSHES_CUT, 15, "crashes in the middle of a flush")                                         \
    X(DEATHS_ALLOC, 25, "processes that ran out of memory in the middle of a turn")                \
    X(DEATHS_LOG, 25, "deaths at an operation on the log")                                         \
    X(DEATHS_FILES, 30, "deaths at an operation on a range file")                                  \
    X(DEATHS_AT_START, 20, "deaths while a node started")                                          \
    X(TORN_LOGS, 1, "logs torn by a power loss: some of the sectors of a write survived")          \
    X(TORN_FILES, 8, "range files torn by a power loss")                                           \
    X(LOG_SEGMENTS, 1500, "segments of a log begun")                                               \
    X(SNAPSHOTS, 100, "snapshots installed")                                                       \
    X(RESTARTS, 400, "nodes started again")                                                        \
    X(PAUSES, 250, "nodes stopped and continued")                                                  \
    X(CUTS_WHOLE, 60, "nodes cut off in both directions")                                          \
    X(CUTS_OUT, 60, "one-way cuts: what the node sends is lost")                                   \
    X(CUTS_IN, 60, "one-way cuts: what it is sent is lost")                                        \
    X(CUTS_PARTIAL, 60, "nodes cut off from some others")                                          \
    X(FRAMES_CUT, 8000, "frames lost in a cut")                                                    \
    X(FRAMES_LOST, 800, "frames lost on the way")                                                  \
    X(FRAMES_SLOW, 4000, "frames very late")                                                       \
    X(FRAMES_DOUBLED, 25000, "frames delivered twice")                                             \
    X(FRAMES_REORDERED, 50000, "frames that overtook another one")                                 \
    X(STALLS, 60, "disks that stall")                                                              \
    X(SYNCS_SLOW, 60, "single syncs that stall")                                                   \
    X(LOG_SYNCS_FAILED, 40, "syncs of a log that failed")                                          \
    X(FILE_SYNCS_FAILED, 40, "syncs of a range file that failed")                                  \
    X(DISKS_FULL, 60, "disks that fill up")                                                        \
    X(NO_SPACE, 100, "writes that found no room")                                                  \
    X(FLIPS, 4, "bits flipped in a log")                                                           \
    X(FLIPS_NOTICED, 2, "nodes that refused a damaged log")                                        \
    X(ROWS_FLIPPED, 0, "bits flipped in rows of range files")                                      \
    X(STOPPED_BY_ITSELF, 12, "nodes whose log died")                                               \
    X(FLUSHES_WANTED, 200, "flushes out of turn")                                                  \
    X(CLOCK_STEPS, 6, "clocks set wrongly")                                                        \
    X(CLOCK_RUNS, 6, "clocks that run away")                                                       \
    X(CLOCK_WRONG_STARTS, 6, "nodes started with a wrong clock")                                   \
    X(CLOCK_OUT, 1000, "readings beyond the bound that nobody had noticed yet")                    \
    X(CLOCK_FENCED, 15, "clocks fenced")                                                           \
    X(CLOCK_BACK, 8, "clocks no longer fenced")                                                    \
    X(SPLITS, 600, "ranges split")                                                                 \
    X(MERGES, 100, "ranges merged")                                                                \
    X(TRANSFERS, 200, "leases handed over on request")                                             \
    X(MOVES, 80, "members changed")                                                                \
    X(COMMITTED, 25000, "transactions that wrote and were committed")                              \
    X(TXN_TRANSFER, 12000, "transfers between two accounts, some under a third one's lock")        \
    X(TXN_BLIND, 1200, "journal rows written blindly")                                             \
    X(TXN_REGISTER, 7000, "registers written or deleted without being read")                       \
    X(TXN_STRONG_SCAN, 8000, "reads of all accounts, now")                                         \
    X(TXN_PAST_SCAN, 1200, "reads of all accounts at a past time, at any replica")                 \
    X(TXN_STALE_SCAN, 1000, "reads of all accounts of bounded staleness, at any replica")          \
    X(TXN_LOCKED_SCAN, 1300, "read-write transactions that read all accounts under locks")         \
    X(TXN_LONG, 40, "transactions that took up to seconds")                                        \
    X(TXN_LIST_READ, 700, "reads of all lists, now or in the past")                                \
    X(APPENDS, 2000, "requests that appended to lists")                                            \
    X(TRIED_AGAIN, 100, "requests tried again")                                                    \
    X(DONE_BEFORE, 5, "requests that a try before had done, unheard")                              \
    X(RETRIED, 5000, "transactions that had to be retried")                                        \
    X(UNKNOWN, 120, "outcomes that the client never heard")                                        \
    X(DIGESTS, 15000, "pairs of replicas compared")

enum sim_tally {

#define SIM_TALLY_ENUM(name, least, text) TALLY_##name,
    SIM_TALLY_TABLE(SIM_TALLY_ENUM)
#undef SIM_TALLY_ENUM
        TALLY_COUNT
};

struct sim_tally_info {
    const char *name;
    uint64_t least; /* in 300 seeds */
    const char *text;
};

/* i < TALLY_COUNT */
const struct sim_tally_info *sim_tally_get(size_t i);

#endif
