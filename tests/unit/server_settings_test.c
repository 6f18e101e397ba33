/* SETTINGS: what was written is read, what is not whole is refused with file and line. */
#include "base/alloc.h"
#include "base/limits.h"
#include "coordinator/server_settings.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[] = "/tmp/spanlite-settings-XXXXXX";
static char *path;
static struct server_settings got;
static struct span_error err;

static void setup(void)
{
    cr_assert_not_null(mkdtemp(dir));
    path = span_asprintf("%s/SETTINGS", dir);
}

static void teardown(void)
{
    char *temporary = span_asprintf("%s.new", path);

    (void)unlink(path);
    (void)unlink(temporary);
    (void)rmdir(temporary);
    cr_assert_eq(rmdir(dir), 0, "something else was left in %s", dir);
    span_free(temporary);
    span_free(path);
}

TestSuite(server_settings, .init = setup, .fini = teardown);

static void put(const void *text, size_t size)
{
    FILE *f = fopen(path, "w");

    cr_assert_not_null(f);
    cr_assert_eq(fwrite(text, 1, size, f), size);
    cr_assert_eq(fclose(f), 0);
}

static size_t get(char *text, size_t size)
{
    FILE *f = fopen(path, "r");
    size_t n;

    cr_assert_not_null(f);
    n = fread(text, 1, size - 1, f);
    text[n] = '\0';
    fclose(f);
    return n;
}

static void write_settings(uint64_t epsilon_ns, uint64_t lease_ns)
{
    struct server_settings set = {.epsilon_ns = epsilon_ns, .lease_ns = lease_ns};

    cr_assert_eq(server_settings_write(dir, &set, &err), SPAN_OK, "%s", err.text);
}

static void expect_refusal(size_t line, const char *part)
{
    char *place = span_asprintf("%s:%zu: ", path, line);

    cr_assert_eq(server_settings_read(dir, &got, &err), SPAN_CORRUPT);
    cr_assert_eq(strncmp(err.text, place, strlen(place)), 0, "'%s' is not about line %zu", err.text,
                 line);
    cr_assert(strstr(err.text, part) != NULL, "'%s' does not say '%s'", err.text, part);
    span_free(place);
}

Test(server_settings, come_back_as_they_were_written)
{
    static const struct server_settings sets[] = {
        {.epsilon_ns = 0, .lease_ns = 2 * LEASE_RENEW_NS},
        {.epsilon_ns = 4 * MS_NS, .lease_ns = 250 * MS_NS},
        {.epsilon_ns = EPSILON_NS_MAX, .lease_ns = LEASE_NS_MAX},
    };

    for (size_t i = 0; i < sizeof(sets) / sizeof(sets[0]); i++) {
        write_settings(sets[i].epsilon_ns, sets[i].lease_ns); /* over the one before */
        cr_assert_eq(server_settings_read(dir, &got, &err), SPAN_OK, "%s", err.text);
        cr_assert_eq(got.epsilon_ns, sets[i].epsilon_ns);
        cr_assert_eq(got.lease_ns, sets[i].lease_ns);
    }
}

Test(server_settings, that_were_never_written_are_not_found)
{
    cr_assert_eq(server_settings_read(dir, &got, &err), SPAN_NOT_FOUND);
}

Test(server_settings, without_a_checksum_are_of_an_earlier_version_and_read)
{
    static const char text[] = "truetime.epsilon=4000000ns\nraft.lease=300000000ns\n";

    put(text, strlen(text));
    cr_assert_eq(server_settings_read(dir, &got, &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(got.epsilon_ns, 4 * MS_NS);
    cr_assert_eq(got.lease_ns, 300 * MS_NS);
}

Test(server_settings, with_a_wrong_line_are_refused_by_its_number)
{
    static const struct {
        const char *text;
        size_t line;
        const char *part;
    } cases[] = {
        {"", 1, "'truetime.epsilon' is missing"},
        {"\n", 1, "'' is no setting"},
        {"truetime.epsilon=4000000ns\n", 2, "'raft.lease' is missing"},
        {"raft.lease=300000000ns\n", 2, "'truetime.epsilon' is missing"},
        {"truetime.epsilon=4000000ns\nraft.lease=300000000ns", 2, "ends in its middle"},
        {"truetime.epsilon=4000000ns\nraft.lease=3000", 2, "ends in its middle"},
        {"truetime.epsilon=4ms\n", 1, "'truetime.epsilon=4ms' is not a time in ns"},
        {"truetime.epsilon=4000000\n", 1, "is not a time in ns"},
        {"truetime.epsilon=4000000nsx\n", 1, "is not a time in ns"},
        {"truetime.epsilon=-1ns\n", 1, "is not a time in ns"},
        {"truetime.epsilon= 1ns\n", 1, "is not a time in ns"},
        {"truetime.epsilon=\n", 1, "is not a time in ns"},
        {"truetime.epsilon=99999999999999999999ns\n", 1, "is not a time in ns"},
        {"truetime.epsilon=25000001ns\n", 1, "is out of bounds"},
        {"raft.lease=1ns\n", 1, "is out of bounds"},
        {"raft.lease=1000000001ns\n", 1, "is out of bounds"},
        {"truetime.epsilon=1ns\ntruetime.epsilon=1ns\n", 2, "stands there twice"},
        {"truetime.epsilon=1ns\nraft.leese=300000000ns\n", 2, "'raft.leese=300000000ns' is no"},
        {"truetime.epsilon=1ns\n# a remark\n", 2, "is no setting of this version"},
        {"truetime.epsilon\n", 1, "is no setting of this version"},
        {"crc32c=00000000\n", 2, "'truetime.epsilon' is missing"}, /* crc32c of nothing is 0 */
        {"truetime.epsilon=1ns\ncrc32c=00000000\n", 2, "does not match"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        put(cases[i].text, strlen(cases[i].text));
        expect_refusal(cases[i].line, cases[i].part);
    }
    put("truetime.epsilon=1ns\nraft.lease=300000000ns\n\0", 45);
    cr_assert_eq(server_settings_read(dir, &got, &err), SPAN_CORRUPT);
    cr_assert(strstr(err.text, path) != NULL, "%s", err.text);
}

/* Every bit flipped in turn, every shorter length, and more behind the end: never believed with
 * other values than were written. */
Test(server_settings, that_are_damaged_are_refused)
{
    char text[512];
    size_t n;

    write_settings(4 * MS_NS, 250 * MS_NS);
    n = get(text, sizeof(text));
    for (size_t i = 0; i < n * 8; i++) {
        text[i / 8] = (char)(text[i / 8] ^ (1 << i % 8));
        put(text, n);
        cr_assert_eq(server_settings_read(dir, &got, &err), SPAN_CORRUPT, "bit %zu", i);
        cr_assert(strstr(err.text, path) != NULL, "%s", err.text);
        text[i / 8] = (char)(text[i / 8] ^ (1 << i % 8));
    }
    for (size_t size = 0; size < n; size++) {
        put(text, size);
        if (server_settings_read(dir, &got, &err) == SPAN_OK) {
            cr_assert_eq(size, n - strlen("crc32c=00000000\n"), "cut to %zu", size);
            cr_assert_eq(got.epsilon_ns, 4 * MS_NS);
            cr_assert_eq(got.lease_ns, 250 * MS_NS);
        }
    }
    memcpy(text + n, "x", 2);
    put(text, n + 1);
    cr_assert_eq(server_settings_read(dir, &got, &err), SPAN_CORRUPT);
    cr_assert(strstr(err.text, "is not the last line") != NULL, "%s", err.text);
}

/* The old file is there until the new one is whole: what cannot be finished changes nothing. */
Test(server_settings, that_cannot_be_written_leave_the_old_ones)
{
    struct server_settings set = {.epsilon_ns = MS_NS, .lease_ns = 300 * MS_NS};
    char *temporary = span_asprintf("%s.new", path);

    write_settings(4 * MS_NS, 250 * MS_NS);
    cr_assert_neq(access(temporary, F_OK), 0, "the temporary file is gone");
    cr_assert_eq(mkdir(temporary, 0700), 0); /* in the way, also of root */
    cr_assert_eq(server_settings_write(dir, &set, &err), SPAN_IO);
    cr_assert(strstr(err.text, temporary) != NULL, "%s", err.text);
    cr_assert_eq(server_settings_read(dir, &got, &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(got.epsilon_ns, 4 * MS_NS);
    cr_assert_eq(rmdir(temporary), 0);
    span_free(temporary);
    cr_assert_eq(server_settings_write("/dev/null/x", &set, &err), SPAN_IO);
    cr_assert(strstr(err.text, "/dev/null/x/SETTINGS") != NULL, "%s", err.text);
}
