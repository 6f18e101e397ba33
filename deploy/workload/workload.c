/* spanlite workload: flags and help. */
#include "deploy/workload/workload.h"

#include "base/limits.h"
#include "base/rng.h"
#include "deploy/workload/bank.h"
#include "deploy/workload/history_run.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char help_text[] =
    "Usage: spanlite workload bank init|run|check [flags]\n"
    "       spanlite workload register|append run [flags]\n"
    "\n"
    "The bank: accounts spread over the ranges, clients that move money between\n"
    "random accounts in transactions over two ranges, and audits at snapshots\n"
    "whose totals must all be equal.\n"
    "register, append: transactions that read and write a few keys, each value once,\n"
    "or append to lists, and record what they saw for \"spanlite check\".\n"
    "\n"
    "Example:\n"
    "  spanlite workload append run --seconds 30 --history /tmp/h.jsonl\n"
    "  spanlite workload bank init --accounts 10000 --ranges 8\n"
    "  spanlite workload bank run --clients 16 --seconds 30 --ledger --acks /tmp/acks\n"
    "  spanlite workload bank check --ledger --acks /tmp/acks\n"
    "\n"
    "Flags of all:\n"
    "  --url URL          cluster, postgresql://host:port,host:port/ (SPANLITE_URL;\n"
    "                     default postgresql://spanlite@127.0.0.1:5433/)\n"
    "  --json             print the result as one JSON object\n"
    "  --quiet            no progress\n"
    "init:\n"
    "  --accounts N       number of accounts (1000)\n"
    "  --ranges R         ranges to split each table into (4)\n"
    "  --balance B        what each account begins with (1000)\n"
    "  --force            replace a bank that is there\n"
    "run:\n"
    "  --clients N        connections that transfer (16)\n"
    "  --seconds S        how long (10)\n"
    "  --transactions N   stop after so many transfers\n"
    "  --ledger           write each transfer to the table transfers as well\n"
    "  --acks FILE        append what each client was told, for check\n"
    "  --prepared         server-side prepared statements\n"
    "  --pipeline         one message a transaction instead of one a statement\n"
    "  --amount N         transfers of 1 to N (10)\n"
    "  --audit-ms MS      pause between audits, 0: none (1000)\n"
    "  --timeout-ms MS    give up a statement and its connection (10000)\n"
    "  --seed N           of the random transfers (drawn)\n"
    "  --history FILE     record what every client was told, for \"spanlite check\"\n"
    "register run, append run (tables check_register, check_append are made anew):\n"
    "  --history FILE     as above\n"
    "  --keys N           registers, or lists at a time (16)\n"
    "  --ranges R         ranges to split the table into (4)\n"
    "  --clients, --seconds, --transactions, --timeout-ms, --seed   as of bank run\n"
    "check:\n"
    "  --ledger           every transfer was run with --ledger: compare each balance\n"
    "  --acks FILE        nothing acknowledged is lost or doubled, nothing refused done\n"
    "\n"
    "Exit codes: 0 every check held, 1 one did not, 2 wrong usage or no connection.\n";

enum flag {
    FLAG_URL = 256,
    FLAG_JSON,
    FLAG_QUIET,
    FLAG_ACCOUNTS,
    FLAG_RANGES,
    FLAG_BALANCE,
    FLAG_FORCE,
    FLAG_CLIENTS,
    FLAG_SECONDS,
    FLAG_TRANSACTIONS,
    FLAG_LEDGER,
    FLAG_ACKS,
    FLAG_PREPARED,
    FLAG_PIPELINE,
    FLAG_AMOUNT,
    FLAG_AUDIT_MS,
    FLAG_TIMEOUT_MS,
    FLAG_HISTORY,
    FLAG_KEYS,
    FLAG_SEED, /* the last one */
};

enum verb { VERB_INIT = 1, VERB_RUN = 2, VERB_CHECK = 4, VERB_HISTORY = 8, VERB_ALL = 15 };

static const struct option flags[] = {
    {"url", required_argument, NULL, FLAG_URL},
    {"json", no_argument, NULL, FLAG_JSON},
    {"quiet", no_argument, NULL, FLAG_QUIET},
    {"accounts", required_argument, NULL, FLAG_ACCOUNTS},
    {"ranges", required_argument, NULL, FLAG_RANGES},
    {"balance", required_argument, NULL, FLAG_BALANCE},
    {"force", no_argument, NULL, FLAG_FORCE},
    {"clients", required_argument, NULL, FLAG_CLIENTS},
    {"seconds", required_argument, NULL, FLAG_SECONDS},
    {"transactions", required_argument, NULL, FLAG_TRANSACTIONS},
    {"ledger", no_argument, NULL, FLAG_LEDGER},
    {"acks", required_argument, NULL, FLAG_ACKS},
    {"prepared", no_argument, NULL, FLAG_PREPARED},
    {"pipeline", no_argument, NULL, FLAG_PIPELINE},
    {"amount", required_argument, NULL, FLAG_AMOUNT},
    {"audit-ms", required_argument, NULL, FLAG_AUDIT_MS},
    {"timeout-ms", required_argument, NULL, FLAG_TIMEOUT_MS},
    {"history", required_argument, NULL, FLAG_HISTORY},
    {"keys", required_argument, NULL, FLAG_KEYS},
    {"seed", required_argument, NULL, FLAG_SEED},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

/* Which verbs a flag says something to; with another it is refused, not passed over. */
static unsigned flag_verbs(enum flag flag)
{
    switch (flag) {
    case FLAG_URL:
    case FLAG_JSON:
    case FLAG_QUIET:
        return VERB_ALL;
    case FLAG_ACCOUNTS:
    case FLAG_BALANCE:
    case FLAG_FORCE:
        return VERB_INIT;
    case FLAG_RANGES:
        return VERB_INIT | VERB_HISTORY;
    case FLAG_KEYS:
        return VERB_HISTORY;
    case FLAG_LEDGER:
    case FLAG_ACKS:
        return VERB_RUN | VERB_CHECK;
    case FLAG_PREPARED:
    case FLAG_PIPELINE:
    case FLAG_AMOUNT:
    case FLAG_AUDIT_MS:
        return VERB_RUN;
    case FLAG_CLIENTS:
    case FLAG_SECONDS:
    case FLAG_TRANSACTIONS:
    case FLAG_TIMEOUT_MS:
    case FLAG_HISTORY:
    case FLAG_SEED:
        return VERB_RUN | VERB_HISTORY;
    }
    return VERB_ALL;
}

static int usage(const char *fmt, const char *what)
{
    (void)fputs("spanlite workload: ", stderr);
    if (what == NULL) {
        (void)fputs(fmt, stderr);
    } else {
        (void)fprintf(stderr, "%s \"%s\"", fmt, what);
    }
    (void)fputs("\nTry \"spanlite workload --help\".\n", stderr);
    return 2;
}

/* The value of a numeric flag between low and high; false after a complaint. */
static bool number(const char *name, const char *text, double low, double high, double *out)
{
    char *rest = NULL;
    errno = 0;
    *out = strtod(text, &rest);
    if (errno != 0 || rest == text || *rest != '\0' || !(*out >= low) || !(*out <= high)) {
        (void)fprintf(stderr,
                      "spanlite workload: --%s %s: give a number from %.10g to %.10g\n"
                      "Try \"spanlite workload --help\".\n",
                      name, text, low, high);
        return false;
    }
    return true;
}

/* Flags with a number: false after a complaint. */
static bool take_number(struct bank_options *o, int flag, const char *name, const char *text)
{
    double v = 0;
    double low = flag == FLAG_AUDIT_MS || flag == FLAG_SEED ? 0 : 1;
    double high = 1e6;
    if (flag == FLAG_ACCOUNTS) {
        low = 2;
        high = 1e8;
    } else if (flag == FLAG_CLIENTS) {
        high = LIMIT_SESSIONS;
    } else if (flag == FLAG_RANGES) {
        high = LIMIT_RANGES / 4;
    } else if (flag == FLAG_SECONDS) {
        low = 0.1;
    } else if (flag == FLAG_TRANSACTIONS || flag == FLAG_BALANCE || flag == FLAG_SEED) {
        high = 1e15;
    }
    if (!number(name, text, low, high, &v)) {
        return false;
    }
    if (flag != FLAG_SECONDS && v != floor(v)) {
        (void)fprintf(stderr,
                      "spanlite workload: --%s %s: give a whole number\n"
                      "Try \"spanlite workload --help\".\n",
                      name, text);
        return false;
    }
    switch ((enum flag)flag) {
    case FLAG_ACCOUNTS:
        o->accounts = (uint64_t)v;
        break;
    case FLAG_RANGES:
        o->ranges = (unsigned)v;
        break;
    case FLAG_BALANCE:
        o->balance = (int64_t)v;
        break;
    case FLAG_CLIENTS:
        o->clients = (unsigned)v;
        break;
    case FLAG_SECONDS:
        o->seconds = v;
        break;
    case FLAG_TRANSACTIONS:
        o->transfers_max = (uint64_t)v;
        break;
    case FLAG_AMOUNT:
        o->amount_max = (int64_t)v;
        break;
    case FLAG_AUDIT_MS:
        o->audit_ms = (unsigned)v;
        break;
    case FLAG_TIMEOUT_MS:
        o->timeout_ms = (unsigned)v;
        break;
    case FLAG_SEED:
        o->seed = (uint64_t)v;
        break;
    case FLAG_KEYS:
        o->keys = (uint64_t)v;
        break;
    case FLAG_URL:
    case FLAG_JSON:
    case FLAG_QUIET:
    case FLAG_FORCE:
    case FLAG_LEDGER:
    case FLAG_ACKS:
    case FLAG_PREPARED:
    case FLAG_PIPELINE:
    case FLAG_HISTORY:
        return false;
    }
    return true;
}

/* `name`: of a flag with a number its name, of a wrong one the word as typed. -1: go on; else the
 * exit code. */
static int take_flag(struct bank_options *o, const char **url, int flag, const char *name)
{
    switch (flag) {
    case FLAG_URL:
        *url = optarg;
        return -1;
    case FLAG_JSON:
        o->json = true;
        return -1;
    case FLAG_QUIET:
        o->quiet = true;
        return -1;
    case FLAG_FORCE:
        o->force = true;
        return -1;
    case FLAG_LEDGER:
        o->ledger = true;
        return -1;
    case FLAG_ACKS:
        o->acks = optarg;
        return -1;
    case FLAG_HISTORY:
        o->history = optarg;
        return -1;
    case FLAG_PREPARED:
        o->prepared = true;
        return -1;
    case FLAG_PIPELINE:
        o->pipeline = true;
        return -1;
    case 'h':
        (void)fputs(help_text, stdout);
        return 0;
    case '?':
        return usage("unknown flag", name);
    case ':':
        return usage("this flag needs a value:", name);
    default:
        return take_number(o, flag, name, optarg) ? -1 : 2;
    }
}

static const struct workload_verb {
    const char *workload;
    const char *name;
    enum verb verb;
    int (*main)(const struct bank_options *o);
} verbs[] = {
    {"bank", "init", VERB_INIT, bank_init},
    {"bank", "run", VERB_RUN, bank_run},
    {"bank", "check", VERB_CHECK, bank_check},
    {"register", "run", VERB_HISTORY, history_run_register},
    {"append", "run", VERB_HISTORY, history_run_append},
};

#define VERB_COUNT (sizeof(verbs) / sizeof(verbs[0]))

/* NULL after a complaint: no such workload, or not with this verb. */
static const struct workload_verb *find_verb(const char *workload, const char *name)
{
    char known[64] = "";
    for (size_t i = 0; i < VERB_COUNT; i++) {
        if (strcmp(verbs[i].workload, workload) != 0) {
            continue;
        }
        if (name != NULL && strcmp(verbs[i].name, name) == 0) {
            return &verbs[i];
        }
        size_t n = strlen(known);
        (void)snprintf(known + n, sizeof(known) - n, "%s%s", n == 0 ? "" : ", ", verbs[i].name);
    }
    if (known[0] == '\0') {
        (void)usage("unknown workload", workload);
    } else if (name == NULL) {
        (void)fprintf(stderr,
                      "spanlite workload: say what the %s is to do: %s\n"
                      "Try \"spanlite workload --help\".\n",
                      workload, known);
    } else {
        (void)fprintf(stderr,
                      "spanlite workload: the %s knows %s, not \"%s\"\n"
                      "Try \"spanlite workload --help\".\n",
                      workload, known, name);
    }
    return NULL;
}

/* False after a complaint about a flag that this verb has no use for. */
static bool check_flags(const struct workload_verb *verb, const bool *given)
{
    for (const struct option *f = flags; f->name != NULL; f++) {
        unsigned takers = f->val >= FLAG_URL ? flag_verbs((enum flag)f->val) : VERB_ALL;
        if (!given[f->val >= FLAG_URL ? f->val : 0] || (takers & verb->verb) != 0) {
            continue;
        }
        /* Those of the same workload, if there are any. */
        char known[96] = "";
        for (size_t i = 0; i < 2 * VERB_COUNT; i++) {
            const struct workload_verb *v = &verbs[i % VERB_COUNT];
            size_t n = strlen(known);
            bool same = strcmp(v->workload, verb->workload) == 0;
            if ((takers & v->verb) != 0 && (i < VERB_COUNT ? same : !same && n == 0)) {
                (void)snprintf(known + n, sizeof(known) - n, "%s\"%s %s\"", n == 0 ? "" : " and ",
                               v->workload, v->name);
            }
        }
        (void)fprintf(stderr,
                      "spanlite workload: --%s belongs to %s, not to \"%s %s\"\n"
                      "Try \"spanlite workload --help\".\n",
                      f->name, known, verb->workload, verb->name);
        return false;
    }
    return true;
}

int workload_main(int argc, char **argv)
{
    struct bank_options o = {
        .accounts = 1000,
        .ranges = 4,
        .balance = 1000,
        .clients = 16,
        .seconds = 10,
        .amount_max = 10,
        .audit_ms = 1000,
        .timeout_ms = 10000,
        .keys = 16,
        .seed = rng_os_u64(),
    };
    const char *url = NULL;
    bool given[FLAG_SEED + 1] = {false};
    int index = 0;
    optind = 0; /* glibc: start anew, this may not be the first getopt of the process */
    for (int flag; (flag = getopt_long(argc, argv, ":h", flags, &index)) != -1;) {
        bool is_ours = flag >= FLAG_URL && flag <= FLAG_SEED;
        int code = take_flag(&o, &url, flag, is_ours ? flags[index].name : argv[optind - 1]);
        if (code >= 0) {
            return code;
        }
        given[is_ours ? flag : 0] = true;
    }
    int words = argc - optind;
    const char *what = words > 0 ? argv[optind] : NULL;
    const char *verb = words > 1 ? argv[optind + 1] : NULL;
    if (what == NULL) {
        return usage("say which workload: bank, register or append", NULL);
    }
    const struct workload_verb *run = find_verb(what, verb);
    if (run == NULL) {
        return 2;
    }
    if (words > 2) {
        return usage("unexpected word", argv[optind + 2]);
    }
    if (!check_flags(run, given)) {
        return 2;
    }
    struct span_error err = {0};
    struct cluster_url *parsed = NULL;
    if (cluster_url_parse(url, &parsed, &err) != SPAN_OK) {
        (void)fprintf(stderr, "spanlite workload: %s\n", err.text);
        return 2;
    }
    o.url = parsed;
    int code = run->main(&o);
    cluster_url_free(parsed);
    return code;
}
