/* Requests to /debug/faults: read whole, or refused with the name of what is wrong. */
#include "coordinator/server_faults.h"

#include <criterion/criterion.h>
#include <string.h>

static struct fault_request f;
static struct span_error err;

Test(server_faults, are_read_with_their_values)
{
    cr_assert_eq(fault_request_parse("peer=2&out.cut=1&in.drop=0.25&in.jitter_ms=1e2&"
                                     "clock.offset_ms=-3.5&disk.fail_syncs=-1&disk.no_space=0",
                                     &f, &err),
                 SPAN_OK, "%s", err.text);
    cr_assert_eq(f.value[FAULT_PEER], 2);
    cr_assert_eq(f.value[FAULT_OUT], 1);
    cr_assert_eq(f.value[FAULT_IN + 1], 0.25);
    cr_assert_eq(f.value[FAULT_IN + 5], 100);
    cr_assert_eq(f.value[FAULT_CLOCK_OFFSET_MS], -3.5);
    cr_assert_eq(f.value[FAULT_FAIL_SYNCS], -1);
    cr_assert(f.given[FAULT_NO_SPACE]);
    cr_assert(!f.given[FAULT_CLEAR] && !f.given[FAULT_IN] && !f.given[FAULT_SYNC_DELAY_MS]);
}

Test(server_faults, may_be_cleared_and_encoded)
{
    cr_assert_eq(fault_request_parse("clear=1", &f, &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(fault_request_parse("clear=1&peer=3&disk.sync_delay_ms=0", &f, &err), SPAN_OK);
    cr_assert_eq(fault_request_parse("clock.offset_ms=%2d4", &f, &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(f.value[FAULT_CLOCK_OFFSET_MS], -4);
}

Test(server_faults, are_refused_by_the_name_of_what_is_wrong)
{
    static const char *const cases[][2] = {
        {"", "nothing to set"},
        {"&", "nothing to set"},
        {"peer=2", "peer belongs to"},
        {"peer=2&disk.no_space=1", "peer belongs to"},
        {"peer=2&clear=1&out.drop=1", "not together with out.drop"},
        {"clear=0", "clear: '0' is out of bounds"},
        {"out.dorp=1", "'out.dorp' is no fault"},
        {"disk.no_space=1&disk.what=1", "'disk.what' is no fault"},
        {"Peer=1&clear=1", "'Peer' is no fault"},
        {"=1", "'' is no fault"},
        {"clear", "'clear' is not name=value"},
        {"peer=65&clear=1", "peer: '65' is out of bounds, 0 to 64"},
        {"peer=-1&clear=1", "peer: '-1' is out of bounds"},
        {"peer=1.5&clear=1", "peer: '1.5' is not a whole number"},
        {"out.drop=1.01", "out.drop: '1.01' is out of bounds"},
        {"out.drop=-0.1", "out.drop: '-0.1' is out of bounds"},
        {"in.cut=2", "in.cut: '2' is out of bounds"},
        {"in.cut=0.5", "in.cut: '0.5' is not a whole number"},
        {"in.cut=yes", "in.cut: 'yes' is not a number"},
        {"in.delay_ms=", "in.delay_ms: '' is not a number"},
        {"in.delay_ms=5ms", "in.delay_ms: '5ms' is not a number"},
        {"in.delay_ms=nan", "in.delay_ms: 'nan' is not a number"},
        {"in.delay_ms=inf", "in.delay_ms: 'inf' is not a number"},
        {"in.delay_ms=0x10", "in.delay_ms: '0x10' is not a number"},
        {"in.delay_ms=%201", "in.delay_ms: ' 1' is not a number"},
        {"in.delay_ms=1e999", "in.delay_ms: '1e999' is not a number"},
        {"out.jitter_ms=60001", "out.jitter_ms: '60001' is out of bounds"},
        {"clock.offset_ms=1e15", "clock.offset_ms: '1e15' is out of bounds"},
        {"clock.drift_ppm=-100001", "clock.drift_ppm: '-100001' is out of bounds"},
        {"disk.sync_delay_ms=-1", "disk.sync_delay_ms: '-1' is out of bounds"},
        {"disk.fail_syncs=-2", "disk.fail_syncs: '-2' is out of bounds"},
        {"disk.no_space=1&disk.no_space=0", "disk.no_space is given twice"},
        {"in.drop=0.000000000000000000000000000000000000000000000000000000000000000000000000001",
         "in.drop: '' is not a number"},
        {"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
         "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx=1",
         "is too long"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        cr_assert_eq(fault_request_parse(cases[i][0], &f, &err), SPAN_INVALID, "%s", cases[i][0]);
        cr_assert(strstr(err.text, cases[i][1]) != NULL, "'%s': '%s' does not say '%s'",
                  cases[i][0], err.text, cases[i][1]);
    }
}
