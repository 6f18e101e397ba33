/* `spanlite sim`: flags, seeds one after the other, verdicts. */
#include "base/log.h"
#include "base/planted.h"
#include "coordinator/command.h"
#include "tests/sim/sim.h"

#include <ctype.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct flags {
    struct sim_options sim;
    uint64_t seeds;
    char plant[64];
    const char *plant_scenario;
    bool hashes;
    bool quiet;
    bool counts;
    bool list;
};

static struct flags flags;
static char repeat[300];

static void usage(FILE *to)
{
    fprintf(
        to,
        "Usage: spanlite sim --seed N [flags]\n\n"
        "Runs a whole cluster on virtual time, with faults drawn from the seed, and checks it.\n"
        "The exit code is 1 if something was wrong.\n\n"
        "  --seed N           the (first) seed; 1\n"
        "  --seeds COUNT      so many seeds, one after the other, up to the first failure\n"
        "  --scenario NAME    what is drawn from:\n");
    for (size_t i = 0; sim_scenario_get(i) != NULL; i++) {
        fprintf(to, "                       %-6s %s\n", sim_scenario_get(i)->name,
                sim_scenario_get(i)->text);
    }
    fprintf(
        to,
        "  --steps N          clients and faults stop after so many events\n"
        "  --trace            writes every event, fault and verdict\n"
        "  --hash             prints the trace hash of each seed\n"
        "  --quiet            one line at the end, or the failure\n"
        "  --counts           what happened, added up: name, count, least in 300 seeds, text\n"
        "  --plant NAME       breaks a rule on purpose (a control; tests/sim/README.md)\n"
        "  --controls         lists the planted bugs: name, seeds to find it in, scenario, rule\n\n"
        "Example:\n"
        "  spanlite sim --seed 1 --seeds 100\n");
}

static void list_controls(void)
{
    for (size_t i = 0; planted_get(i) != NULL; i++) {
        const struct planted_info *p = planted_get(i);
        for (const char *s = p->name; *s != 0; s++) {
            putchar(*s == '_' ? '-' : tolower((unsigned char)*s));
        }
        printf(" %u %s %s\n", p->seeds, p->scenario, p->text);
    }
}

static bool parse_number(const char *text, uint64_t *out)
{
    char *end = NULL;
    *out = text == NULL ? 0 : strtoull(text, &end, 10);
    return end != NULL && end != text && *end == 0;
}

static bool known_scenario(const char *name)
{
    for (size_t i = 0; sim_scenario_get(i) != NULL; i++) {
        if (name != NULL && strcmp(sim_scenario_get(i)->name, name) == 0) {
            return true;
        }
    }
    return false;
}

/* The flag's value is argv[1]. 2: it was used; 1: no value needed; 0: wrong. */
static int parse_flag(const char *flag, const char *value)
{
    if (strcmp(flag, "--seed") == 0) {
        return parse_number(value, &flags.sim.seed) ? 2 : 0;
    }
    if (strcmp(flag, "--seeds") == 0) {
        return parse_number(value, &flags.seeds) && flags.seeds > 0 ? 2 : 0;
    }
    if (strcmp(flag, "--steps") == 0) {
        return parse_number(value, &flags.sim.steps) ? 2 : 0;
    }
    if (strcmp(flag, "--scenario") == 0) {
        flags.sim.scenario = value;
        return known_scenario(value) ? 2 : 0;
    }
    if (strcmp(flag, "--plant") == 0) {
        (void)snprintf(flags.plant, sizeof flags.plant, "%s", value == NULL ? "" : value);
        const struct planted_info *p = value == NULL ? NULL : planted_set(value);
        flags.plant_scenario = p == NULL ? NULL : p->scenario;
        return p != NULL ? 2 : 0;
    }
    flags.sim.trace = flags.sim.trace || strcmp(flag, "--trace") == 0;
    flags.hashes = flags.hashes || strcmp(flag, "--hash") == 0;
    flags.quiet = flags.quiet || strcmp(flag, "--quiet") == 0;
    flags.counts = flags.counts || strcmp(flag, "--counts") == 0;
    flags.list = flags.list || strcmp(flag, "--controls") == 0;
    static const char *const bare[] = {"--trace", "--hash", "--quiet", "--counts", "--controls"};
    for (size_t i = 0; i < sizeof bare / sizeof bare[0]; i++) {
        if (strcmp(flag, bare[i]) == 0) {
            return 1;
        }
    }
    return 0;
}

static void make_repeat(uint64_t seed)
{
    int n = snprintf(repeat, sizeof repeat, "spanlite sim --seed %llu", (unsigned long long)seed);
    if (strcmp(flags.sim.scenario, "any") != 0) {
        n += snprintf(repeat + n, sizeof repeat - (size_t)n, " --scenario %s", flags.sim.scenario);
    }
    if (flags.sim.steps != 0) {
        n += snprintf(repeat + n, sizeof repeat - (size_t)n, " --steps %llu",
                      (unsigned long long)flags.sim.steps);
    }
    if (flags.plant[0] != 0) {
        (void)snprintf(repeat + n, sizeof repeat - (size_t)n, " --plant %s", flags.plant);
    }
}

/* An invariant of the product failed, or it crashed: a finding like any other. */
static void on_death(int signal_number)
{
    static const char head[] = "FAILED: the process died; repeat: ";
    (void)fflush(stdout);
    ssize_t n = write(STDOUT_FILENO, head, sizeof head - 1);
    n += write(STDOUT_FILENO, repeat, strlen(repeat));
    n += write(STDOUT_FILENO, "\n", 1);
    (void)n;
    (void)signal_number;
    _exit(1);
}

static double now_seconds(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void print_counts(const uint64_t *tally)
{
    for (size_t i = 0; i < TALLY_COUNT; i++) {
        const struct sim_tally_info *t = sim_tally_get(i);
        printf("count ");
        for (const char *s = t->name; *s != 0; s++) {
            putchar(*s == '_' ? '-' : tolower((unsigned char)*s));
        }
        printf(" %llu %llu %s\n", (unsigned long long)tally[i], (unsigned long long)t->least,
               t->text);
    }
}

static int run(void)
{
    uint64_t first = flags.sim.seed;
    uint64_t events = 0;
    double virtual_s = 0;
    size_t committed = 0;
    uint64_t tally[TALLY_COUNT] = {0};
    double begun = now_seconds();
    printf("seed %llu\n", (unsigned long long)first);
    for (uint64_t i = 0; i < flags.seeds; i++) {
        struct sim_result r;
        flags.sim.seed = first + i;
        make_repeat(flags.sim.seed);
        (void)fflush(stdout);
        sim_run_seed(&flags.sim, &r);
        events += r.events;
        virtual_s += (double)r.virtual_ns / 1e9;
        committed += r.committed;
        for (size_t t = 0; t < TALLY_COUNT; t++) {
            tally[t] += r.tally[t];
        }
        if (!flags.quiet || !r.ok) {
            printf("seed %llu: %s%s\n", (unsigned long long)flags.sim.seed, r.summary,
                   r.ok ? "" : ": FAILED");
        }
        if (flags.hashes) {
            printf("hash %llu %016llx\n", (unsigned long long)flags.sim.seed,
                   (unsigned long long)r.trace);
        }
        if (!r.ok) {
            printf("FAILED: %s\nrepeat: %s\n", r.why, repeat);
            return COMMAND_FAILED;
        }
    }
    if (flags.counts) {
        print_counts(tally);
    }
    double s = now_seconds() - begun;
    printf("%llu seeds without a finding: %zu transfers committed, %llu events, %.0f s of virtual "
           "time in %.1f s, %.1f seeds/s\n",
           (unsigned long long)flags.seeds, committed, (unsigned long long)events, virtual_s, s,
           (double)flags.seeds / s);
    return COMMAND_OK;
}

int sim_main(int argc, char **argv)
{
    flags = (struct flags){.sim = {.seed = 1}, .seeds = 1};
    for (int i = 1; i < argc;) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            usage(stdout);
            return COMMAND_OK;
        }
        int used = parse_flag(argv[i], argv[i + 1]);
        if (used == 0) {
            fprintf(stderr, "spanlite sim: %s: unknown flag or bad value\n", argv[i]);
            usage(stderr);
            return COMMAND_USAGE;
        }
        i += used;
    }
    if (flags.sim.scenario == NULL) {
        flags.sim.scenario = flags.plant_scenario == NULL ? "any" : flags.plant_scenario;
    }
    if (flags.list) {
        list_controls();
        return COMMAND_OK;
    }
    (void)signal(SIGABRT, on_death);
    (void)signal(SIGSEGV, on_death);
    log_set_level(flags.sim.trace ? LOG_INFO : (enum log_level)(LOG_ERROR + 1));
    return run();
}
