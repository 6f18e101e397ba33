/* Runs a fuzz target without libFuzzer, so that every build has a short pass: each input of the
 * corpus, then random changes of them.
 *
 *   fuzz_x [--runs N] [--seed S] DIR|FILE...    exit 0 if nothing happened
 *   fuzz_x --write-seeds DIR                    makes the seed corpus anew
 *
 * A crash leaves the input in crash-<name of the program> in $SPAN_CRASH_DIR, else in the working
 * directory. */
#include "base/alloc.h"
#include "base/log.h"
#include "base/rng.h"
#include "tests/fuzz/fuzz.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define INPUT_MAX 65536

void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static struct buf *inputs;
static size_t input_count;
static struct buf current;
static char crash_path[256];

static void save_current(void)
{
    int fd = open(crash_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd >= 0 && current.size != 0) {
        ssize_t n = write(fd, current.data, current.size);
        static const char words[] = "fuzz: the input is in the file crash-...\n";
        n = write(STDERR_FILENO, words, sizeof(words) - 1) < 0 ? 0 : n;
        (void)n;
    }
    (void)close(fd);
}

static void on_abort(int number)
{
    save_current();
    (void)signal(number, SIG_DFL);
    (void)raise(number);
}

static void run_current(void)
{
    /* A copy of the exact size, so that the sanitizer sees a read behind its end. */
    uint8_t *exact = span_calloc(current.size + (current.size == 0), 1);
    if (current.size != 0) {
        memcpy(exact, current.data, current.size);
    }
    (void)LLVMFuzzerTestOneInput(exact, current.size);
    span_free(exact);
}

static int load_file(const char *path)
{
    FILE *f = fopen(path, "re");
    if (f == NULL) {
        (void)fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return 2;
    }
    struct buf b = {0};
    buf_reserve(&b, INPUT_MAX);
    b.size = fread(b.data, 1, INPUT_MAX, f);
    (void)fclose(f);
    inputs = span_realloc(inputs, (input_count + 1) * sizeof(*inputs));
    inputs[input_count++] = b;
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Files of a folder in order of names, so that a seed means the same everywhere. */
static int load(const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)) {
        return load_file(path);
    }
    DIR *dir = opendir(path);
    char **names = NULL;
    size_t count = 0;
    int code = dir == NULL ? 2 : 0;
    for (struct dirent *e; dir != NULL && (e = readdir(dir)) != NULL;) {
        if (e->d_name[0] != '.') {
            names = span_realloc(names, (count + 1) * sizeof(*names));
            names[count++] = span_strdup(e->d_name);
        }
    }
    if (dir != NULL) {
        (void)closedir(dir);
    }
    if (count != 0) {
        qsort(names, count, sizeof(*names), by_name);
    }
    for (size_t i = 0; i < count; i++) {
        char file[1024];
        (void)snprintf(file, sizeof(file), "%s/%s", path, names[i]);
        code = code == 0 ? load_file(file) : code;
        span_free(names[i]);
    }
    span_free(names);
    return code;
}

/* ---- changes ---- */

static void insert(size_t at, const void *p, size_t n)
{
    if (current.size + n > INPUT_MAX) {
        return;
    }
    size_t tail = current.size - at;
    (void)buf_grow(&current, n);
    memmove(current.data + at + n, current.data + at, tail);
    memcpy(current.data + at, p, n);
}

static void overwrite_number(struct rng *r)
{
    static const uint64_t numbers[] = {0,         1,          2,          127,           128,
                                       255,       256,        0x7fff,     0x8000,        0xffff,
                                       0x10000,   0x7fffffff, 0x80000000, 0xffffffff,    1ULL << 32,
                                       INT64_MAX, 1ULL << 63, UINT64_MAX, UINT64_MAX - 1};
    uint64_t v = numbers[rng_below(r, sizeof(numbers) / sizeof(numbers[0]))];
    size_t width = (size_t)1 << rng_below(r, 4);
    if (current.size < width) {
        return;
    }
    size_t at = rng_below(r, current.size - width + 1);
    bool big_endian = rng_below(r, 2) == 0;
    for (size_t i = 0; i < width; i++) {
        current.data[at + i] = (uint8_t)(v >> (8 * (big_endian ? width - 1 - i : i)));
    }
}

static void change(struct rng *r)
{
    const struct buf *other = &inputs[rng_below(r, input_count)];
    size_t n = current.size;
    uint8_t bytes[16];
    uint64_t random = rng_u64(r);
    memcpy(bytes, &random, 8);
    random = rng_u64(r);
    memcpy(bytes + 8, &random, 8);
    switch (rng_below(r, 8)) {
    case 0:
        if (n != 0) {
            current.data[rng_below(r, n)] ^= (uint8_t)(1U << rng_below(r, 8));
        }
        break;
    case 1:
        if (n != 0) {
            current.data[rng_below(r, n)] = bytes[0];
        }
        break;
    case 2:
        insert(rng_below(r, n + 1), bytes, 1 + rng_below(r, 16));
        break;
    case 3: /* a piece goes */
        if (n != 0) {
            size_t at = rng_below(r, n);
            size_t size = 1 + rng_below(r, rng_below(r, 4) == 0 ? n - at : 1);
            size = size > n - at ? n - at : size;
            memmove(current.data + at, current.data + at + size, n - at - size);
            current.size -= size;
        }
        break;
    case 4: /* a piece comes twice */
        if (n != 0) {
            size_t at = rng_below(r, n);
            size_t size = 1 + rng_below(r, n - at < 64 ? n - at : 64);
            size = size > n - at ? n - at : size;
            uint8_t piece[64];
            memcpy(piece, current.data + at, size);
            insert(rng_below(r, n + 1), piece, size);
        }
        break;
    case 5: /* a piece of another one */
        if (other->size != 0) {
            size_t at = rng_below(r, other->size);
            size_t size = 1 + rng_below(r, other->size - at);
            insert(rng_below(r, n + 1), other->data + at, size);
        }
        break;
    case 6:
        current.size = n == 0 ? 0 : rng_below(r, n + 1);
        break;
    default:
        overwrite_number(r);
    }
}

static void run_random(uint64_t runs, uint64_t seed)
{
    for (uint64_t i = 0; i < runs; i++) {
        struct rng r;
        rng_init(&r, seed + i);
        buf_set(&current, buf_slice(&inputs[rng_below(&r, input_count)]));
        for (uint64_t n = 1 + rng_below(&r, 8); n > 0; n--) {
            change(&r);
        }
        run_current();
    }
}

static void write_seed(void *ctx, const char *name, struct slice input)
{
    char path[1024];
    (void)snprintf(path, sizeof(path), "%s/%s", (const char *)ctx, name);
    FILE *f = fopen(path, "we");
    if (f == NULL || fwrite(input.data, 1, input.size, f) != input.size || fclose(f) != 0) {
        (void)fprintf(stderr, "%s: %s\n", path, strerror(errno));
        exit(2);
    }
}

int main(int argc, char **argv)
{
    uint64_t runs = 0;
    uint64_t seed = rng_os_u64() >> 1;
    int code = 0;
    const char *base = strrchr(argv[0], '/');
    log_set_level(LOG_ERROR + 1);
    const char *dir = getenv("SPAN_CRASH_DIR");
    (void)snprintf(crash_path, sizeof(crash_path), "%s%scrash-%s", dir == NULL ? "" : dir,
                   dir == NULL ? "" : "/", base == NULL ? argv[0] : base + 1);
    for (int i = 1; i < argc && code == 0; i++) {
        bool has_value = i + 1 < argc;
        if (strcmp(argv[i], "--runs") == 0 && has_value) {
            runs = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--seed") == 0 && has_value) {
            seed = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--write-seeds") == 0 && has_value) {
            fuzz_seeds(write_seed, argv[i + 1]);
            return 0;
        } else {
            code = load(argv[i]);
        }
    }
    if (code != 0 || input_count == 0) {
        (void)fprintf(stderr, "fuzz: no inputs; give the folder of a corpus\n");
        return 2;
    }
    (void)signal(SIGABRT, on_abort);
    (void)signal(SIGSEGV, on_abort);
    if (__sanitizer_set_death_callback != NULL) {
        __sanitizer_set_death_callback(save_current);
    }
    (void)LLVMFuzzerInitialize(&argc, &argv);
    (void)printf("seed %" PRIu64 "\n", seed);
    for (size_t i = 0; i < input_count; i++) {
        buf_set(&current, buf_slice(&inputs[i]));
        run_current();
    }
    run_random(runs, seed);
    (void)printf("%zu inputs of the corpus, %" PRIu64 " changed ones\n", input_count, runs);
    (void)printf("1 passed, 0 failed\n");
    for (size_t i = 0; i < input_count; i++) {
        buf_deinit(&inputs[i]);
    }
    span_free(inputs);
    buf_deinit(&current);
    return 0;
}
