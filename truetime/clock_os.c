/* The only reader of the system's clocks. All three are read through the vDSO (about 20 ns each on
 * the tsc clock source); adjtimex is a system call of about 1 us and is only made by clock_refresh.
 */
#include "base/invariant.h"
#include "base/limits.h"
#include "truetime/clock.h"

#include <sys/timex.h>
#include <time.h>

#define SAMPLE_TRIES   8
#define SAMPLE_GOOD_NS 500 /* a sample taken within this is as good as they come */

static uint64_t read_clock(clockid_t id)
{
    struct timespec t = {0};

    INVARIANT(clock_gettime(id, &t) == 0);
    return (uint64_t)t.tv_sec * SEC_NS + (uint64_t)t.tv_nsec;
}

static void os_read(void *ctx, struct clock_raw *out)
{
    (void)ctx;
    out->real_ns = read_clock(CLOCK_REALTIME);
    out->mono_ns = read_clock(CLOCK_MONOTONIC);
}

/* Reads the three clocks between two readings of one of them, so that the time in between, in which
 * the thread may have been stopped, is known; the best of a few tries. */
static void os_sample(void *ctx, struct clock_sample *out)
{
    (void)ctx;
    out->uncertainty_ns = UINT64_MAX;
    for (int i = 0; i < SAMPLE_TRIES && out->uncertainty_ns > SAMPLE_GOOD_NS; i++) {
        const uint64_t before = read_clock(CLOCK_MONOTONIC);
        const uint64_t real = read_clock(CLOCK_REALTIME);
        const uint64_t boot = read_clock(CLOCK_BOOTTIME);
        const uint64_t after = read_clock(CLOCK_MONOTONIC);

        if (after - before < out->uncertainty_ns) {
            out->real_ns = real;
            out->boot_ns = boot;
            out->mono_ns = before + (after - before) / 2;
            out->uncertainty_ns = after - before;
        }
    }
}

static void os_kernel_error(void *ctx, uint64_t *error_ns, bool *unsynced)
{
    struct timex t = {0};
    const int rc = adjtimex(&t);

    (void)ctx;
    if (rc < 0) {
        *error_ns = UINT64_MAX; /* forbidden by a sandbox: nothing is known */
        *unsynced = true;
        return;
    }
    *error_ns = t.maxerror > 0 ? (uint64_t)t.maxerror * 1000 : 0;
    *unsynced = rc == TIME_ERROR || (t.status & STA_UNSYNC) != 0;
}

const struct clock_os *clock_os(void)
{
    static const struct clock_os real = {os_read, os_sample, os_kernel_error, NULL};

    return &real;
}

uint64_t clock_os_mono_ns(void)
{
    return read_clock(CLOCK_MONOTONIC);
}
