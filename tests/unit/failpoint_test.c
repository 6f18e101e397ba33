/* Failpoints: what is armed acts once, at the passage named, and nothing else does. */
#include "base/failpoint.h"

#include <criterion/criterion.h>
#include <signal.h>
#include <string.h>

static span_status arm(const char *list, struct span_error *err)
{
    *err = (struct span_error){0};
    return failpoint_arm(list, err);
}

Test(failpoint, is_one_load_and_never_fails_when_off)
{
    cr_assert(!FAILPOINT_IS_ACTIVE());
    cr_assert(!FAILPOINT(WAL_SYNC));
    struct buf b = {0};
    failpoint_report(&b);
    cr_assert(strstr(buf_cstr(&b), "wal.sync 0 0\n") != NULL); /* not even counted */
    buf_deinit(&b);
}

Test(failpoint, fails_once_at_the_nth_passage)
{
    struct span_error err;
    cr_assert_eq(arm("wal.sync:3=error", &err), SPAN_OK, "%s", err.text);
    cr_assert(!FAILPOINT(WAL_SYNC));
    cr_assert(!FAILPOINT(WAL_WRITE)); /* another one */
    cr_assert(!FAILPOINT(WAL_SYNC));
    cr_assert(FAILPOINT(WAL_SYNC));
    cr_assert(!FAILPOINT(WAL_SYNC));
    cr_assert(!FAILPOINT_IS_ACTIVE());
}

Test(failpoint, armed_twice_is_armed_once)
{
    struct span_error err;
    cr_assert_eq(arm("wal.sync:9=error,wal.write=error", &err), SPAN_OK);
    cr_assert_eq(arm("wal.sync=error", &err), SPAN_OK);
    cr_assert(FAILPOINT(WAL_SYNC));
    cr_assert(FAILPOINT(WAL_WRITE));
    cr_assert(!FAILPOINT_IS_ACTIVE());
    cr_assert_eq(arm("wal.sync=error", &err), SPAN_OK);
    failpoint_clear();
    cr_assert(!FAILPOINT(WAL_SYNC));
    failpoint_count(true);
    failpoint_count(true);
    cr_assert(FAILPOINT_IS_ACTIVE());
    failpoint_count(false);
    cr_assert(!FAILPOINT_IS_ACTIVE());
}

Test(failpoint, kills_the_process, .signal = SIGKILL)
{
    struct span_error err;
    cr_assert_eq(arm("log.prepare.durable:2=kill", &err), SPAN_OK);
    FAILPOINT_MARK(LOG_PREPARE_DURABLE);
    FAILPOINT_MARK(LOG_PREPARE_DURABLE);
    cr_assert_fail("it goes on");
}

Test(failpoint, refuses_a_bad_list_whole)
{
    static const struct {
        const char *list;
        const char *says;
    } bad[] = {
        {"", "none is named"},
        {"wal.sync", "not NAME"},
        {"wal.sync=", "not kill"},
        {"wal.sync=die", "not kill"},
        {"wal.sync=stall", "not kill"},
        {"wal.sync=stall 0", "not kill"},
        {"wal.sync=stall 99999999999", "not kill"},
        {"wal.sync:0=kill", "1 to"},
        {"wal.sync:x=kill", "1 to"},
        {"wal.nothing=kill", "no failpoint"},
        {"wal.durable=error", "nothing can fail"},
        {"wal.write=error,nobody=kill", "no failpoint"},
    };

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct span_error err;
        cr_expect_eq(arm(bad[i].list, &err), SPAN_INVALID, "%s", bad[i].list);
        cr_expect(strstr(err.text, bad[i].says) != NULL, "'%s': %s", bad[i].list, err.text);
    }
    cr_assert(!FAILPOINT_IS_ACTIVE());
}

Test(failpoint, names_are_unique_and_listed)
{
    struct buf b = {0};
    failpoint_list(&b);
    size_t lines = 0;
    for (const char *at = buf_cstr(&b); *at != '\0'; at = strchr(at, '\n') + 1) {
        char name[64];
        size_t size = strcspn(at, " ");
        cr_assert_lt(size, sizeof name - 2);
        name[0] = '\n';
        memcpy(name + 1, at, size);
        name[size + 1] = ' ';
        name[size + 2] = '\0';
        cr_expect(strstr(at, name) == NULL, "%s is there twice", name);
        lines++;
    }
    cr_assert_eq(lines, FAILPOINT_COUNT);
    buf_deinit(&b);
}
