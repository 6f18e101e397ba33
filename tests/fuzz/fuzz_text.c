/* The small texts that come from outside: recorded histories, URLs of peers, HTTP requests that
 * inject faults, configuration files, acknowledgement files. The first byte chooses. */
#include "coordinator/config.h"
#include "coordinator/server_faults.h"
#include "deploy/workload/bank_ledger.h"
#include "shard/net/url.h"
#include "tests/check/check_history.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    return 0;
}

static void history(struct slice text)
{
    struct history h;
    struct history back;
    struct check_report r = {0};
    struct buf out = {0};
    struct span_error err = {0};
    if (history_parse(text, &h, &err) == SPAN_OK) {
        history_format(&h, &out);
        INVARIANT(history_parse(buf_slice(&out), &back, &err) == SPAN_OK);
        INVARIANT(back.txn_count == h.txn_count && back.op_count == h.op_count);
        history_deinit(&back);
        if (check_history(&h, &r, &err) == SPAN_OK) {
            INVARIANT((r.found_total == 0) == (r.say.size == 0));
        } else {
            INVARIANT(err.text[0] != '\0');
        }
        check_report_deinit(&r);
    } else {
        INVARIANT(strncmp(err.text, "line ", 5) == 0);
    }
    history_deinit(&h);
    buf_deinit(&out);
}

static void url(const char *text)
{
    char out[URL_BYTES];
    enum url_scheme scheme;
    struct span_error err = {0};
    for (uint32_t from = 1; from < 300; from += 128) {
        if (url_of_link(text, from, (enum net_class)(from % 2), out, &scheme, &err) == SPAN_OK) {
            INVARIANT(memchr(out, '\0', sizeof(out)) != NULL);
        } else {
            INVARIANT(err.text[0] != '\0');
        }
    }
}

static void config(struct slice text)
{
    static const struct config_option options[] = {
        {.name = "count", .kind = CONFIG_COUNT, .arg = "N", .min = 1, .max = 1000, .help = "h"},
        {.name = "lease", .kind = CONFIG_DURATION, .arg = "T", .preset = "4ms", .help = "h"},
        {.name = "offset", .kind = CONFIG_OFFSET, .arg = "T", .help = "h"},
        {.name = "drift", .kind = CONFIG_DRIFT, .arg = "D", .help = "h"},
        {.name = "size", .kind = CONFIG_SIZE, .arg = "B", .help = "h"},
        {.name = "name", .kind = CONFIG_TEXT, .arg = "S", .help = "h"},
        {.name = "on", .kind = CONFIG_BOOL, .help = "h"},
        {.name = "which", .kind = CONFIG_CHOICE, .arg = "W", .choices = "a|b", .help = "h"},
    };
    struct span_error err = {0};
    struct config *c = config_new(options, sizeof(options) / sizeof(options[0]));
    if (config_parse_text(c, "file", text, &err) != SPAN_OK) {
        INVARIANT(strncmp(err.text, "file:", 5) == 0);
    }
    config_free(c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || size > 16384) {
        return 0;
    }
    struct slice rest = slice_of(data + 1, size - 1);
    struct buf text = {0};
    struct span_error err = {0};
    buf_append_slice(&text, rest);
    switch (data[0] % 5) {
    case 0:
        history(rest);
        break;
    case 1:
        url(buf_cstr(&text));
        break;
    case 2: {
        struct fault_request f;
        if (fault_request_parse(buf_cstr(&text), &f, &err) != SPAN_OK) {
            INVARIANT(err.text[0] != '\0');
        }
        break;
    }
    case 3:
        config(rest);
        break;
    default: {
        struct bank_transfer t;
        struct bank_transfer back;
        enum bank_told told;
        if (bank_told_decode(rest, &t, &told) == SPAN_OK) {
            buf_clear(&text);
            bank_told_encode(&t, told, &text);
            text.size--; /* its newline */
            INVARIANT(bank_told_decode(buf_slice(&text), &back, &told) == SPAN_OK);
            INVARIANT(back.id == t.id && back.amount == t.amount);
        }
    }
    }
    buf_deinit(&text);
    return 0;
}

void fuzz_seeds(fuzz_emit *emit, void *ctx)
{
    static const char append[] =
        "X{\"spanlite_history\":1,\"kind\":\"append\"}\n"
        "{\"client\":1,\"start\":1,\"end\":5,\"outcome\":\"ok\",\"ts\":3,\"ops\":[[\"append\",1,7]]"
        "}\n"
        "{\"client\":2,\"start\":2,\"end\":6,\"outcome\":\"unknown\",\"ops\":[[\"r\",1,[7]],"
        "[\"append\",1,8]]}\n"
        "{\"client\":3,\"start\":9,\"end\":12,\"outcome\":\"ok\",\"as_of\":true,\"ops\":[[\"r\",1,["
        "7,"
        "8]]]}\n{\"end\":true,\"transactions\":3}\n";
    static const char registers[] =
        "X{\"spanlite_history\":1,\"kind\":\"register\",\"x\":[1,{\"a\":null}]}\n"
        "{\"client\":1,\"start\":1,\"end\":5,\"outcome\":\"ok\",\"ops\":[[\"r\",1,null],[\"w\",1,7]"
        "]}\n"
        "{\"client\":2,\"start\":2,\"end\":6,\"outcome\":\"fail\",\"ops\":[[\"w\",1,8]]}\n"
        "{\"end\":true,\"transactions\":2}\n";
    static const char bank[] =
        "X{\"spanlite_history\":1,\"kind\":\"bank\",\"accounts\":2,\"balance\":5}\n"
        "{\"client\":1,\"start\":1,\"end\":5,\"outcome\":\"ok\",\"ops\":[[\"audit\",2,10]]}\n"
        "{\"client\":1,\"start\":6,\"end\":7,\"outcome\":\"ok\",\"ts\":5,\"ops\":[[\"transfer\",1,"
        "2,3]]}"
        "\n{\"end\":true,\"transactions\":2}\n";

    static const char end_with_ops[] =
        "X{\"spanlite_history\":1,\"kind\":\"append\"}\n"
        "{\"end\":true,\"transactions\":0,\"ops\":[[\"r\",1,[7]]]}\n";

    static const struct {
        const char *name;
        char kind;
        const char *text;
    } seeds[] = {
        {"history-append", 0, append},
        {"history-register", 0, registers},
        {"history-end-with-ops", 0, end_with_ops},
        {"history-bank", 0, bank},
        {"url-tcp", 1, "Xtcp://127.0.0.1:7100"},
        {"url-ip6", 1, "Xtcp://[::1]:7100"},
        {"url-ipc", 1, "Xipc:///tmp/a.sock"},
        {"url-inproc", 1, "Xinproc://name"},
        {"faults", 2, "Xpeer=2&drop=0.1&delay_ms=20"},
        {"config", 3,
         "Xcount = 5\n# five\nname = \"x y\"\nlease=1.5s\noffset = -2ms\ndrift=50ppm\nsize=64KiB\n"
         "on = yes\nwhich=b\n"},
        {"told", 4, "Xdone 17 1 2 -5"},
    };

    for (size_t i = 0; i < sizeof(seeds) / sizeof(seeds[0]); i++) {
        struct buf b = {0};
        buf_append_str(&b, seeds[i].text);
        b.data[0] = (uint8_t)seeds[i].kind;
        emit(ctx, seeds[i].name, buf_slice(&b));
        buf_deinit(&b);
    }
}
