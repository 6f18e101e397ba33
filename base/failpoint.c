/* The failpoints' table and what is done at one; see failpoint.h. */
#include "base/failpoint.h"

#include "base/invariant.h"
#include "base/log.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define STALL_MS_MAX 60000
#define NTH_MAX      1000000
#define GET_AWAY_MS  5 /* what the transport took is on the wire by then */
#define LIST_MAX     16

enum action { ACTION_NONE, ACTION_KILL, ACTION_STALL, ACTION_ERROR };

static const struct {
    const char *name;
    bool may_fail;
    const char *where;
} table[FAILPOINT_COUNT] = {

#define X(id, name, may_fail, where) {name, may_fail, where},
    FAILPOINTS(X)
#undef X
};

static struct {
    atomic_uint passages;
    atomic_uint nth; /* passages until it acts; 0: off */
    atomic_uint action;
    atomic_uint ms;
} state[FAILPOINT_COUNT];

atomic_uint failpoint_active;
static atomic_bool counting;

static void sleep_ms(unsigned ms)
{
    struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000L};
    while (nanosleep(&ts, &ts) != 0 && errno == EINTR) {
    }
}

static bool is_after_send(enum failpoint p)
{
    size_t size = strlen(table[p].name);
    return size > 5 && strcmp(table[p].name + size - 5, ".sent") == 0;
}

static _Noreturn void die(enum failpoint p)
{
    SPAN_LOG(WARN, "killed at a failpoint", "name=%s", table[p].name);
    if (is_after_send(p)) {
        sleep_ms(GET_AWAY_MS);
    }
    (void)kill(getpid(), SIGKILL);
    for (;;) {
        (void)pause();
    }
}

bool failpoint_pass(enum failpoint p)
{
    atomic_fetch_add_explicit(&state[p].passages, 1, memory_order_relaxed);
    unsigned left = atomic_load(&state[p].nth);
    while (left != 0 && !atomic_compare_exchange_weak(&state[p].nth, &left, left - 1)) {
    }
    if (left != 1) {
        return false;
    }
    atomic_fetch_sub(&failpoint_active, 1);
    switch ((enum action)atomic_load(&state[p].action)) {
    case ACTION_NONE:
        break;
    case ACTION_KILL:
        die(p);
    case ACTION_STALL:
        SPAN_LOG(WARN, "stalls at a failpoint", "name=%s ms=%u", table[p].name,
                 atomic_load(&state[p].ms));
        sleep_ms(atomic_load(&state[p].ms));
        break;
    case ACTION_ERROR:
        SPAN_LOG(WARN, "fails at a failpoint", "name=%s", table[p].name);
        return true;
    }
    return false;
}

/* ---- arming ---- */

struct armed {
    enum failpoint point;
    unsigned nth;
    enum action action;
    unsigned ms;
};

static bool read_number(const char *text, unsigned max, unsigned *out)
{
    size_t digits = strspn(text, "0123456789");
    if (digits == 0 || digits > 9 || text[digits] != '\0') {
        return false;
    }
    *out = (unsigned)strtoul(text, NULL, 10);
    return *out >= 1 && *out <= max;
}

static span_status read_action(const char *text, struct armed *a, struct span_error *err)
{
    if (strcmp(text, "kill") == 0) {
        a->action = ACTION_KILL;
        return SPAN_OK;
    }
    if (strncmp(text, "stall ", 6) == 0 && read_number(text + 6, STALL_MS_MAX, &a->ms)) {
        a->action = ACTION_STALL;
        return SPAN_OK;
    }
    if (strcmp(text, "error") != 0) {
        return span_fail(err, SPAN_INVALID,
                         "failpoint %s: '%.40s' is not kill, 'stall MS' (1 to %d) or error",
                         table[a->point].name, text, STALL_MS_MAX);
    }
    a->action = ACTION_ERROR;
    return table[a->point].may_fail
               ? SPAN_OK
               : span_fail(err, SPAN_INVALID, "failpoint %s: nothing can fail there",
                           table[a->point].name);
}

static span_status read_one(char *text, struct armed *a, struct span_error *err)
{
    char *action = strchr(text, '=');
    if (action == NULL) {
        return span_fail(err, SPAN_INVALID, "failpoint '%.60s' is not NAME[:nth]=ACTION", text);
    }
    *action++ = '\0';
    char *nth = strchr(text, ':');
    *a = (struct armed){.nth = 1};
    if (nth != NULL) {
        *nth++ = '\0';
        if (!read_number(nth, NTH_MAX, &a->nth)) {
            return span_fail(err, SPAN_INVALID, "failpoint %.60s: '%.20s' is not 1 to %d", text,
                             nth, NTH_MAX);
        }
    }
    size_t i = 0;
    while (i < FAILPOINT_COUNT && strcmp(table[i].name, text) != 0) {
        i++;
    }
    if (i == FAILPOINT_COUNT) {
        return span_fail(err, SPAN_INVALID,
                         "there is no failpoint '%.60s': spanlite start --list-failpoints", text);
    }
    a->point = (enum failpoint)i;
    return read_action(action, a, err);
}

static void arm(const struct armed *a)
{
    if (atomic_exchange(&state[a->point].nth, 0) == 0) {
        atomic_fetch_add(&failpoint_active, 1);
    }
    atomic_store(&state[a->point].action, (unsigned)a->action);
    atomic_store(&state[a->point].ms, a->ms);
    atomic_store(&state[a->point].nth, a->nth);
}

span_status failpoint_arm(const char *list, struct span_error *err)
{
    struct armed all[LIST_MAX];
    size_t count = 0;
    for (const char *at = list; *at != '\0';) {
        char text[160];
        size_t size = strcspn(at, ",");
        if (size >= sizeof text || count == LIST_MAX) {
            return span_fail(err, SPAN_INVALID, "failpoints: too long at '%.40s', or more than %d",
                             at, LIST_MAX);
        }
        memcpy(text, at, size);
        text[size] = '\0';
        span_status st = read_one(text, &all[count], err);
        if (st != SPAN_OK) {
            return st;
        }
        count++;
        at += size + (at[size] == ',' ? 1 : 0);
    }
    if (count == 0) {
        return span_fail(err, SPAN_INVALID, "failpoints: none is named");
    }
    for (size_t i = 0; i < count; i++) {
        arm(&all[i]);
    }
    return SPAN_OK;
}

void failpoint_clear(void)
{
    for (size_t i = 0; i < FAILPOINT_COUNT; i++) {
        if (atomic_exchange(&state[i].nth, 0) != 0) {
            atomic_fetch_sub(&failpoint_active, 1);
        }
    }
}

void failpoint_count(bool on)
{
    if (atomic_exchange(&counting, on) != on) {
        if (on) {
            atomic_fetch_add(&failpoint_active, 1);
        } else {
            atomic_fetch_sub(&failpoint_active, 1);
        }
    }
}

/* ---- listing ---- */

void failpoint_list(struct buf *out)
{
    for (size_t i = 0; i < FAILPOINT_COUNT; i++) {
        buf_printf(out, "%-28s %-17s %s\n", table[i].name,
                   table[i].may_fail ? "kill,stall,error" : "kill,stall", table[i].where);
    }
}

void failpoint_report(struct buf *out)
{
    for (size_t i = 0; i < FAILPOINT_COUNT; i++) {
        buf_printf(out, "%s %u %u\n", table[i].name, atomic_load(&state[i].passages),
                   atomic_load(&state[i].nth));
    }
}
