/* What the parts of the history checker share: see check_history.h. */
#ifndef SPAN_TESTS_CHECK_CHECK_IMPL_H
#define SPAN_TESTS_CHECK_CHECK_IMPL_H

#include "tests/check/check_history.h"
#include "tests/check/graph.h"

/* One write of one value, sorted by (key, value) in checker.writes. */
struct written {
    uint64_t key;
    int64_t value;
    uint32_t txn;
    uint32_t op;    /* index into h->ops */
    uint64_t ts;    /* of its transaction; 0: not known */
    bool is_final;  /* its transaction wrote nothing to the key afterwards */
    bool loose;     /* behind its key's stand-in */
    bool seen;      /* some read that counts shows it */
    int64_t next;   /* not final: what its transaction wrote to the key next */
    uint32_t after; /* register: index + 1 of the next version by timestamp; 0: none */
};

struct keyed {
    uint64_t key;
    size_t write; /* [write, write + write_count) in checker.writes */
    size_t write_count;
    size_t longest; /* append: op with the longest list that counts; SIZE_MAX: none */
    size_t longest_count;
    uint32_t loose; /* stand-in + 1 for writes nothing orders (append: that no list shows; register:
                       without timestamp); 0: none */
    uint32_t first_by_ts; /* register: index + 1 of the write with the lowest timestamp */
};

/* One read of a register, kept until all of a key are known: sorted by (key, version). */
struct seen {
    uint64_t key;
    uint32_t version; /* index + 1 into writes; 0: no value yet */
    uint32_t reader;
    bool writes; /* the reader wrote the key too: its write is behind this version */
};

struct checker {
    const struct history *h;
    struct check_report *r;
    struct graph g;
    struct written *writes;
    size_t write_count;
    struct keyed *keys;
    size_t key_count;
    struct seen *seen; /* check_register */
    size_t seen_count;
    bool *counts; /* per transaction: acknowledged, or unknown and seen */
};

/* Counts an anomaly; true: it is among the first of its kind, say it in words. */
bool checker_found(struct checker *c, enum check_anomaly a);
/* "line 7 (client 3)". */
void checker_name(struct checker *c, uint32_t txn);

struct keyed *checker_key(struct checker *c, uint64_t key); /* NULL: never written */
struct written *checker_write(struct checker *c, const struct keyed *k, int64_t value);

/* Fill c->g with what the reads and writes say, and report what is wrong by itself. */
void check_append(struct checker *c);
void check_register(struct checker *c);
void check_bank(struct checker *c);
/* Commit timestamps against real time, and against the edges. */
void check_timestamps(struct checker *c);
/* Names and prints what the graph shows. */
void check_cycles(struct checker *c);

#endif
