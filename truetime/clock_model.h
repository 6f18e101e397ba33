/* From a raw reading to an interval that holds true time: pure arithmetic.
 *
 * A raw reading is what the machine's clocks say. The model adds the emulated error (offset and
 * drift, zero but for the source `emulated`), and puts epsilon on both sides. epsilon is the larger
 * of
 *
 *   the configured bound   what the operator promises; raised at once, lowered only when the old
 * bound has passed (rule B10), so that no `latest` given out under the old bound is still ahead
 * when the narrower one starts to be used; and the measured bound     the paper's saw-tooth: an
 * error known at the last synchronisation that grows with the drift bound since then (source
 * `system` today, time masters later).
 *
 * One owner; no clock is read here. */
#ifndef SPAN_TRUETIME_CLOCK_MODEL_H
#define SPAN_TRUETIME_CLOCK_MODEL_H

#include "truetime/truetime.h"

/* Both clocks read one after the other. */
struct clock_raw {
    uint64_t real_ns; /* since the Unix epoch */
    uint64_t mono_ns; /* CLOCK_MONOTONIC */
};

/* 64-bit fields only: clock.c publishes it word by word. A zeroed one is valid: no error, epsilon
 * 0. */
struct clock_model {
    int64_t offset_ns; /* emulated error at mono time drift_since_ns ... */
    int64_t drift_ppb; /* ... and its growth; parts per billion, |drift| <= 1e9 */
    uint64_t drift_since_ns;

    uint64_t epsilon_ns;      /* configured bound in force */
    uint64_t next_epsilon_ns; /* smaller bound that follows it ... */
    uint64_t next_after_ns;   /* ... once earliest has passed this; 0: none follows */

    uint64_t error_ns;       /* measured bound at mono time error_since_ns ... */
    uint64_t error_grow_ppb; /* ... and its growth */
    uint64_t error_since_ns;
};

/* What the node's clock shows: real time plus the emulated error. */
uint64_t clock_model_reading(const struct clock_model *m, const struct clock_raw *raw);
/* Half width of the interval at that reading. */
uint64_t clock_model_epsilon(const struct clock_model *m, const struct clock_raw *raw);
/* The interval, before earliest is kept from running backward. */
struct tt_interval clock_model_interval(const struct clock_model *m, const struct clock_raw *raw);

/* Raises the configured bound at once; lowers it when everything `latest` under the present bound
 * has passed. A call replaces what an earlier one left to come. */
void clock_model_set_epsilon(struct clock_model *m, const struct clock_raw *raw,
                             uint64_t epsilon_ns);
/* The configured bound that will be in force in the end. */
uint64_t clock_model_epsilon_wanted(const struct clock_model *m);
/* Once the old bound has passed, forgets it: a later backward step of the reading must not bring it
 * back. Once in a while; readings are right without. */
void clock_model_settle(struct clock_model *m, const struct clock_raw *raw);
/* Emulated error from now on. |drift_ppb| is cut to 1e9. */
void clock_model_set_error(struct clock_model *m, const struct clock_raw *raw, int64_t offset_ns,
                           int64_t drift_ppb);
/* Emulated error at this reading: offset and what the drift has added. */
int64_t clock_model_error(const struct clock_model *m, const struct clock_raw *raw);
/* A synchronisation: the clock was at most error_ns off at raw, growing by grow_ppb. Takes effect
 * at once in both directions: the old and the new bound both hold, this is only better knowledge.
 */
void clock_model_synced(struct clock_model *m, const struct clock_raw *raw, uint64_t error_ns,
                        uint64_t grow_ppb);

/* Keeps earliest from running backward (rule B10: once past is past): earliest becomes at least
 * `kept`, the largest earliest this node has seen. False if the whole interval lies before `kept`:
 * then the clock is or was outside its bound, and the interval becomes the point `kept`. */
bool clock_model_keep_earliest(struct tt_interval *i, struct tt_ts kept);

/* mono_ns at which tt_after(t) will hold if the bound stays as it is; now->mono_ns if it holds. For
 * arming a timer: whoever waits looks at the clock again when it fires. */
uint64_t clock_mono_when_after(const struct tt_now *now, struct tt_ts t);
/* Likewise for a true time t itself, by the middle of the interval. */
uint64_t clock_mono_of(const struct tt_now *now, struct tt_ts t);

#endif
