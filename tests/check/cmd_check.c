/* spanlite check: reads files, prints verdicts. */
#include "tests/check/cmd_check.h"

#include "base/buf.h"
#include "tests/check/check_history.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define READ_BYTES (1024u * 1024u)

static const char help_text[] =
    "Usage: spanlite check [flags] HISTORY...\n"
    "\n"
    "Does a serial order explain what clients saw, one that agrees with real time?\n"
    "HISTORY is a file that \"spanlite workload register|append|bank run --history FILE\"\n"
    "recorded (\"-\": standard input). Checked are strict serializability (registers\n"
    "and lists), totals of all snapshots (bank), and that commit timestamps agree\n"
    "with real time. For a violation the shortest circle of transactions is told.\n"
    "\n"
    "Example:\n"
    "  spanlite workload append run --seconds 30 --history /tmp/h.jsonl\n"
    "  spanlite check /tmp/h.jsonl\n"
    "\n"
    "Flags:\n"
    "  --json             print the result as one JSON object a file\n"
    "  --help             this text\n"
    "\n"
    "Exit codes: 0 every history holds, 1 one does not, 2 wrong usage or a file that\n"
    "cannot be judged.\n";

static bool read_file(const char *path, struct buf *out)
{
    bool is_stdin = strcmp(path, "-") == 0;
    FILE *f = is_stdin ? stdin : fopen(path, "re");
    if (f == NULL) {
        (void)fprintf(stderr, "spanlite check: %s: %s\n", path, strerror(errno));
        return false;
    }
    for (size_t n = 1; n != 0;) {
        buf_reserve(out, READ_BYTES);
        n = fread(out->data + out->size, 1, READ_BYTES, f);
        out->size += n;
    }
    bool good = ferror(f) == 0;
    if (!good) {
        (void)fprintf(stderr, "spanlite check: %s: %s\n", path, strerror(errno));
    }
    if (!is_stdin) {
        (void)fclose(f);
    }
    return good;
}

static void print_json(const struct history *h, const struct check_report *r)
{
    (void)printf("{\"kind\": \"%s\", \"ok\": %s, \"transactions\": %" PRIu64
                 ", \"acknowledged\": %" PRIu64 ", \"failed\": %" PRIu64 ", \"unknown\": %" PRIu64
                 ", \"unknown_seen\": %" PRIu64 ", \"reads\": %" PRIu64 ", \"writes\": %" PRIu64
                 ", \"keys\": %" PRIu64 ", \"orders\": %" PRIu64 ", \"timestamps\": %" PRIu64
                 ", \"pairs\": %" PRIu64 ", \"audits\": %" PRIu64 ", \"audits_past\": %" PRIu64
                 ", \"anomalies\": {",
                 history_kind_name(h->kind), r->found_total == 0 ? "true" : "false",
                 r->transactions, r->ok, r->failed, r->unknown, r->unknown_seen, r->reads,
                 r->writes, r->keys, r->edges, r->timestamps, r->pairs, r->audits, r->audits_past);
    const char *comma = "";
    for (int a = 0; a < CHECK_ANOMALY_COUNT; a++) {
        if (r->found[a] != 0) {
            (void)printf("%s\"%s\": %" PRIu64, comma, check_anomaly_name((enum check_anomaly)a),
                         r->found[a]);
            comma = ", ";
        }
    }
    (void)printf("}}\n");
}

static void print_text(const struct history *h, struct check_report *r)
{
    (void)printf("transactions       %" PRIu64 ": %" PRIu64 " acknowledged, %" PRIu64
                 " failed, %" PRIu64 " unknown (%" PRIu64 " of them seen)\n",
                 r->transactions, r->ok, r->failed, r->unknown, r->unknown_seen);
    if (h->kind == HISTORY_BANK) {
        (void)printf("transfers          %" PRIu64 "\n", r->writes);
        (void)printf("totals             %" PRIu64 " snapshots, %" PRIu64 " of them in the past\n",
                     r->audits, r->audits_past);
    } else {
        (void)printf("operations         %" PRIu64 " reads and %" PRIu64 " writes of %" PRIu64
                     " keys; they put %" PRIu64 " pairs in order\n",
                     r->reads, r->writes, r->keys, r->edges);
    }
    (void)printf("timestamps         %" PRIu64 ", %" PRIu64
                 " compared with what had ended before\n",
                 r->timestamps, r->pairs);
    if (r->found_total == 0) {
        (void)printf("verdict            ok: %s\n",
                     h->kind == HISTORY_BANK ? "every total is right" : "strictly serializable");
        return;
    }
    (void)printf("verdict            NOT OK\n");
    for (int a = 0; a < CHECK_ANOMALY_COUNT; a++) {
        if (r->found[a] != 0) {
            (void)printf("  %8" PRIu64 "  %s\n", r->found[a],
                         check_anomaly_text((enum check_anomaly)a));
        }
    }
    (void)printf("\n%s", buf_cstr(&r->say));
}

static int check_file(const char *path, bool json)
{
    struct buf text;
    struct history h;
    struct span_error err = {0};
    int code = 2;
    buf_init(&text);
    history_init_empty(&h, HISTORY_APPEND);
    if (read_file(path, &text)) {
        struct check_report r = {0};
        span_status st = history_parse(buf_slice(&text), &h, &err);
        buf_deinit(&text);
        if (st == SPAN_OK) {
            st = check_history(&h, &r, &err);
        }
        if (st != SPAN_OK) {
            (void)fflush(stdout);
            (void)fprintf(stderr, "spanlite check: %s: %s\n", path, err.text);
        } else if (json) {
            print_json(&h, &r);
            code = r.found_total == 0 ? 0 : 1;
        } else {
            print_text(&h, &r);
            code = r.found_total == 0 ? 0 : 1;
        }
        check_report_deinit(&r);
    }
    history_deinit(&h);
    buf_deinit(&text);
    return code;
}

int cmd_check_main(int argc, char **argv)
{
    static const struct option flags[] = {
        {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    bool json = false;
    int worst = 0;
    optind = 0;
    for (int flag; (flag = getopt_long(argc, argv, ":h", flags, NULL)) != -1;) {
        if (flag == 'h') {
            (void)fputs(help_text, stdout);
            return 0;
        }
        if (flag != 'j') {
            (void)fprintf(stderr,
                          "spanlite check: unknown flag \"%s\"\nTry \"spanlite check --help\".\n",
                          argv[optind - 1]);
            return 2;
        }
        json = true;
    }
    if (optind == argc) {
        (void)fputs("spanlite check: say which history: a file that \"spanlite workload ... "
                    "--history FILE\" wrote\nTry \"spanlite check --help\".\n",
                    stderr);
        return 2;
    }
    for (int i = optind; i < argc; i++) {
        if (argc - optind > 1 && !json) {
            (void)printf("%s%s:\n", i == optind ? "" : "\n", argv[i]);
        }
        int code = check_file(argv[i], json);
        worst = code > worst ? code : worst;
    }
    return worst;
}
