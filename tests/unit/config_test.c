/* coordinator/config: notation of values, precedence of the sources, and that every complaint says
 * where the value stood. */
#include "base/limits.h"
#include "coordinator/config.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const struct config_option options[] = {
    {.name = "id", .kind = CONFIG_COUNT, .arg = "N", .min = 1, .max = 64, .help = "number"},
    {.name = "data-dir", .letter = 'd', .kind = CONFIG_TEXT, .arg = "DIR", .help = "folder"},
    {.name = "lease",
     .kind = CONFIG_DURATION,
     .arg = "TIME",
     .preset = "250ms",
     .min = 100 * (int64_t)MS_NS,
     .max = (int64_t)SEC_NS,
     .help = "lease"},
    {.name = "cache", .kind = CONFIG_SIZE, .arg = "SIZE", .preset = "64MiB", .help = "cache"},
    {.name = "offset", .kind = CONFIG_OFFSET, .arg = "TIME", .preset = "0", .help = "offset"},
    {.name = "drift", .kind = CONFIG_DRIFT, .arg = "RATE", .preset = "0", .help = "drift"},
    {.name = "clock",
     .kind = CONFIG_CHOICE,
     .choices = "emulated|system",
     .preset = "emulated",
     .help = "clock"},
    {.name = "faults", .letter = 'f', .kind = CONFIG_BOOL, .help = "faults"},
    {.name = "json", .kind = CONFIG_BOOL, .where = CONFIG_FLAG_ONLY, .help = "json"},
};
#define OPTION_COUNT (sizeof(options) / sizeof(options[0]))

static struct config *c;
static struct span_error err;

static void setup(void)
{
    c = config_new(options, OPTION_COUNT);
    err = (struct span_error){0};
}

static void teardown(void)
{
    config_free(c);
}

TestSuite(config, .init = setup, .fini = teardown);

/* Parses words given as one string with single spaces. */
static span_status parse(const char *words, size_t args_max)
{
    static char text[1024]; /* arguments are borrowed by the config */
    static char verb[] = "verb";
    char *argv[32] = {verb};
    int argc = 1;

    snprintf(text, sizeof(text), "%s", words);
    for (char *w = strtok(text, " "); w != NULL; w = strtok(NULL, " ")) {
        argv[argc++] = w;
    }
    return config_parse_args(c, argc, argv, args_max, &err);
}

static void expect_error(span_status st, const char *part)
{
    cr_assert_eq(st, SPAN_INVALID, "status %s, %s", span_status_name(st), err.text);
    cr_assert(strstr(err.text, part) != NULL, "'%s' does not say '%s'", err.text, part);
}

Test(config, durations_are_exact_and_need_a_unit)
{
    static const struct {
        const char *text;
        int64_t ns;
    } good[] = {
        {"4ms", 4000000},        {"1.5s", 1500000000},  {"0.1s", 100000000},
        {"0.000000001s", 1},     {"250us", 250000},     {"7ns", 7},
        {"2h", 7200000000000LL}, {"1m", 60000000000LL}, {"0", 0},
        {"-4ms", -4000000},      {"+4ms", 4000000},     {"9223372036s", 9223372036000000000LL}};

    static const char *const bad[] = {"4",     "",     "ms",  "4 ms",  "4mss",
                                      "0x4ms", "4.ms", ".5s", "--4ms", "1e3s"};
    int64_t ns = -1;

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        cr_assert_eq(config_read_duration(good[i].text, &ns), SPAN_OK, "%s", good[i].text);
        cr_assert_eq(ns, good[i].ns, "%s gave %lld", good[i].text, (long long)ns);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        cr_assert_eq(config_read_duration(bad[i], &ns), SPAN_INVALID, "%s", bad[i]);
    }
    cr_assert_eq(config_read_duration("9223372037s", &ns), SPAN_TOO_LARGE);
    cr_assert_eq(config_read_duration("99999999999999999999999ns", &ns), SPAN_TOO_LARGE);
}

Test(config, sizes_take_binary_and_decimal_units)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"4096", 4096},
                {"64KiB", 65536},
                {"64MiB", 64 * MIB},
                {"1.5GiB", 1536 * MIB},
                {"1MB", 1000000},
                {"512B", 512},
                {"0", 0}};

    uint64_t bytes = 0;

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        cr_assert_eq(config_read_size(good[i].text, &bytes), SPAN_OK, "%s", good[i].text);
        cr_assert_eq(bytes, good[i].bytes, "%s", good[i].text);
    }
    cr_assert_eq(config_read_size("-1", &bytes), SPAN_INVALID);
    cr_assert_eq(config_read_size("64mib", &bytes), SPAN_INVALID);
    cr_assert_eq(config_read_size("99999999TiB", &bytes), SPAN_TOO_LARGE);
}

Test(config, flags_come_in_every_usual_form)
{
    cr_assert_eq(parse("--id=3 --data-dir /x --lease 300ms -f --offset -2ms --drift -0.5ppm "
                       "--clock system --cache 1GiB",
                       0),
                 SPAN_OK, "%s", err.text);
    cr_assert_eq(config_uint(c, "id"), 3);
    cr_assert_str_eq(config_text(c, "data-dir"), "/x");
    cr_assert_eq(config_uint(c, "lease"), 300 * MS_NS);
    cr_assert(config_bool(c, "faults"));
    cr_assert_eq(config_int(c, "offset"), -2 * (int64_t)MS_NS);
    cr_assert_eq(config_int(c, "drift"), -500);
    cr_assert_str_eq(config_text(c, "clock"), "system");
    cr_assert_eq(config_uint(c, "cache"), 1024 * MIB);
    cr_assert_eq(parse("-d/y --no-faults --id 4 --id 5", 0), SPAN_OK);
    cr_assert_str_eq(config_text(c, "data-dir"), "/y");
    cr_assert(!config_bool(c, "faults"));
    cr_assert_eq(config_uint(c, "id"), 5);
}

Test(config, arguments_may_stand_between_flags_and_after_two_dashes)
{
    cr_assert_eq(parse("split --id 1 t -- --id -9", 4), SPAN_OK, "%s", err.text);
    cr_assert_eq(config_arg_count(c), 4);
    cr_assert_str_eq(config_arg(c, 0), "split");
    cr_assert_str_eq(config_arg(c, 3), "-9");
    cr_assert_null(config_arg(c, 4));
    expect_error(parse("a b c", 2), "unexpected argument 'c'");
}

Test(config, a_wrong_flag_is_named_with_the_nearest_right_one)
{
    expect_error(parse("--leese 1s", 0), "did you mean '--lease'");
    expect_error(parse("--dta-dir x", 0), "did you mean '--data-dir'");
    expect_error(parse("--zzzzzz", 0), "unknown flag '--zzzzzz'");
    expect_error(parse("-q", 0), "unknown flag '-q'");
    expect_error(parse("-fx", 0), "unknown flag '-fx'");
    expect_error(parse("--no-lease", 0), "unknown flag '--no-lease'");
    expect_error(parse("--lease", 0), "--lease needs a value");
    expect_error(parse("-d", 0), "-d needs a value");
    expect_error(parse("--lease 5", 0), "--lease: '5' is not a time");
    expect_error(parse("--lease 2s", 0), "100ms to 1s are allowed");
    expect_error(parse("--lease -1s", 0), "is not a time");
    expect_error(parse("--id 0", 0), "1 to 64 are allowed");
    expect_error(parse("--id 99999999999999999999", 0), "too large");
    expect_error(parse("--id 1.5", 0), "not a whole number");
    expect_error(parse("--clock fast", 0), "not one of emulated|system");
    expect_error(parse("--clock emul", 0), "not one of emulated|system");
    expect_error(parse("--clock=", 0), "not one of emulated|system");
    expect_error(parse("--data-dir=", 0), "not a text that is not empty");
    expect_error(parse("--faults=maybe", 0), "not on or off");
}

Test(config, help_wins_over_what_follows_it)
{
    cr_assert_eq(parse("--help --nonsense", 0), SPAN_OK);
    cr_assert(config_help_wanted(c));
}

Test(config, flag_beats_variable_beats_file_beats_default_in_any_order)
{
    char id[] = "SPANLITE_ID=2";
    char dir[] = "SPANLITE_DATA_DIR=/env";
    char other[] = "SPANLITE_URL=postgresql://x";
    char empty[] = "SPANLITE_LEASE=";
    char json[] = "SPANLITE_JSON=on";
    char *envp[] = {id, dir, other, empty, json, NULL};

    cr_assert_eq(config_uint(c, "lease"), 250 * MS_NS);
    cr_assert_str_eq(config_origin(c, "lease"), "default");
    cr_assert_eq(parse("--id 1", 0), SPAN_OK);
    cr_assert_eq(config_parse_env(c, envp, &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(
        config_parse_text(c, "f", slice_str("id = 3\ndata_dir = /file\nlease=400ms\n"), &err),
        SPAN_OK, "%s", err.text);
    cr_assert_eq(config_uint(c, "id"), 1);
    cr_assert_str_eq(config_origin(c, "id"), "--id");
    cr_assert_str_eq(config_text(c, "data-dir"), "/env");
    cr_assert_str_eq(config_origin(c, "data-dir"), "SPANLITE_DATA_DIR");
    cr_assert_eq(config_uint(c, "lease"), 400 * MS_NS);
    cr_assert_str_eq(config_origin(c, "lease"), "f:3 (lease)");
    cr_assert(!config_bool(c, "json"), "a flag-only option has no variable");
    cr_assert(!config_is_set(c, "cache"));
}

Test(config, a_bad_variable_is_named)
{
    char id[] = "SPANLITE_ID=two";
    char *envp[] = {id, NULL};

    expect_error(config_parse_env(c, envp, &err), "SPANLITE_ID: 'two' is not a whole number");
}

Test(config, a_file_has_comments_quotes_and_line_numbers)
{
    cr_assert_eq(config_parse_text(c, "f",
                                   slice_str("# comment\n\n; more\n  data-dir = \"/a b # c\"  \r\n"
                                             "faults = yes\ncache=1MiB"),
                                   &err),
                 SPAN_OK, "%s", err.text);
    cr_assert_str_eq(config_text(c, "data-dir"), "/a b # c");
    cr_assert(config_bool(c, "faults"));
    cr_assert_eq(config_uint(c, "cache"), MIB);
}

Test(config, a_bad_line_is_refused_with_file_and_line)
{
    expect_error(config_parse_text(c, "f", slice_str("id = 1\n\nleese = 1s\n"), &err),
                 "f:3: unknown key 'leese': did you mean 'lease'?");
    expect_error(config_parse_text(c, "g", slice_str("just words\n"), &err),
                 "g:1: 'just words' is not 'key = value'");
    expect_error(config_parse_text(c, "g", slice_str("lease = 9\n"), &err),
                 "g:1 (lease): '9' is not a time");
    expect_error(config_parse_text(c, "g", slice_str("json = on\n"), &err),
                 "g:1: unknown key 'json'");
    expect_error(config_parse_text(c, "h", slice_str("cache = 1MiB\ncache = 2MiB\n"), &err),
                 "h:2: 'cache' was set at h:1");
    expect_error(config_parse_text(c, "b", slice_of("id\0=1", 5), &err), "zero byte at offset 2");
    expect_error(config_parse_text(c, "b", slice_str("=1\n"), &err), "unknown key ''");
}

Test(config, a_file_that_cannot_be_read_is_named)
{
    cr_assert_eq(config_parse_file(c, "/nonexistent/spanlite.conf", &err), SPAN_IO);
    cr_assert(strstr(err.text, "/nonexistent/spanlite.conf") != NULL);
    cr_assert_eq(config_parse_file(c, "/", &err), SPAN_IO);
    cr_assert_eq(config_parse_file(c, "/dev/zero", &err), SPAN_TOO_LARGE);
}

Test(config, a_file_is_read_whole)
{
    char path[] = "/tmp/spanlite-config-XXXXXX";
    int fd = mkstemp(path);
    FILE *f = fdopen(fd, "w");

    for (int i = 0; i < 20000; i++) {
        fputs("# filler\n", f);
    }
    fputs("id = 7", f);
    fclose(f);
    cr_assert_eq(config_parse_file(c, path, &err), SPAN_OK, "%s", err.text);
    unlink(path);
    cr_assert_eq(config_uint(c, "id"), 7);
}

Test(config, nearest_name_is_near_or_nothing)
{
    static const char *const names[] = {"start", "sql", "status", "workload"};

    cr_assert_str_eq(config_nearest("strat", names, 4), "start");
    cr_assert_str_eq(config_nearest("stat", names, 4), "start");
    cr_assert_str_eq(config_nearest("wrokload", names, 4), "workload");
    cr_assert_str_eq(config_nearest("work", names, 4), "workload");
    cr_assert_null(config_nearest("banana", names, 4));
    cr_assert_null(config_nearest("", names, 4));
}

Test(config, help_lists_every_option_within_80_columns)
{
    struct buf out = {0};
    const char *line;

    config_help_options(options, OPTION_COUNT, &out);
    line = buf_cstr(&out);
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        cr_assert(strstr(line, options[i].name) != NULL, "%s", options[i].name);
    }
    cr_assert(strstr(line, "(default 250ms)") != NULL);
    for (; *line != '\0'; line += strcspn(line, "\n") + 1) {
        cr_assert_leq(strcspn(line, "\n"), 79, "%s", line);
    }
    buf_deinit(&out);
}

/* Any bytes are either taken or refused, and the config stays usable. */
Test(config, random_text_never_breaks_it)
{
    static const char alphabet[] = "id=lease cache\n#;\"0123459msKiB-_.\t";
    unsigned seed = 20240601;

    for (int round = 0; round < 3000; round++) {
        char text[64];
        size_t n = (size_t)(rand_r(&seed) % (int)sizeof(text));
        struct config *fresh = config_new(options, OPTION_COUNT);
        span_status st;

        for (size_t i = 0; i < n; i++) {
            text[i] = alphabet[(size_t)rand_r(&seed) % (sizeof(alphabet) - 1)];
        }
        st = config_parse_text(fresh, "r", slice_of(text, n), &err);
        cr_assert(st == SPAN_OK || st == SPAN_INVALID);
        cr_assert_geq(config_uint(fresh, "lease"), 100 * MS_NS);
        config_free(fresh);
    }
}
