/* Encoding and decoding of everything in txn_msg.h and of the replicated commands. The layout of a
 * body is the order of the enc_ calls of its encoder: fixed integers little-endian, counts and
 * lengths as varints, timestamps as u64. Every body and command begins with a version; decoders
 * refuse any other. */
#include "txn/txn_codec.h"

#include "base/alloc.h"

#include <stdio.h>

#define COMMAND_VERSION 1
#define ARENA_BLOCK     (16 * KIB)

/* ---- arena ---- */

struct arena_block {
    struct arena_block *next;
    size_t used;
    size_t size;
    uint64_t data[];
};

void *arena_alloc(struct arena *a, size_t size)
{
    size = (size + 7) & ~(size_t)7;
    struct arena_block *b = a->head;
    if (b == NULL || b->size - b->used < size) {
        size_t cap = size > ARENA_BLOCK ? size : ARENA_BLOCK;
        b = span_malloc(sizeof *b + cap);
        b->size = cap;
        b->used = 0;
        b->next = a->head;
        a->head = b;
    }
    void *p = (uint8_t *)b->data + b->used;
    b->used += size;
    memset(p, 0, size);
    return p;
}

void arena_clear(struct arena *a)
{
    struct arena_block *b = a->head;
    while (b != NULL && b->next != NULL) {
        struct arena_block *next = b->next;
        span_free(b);
        b = next;
    }
    if (b != NULL) {
        if (b->size > 4 * ARENA_BLOCK) { /* one huge request must not keep its memory */
            span_free(b);
            b = NULL;
        } else {
            b->used = 0;
        }
    }
    a->head = b;
}

void arena_deinit(struct arena *a)
{
    while (a->head != NULL) {
        struct arena_block *next = a->head->next;
        span_free(a->head);
        a->head = next;
    }
}

/* ---- small parts ---- */

static void enc_ts(struct buf *b, struct tt_ts t)
{
    enc_u64(b, t.ns);
}

static struct tt_ts dec_ts(struct cursor *c)
{
    return (struct tt_ts){dec_u64(c)};
}

static void enc_interval(struct buf *b, const struct tt_interval *i)
{
    enc_ts(b, i->earliest);
    enc_ts(b, i->latest);
}

static struct tt_interval dec_interval(struct cursor *c)
{
    struct tt_interval i;
    i.earliest = dec_ts(c);
    i.latest = dec_ts(c);
    if (i.latest.ns < i.earliest.ns) {
        c->bad = true;
    }
    return i;
}

void enc_txn_id(struct buf *b, const struct txn_id *id)
{
    enc_u64(b, id->begin_ns);
    enc_u32(b, id->node);
    enc_u32(b, id->seq);
}

struct txn_id dec_txn_id(struct cursor *c)
{
    struct txn_id id;
    id.begin_ns = dec_u64(c);
    id.node = dec_u32(c);
    id.seq = dec_u32(c);
    return id;
}

void txn_id_format(const struct txn_id *id, char out[48])
{
    (void)snprintf(out, 48, "%llx-%u-%x", (unsigned long long)id->begin_ns, id->node, id->seq);
}

/* The digits at *text, which moves behind them; false: there are none, or too great a number. */
static bool parse_part(const char **text, uint64_t base, uint64_t max, uint64_t *out)
{
    const char *p = *text;
    uint64_t v = 0;
    for (;; p++) {
        uint64_t digit = base;
        if (*p >= '0' && *p <= '9') {
            digit = (uint64_t)(*p - '0');
        } else if (*p >= 'a' && *p <= 'f') {
            digit = (uint64_t)(*p - 'a') + 10;
        }
        if (digit >= base) {
            break;
        }
        if (v > (max - digit) / base) {
            return false;
        }
        v = v * base + digit;
    }
    bool any = p != *text;
    *text = p;
    *out = v;
    return any;
}

bool txn_id_parse(const char *text, struct txn_id *out)
{
    uint64_t begin = 0;
    uint64_t node = 0;
    uint64_t seq = 0;
    *out = (struct txn_id){0};
    if (!parse_part(&text, 16, UINT64_MAX, &begin) || *text++ != '-' ||
        !parse_part(&text, 10, LIMIT_PEERS, &node) || *text++ != '-' ||
        !parse_part(&text, 16, UINT32_MAX, &seq) || *text != '\0' || begin == 0) {
        return false;
    }
    *out = (struct txn_id){begin, (uint32_t)node, (uint32_t)seq};
    return true;
}

static void enc_span(struct buf *b, const struct span *s)
{
    enc_bool(b, s->point);
    enc_bytes(b, s->start);
    if (!s->point) {
        enc_bytes(b, s->end);
    }
}

/* Keys from outside are bounded here, once for all. */
static struct slice dec_key(struct cursor *c)
{
    struct slice k = dec_bytes(c);
    if (k.size > LIMIT_KEY_BYTES + 64) {
        c->bad = true;
        return (struct slice){0};
    }
    return k;
}

static struct span dec_span(struct cursor *c)
{
    struct span s = {0};
    s.point = dec_bool(c);
    s.start = dec_key(c);
    if (!s.point) {
        s.end = dec_key(c);
    }
    return s;
}

static void enc_writes(struct buf *b, const struct txn_write *w, size_t n)
{
    enc_var(b, n);
    for (size_t i = 0; i < n; i++) {
        enc_bytes(b, w[i].key);
        enc_bool(b, w[i].tombstone);
        if (!w[i].tombstone) {
            enc_bytes(b, w[i].value);
        }
    }
}

static struct txn_write *dec_writes(struct cursor *c, struct arena *a, size_t *n)
{
    *n = dec_count(c, 2);
    struct txn_write *w = arena_alloc(a, (*n + 1) * sizeof *w);
    for (size_t i = 0; i < *n && cursor_ok(c); i++) {
        w[i].key = dec_key(c);
        w[i].tombstone = dec_bool(c);
        if (!w[i].tombstone) {
            w[i].value = dec_bytes(c);
        }
        if (w[i].key.size == 0) {
            c->bad = true;
        }
    }
    return w;
}

static void enc_participants(struct buf *b, const struct txn_participant *p, size_t n)
{
    enc_var(b, n);
    for (size_t i = 0; i < n; i++) {
        enc_bytes(b, p[i].anchor);
        enc_u64(b, p[i].range);
        enc_u32(b, p[i].node);
    }
}

static struct txn_participant *dec_participants(struct cursor *c, struct arena *a, size_t *n)
{
    *n = dec_count(c, 13);
    if (*n > LIMIT_TXN_RANGES) {
        c->bad = true;
        *n = 0;
    }
    struct txn_participant *p = arena_alloc(a, (*n + 1) * sizeof *p);
    for (size_t i = 0; i < *n; i++) {
        p[i].anchor = dec_key(c);
        p[i].range = dec_u64(c);
        p[i].node = dec_u32(c);
    }
    return p;
}

void enc_descriptor(struct buf *b, const struct range_descriptor *d)
{
    enc_u64(b, d->range);
    enc_u64(b, d->generation);
    enc_bytes(b, d->start);
    enc_bytes(b, d->end);
    enc_u32(b, d->leader);
    enc_u8(b, (uint8_t)d->member_count);
    for (size_t i = 0; i < d->member_count; i++) {
        enc_u32(b, d->members[i]);
    }
}

void dec_descriptor(struct cursor *c, struct range_descriptor *d)
{
    *d = (struct range_descriptor){0};
    d->range = dec_u64(c);
    d->generation = dec_u64(c);
    d->start = dec_key(c);
    d->end = dec_key(c);
    d->leader = dec_u32(c);
    d->member_count = dec_u8(c);
    if (d->member_count > LIMIT_REPLICAS) {
        c->bad = true;
        d->member_count = 0;
    }
    for (size_t i = 0; i < d->member_count; i++) {
        d->members[i] = dec_u32(c);
    }
}

static void enc_descriptors(struct buf *b, const struct range_descriptor *d, size_t n)
{
    enc_var(b, n);
    for (size_t i = 0; i < n; i++) {
        enc_descriptor(b, &d[i]);
    }
}

static struct range_descriptor *dec_descriptors(struct cursor *c, struct arena *a, size_t *n)
{
    *n = dec_count(c, 23);
    struct range_descriptor *d = arena_alloc(a, (*n + 1) * sizeof *d);
    for (size_t i = 0; i < *n; i++) {
        dec_descriptor(c, &d[i]);
    }
    return d;
}

/* ---- framing ---- */

static size_t begin(struct buf *out, uint8_t kind)
{
    size_t at = out->size;
    enc_u32(out, 0);
    enc_u8(out, kind);
    enc_u8(out, MSG_VERSION);
    return at;
}

static void end(struct buf *out, size_t at)
{
    enc_u32_at(out, at, (uint32_t)(out->size - at - 4));
}

span_status msg_next(struct slice frame, size_t *at, uint8_t *kind, struct slice *body)
{
    if (*at >= frame.size) {
        return SPAN_NOT_FOUND;
    }
    struct cursor c = cursor_of((struct slice){frame.data + *at, frame.size - *at});
    uint32_t length = dec_u32(&c);
    struct slice whole = dec_raw(&c, length);
    if (!cursor_ok(&c) || length < 2) {
        return SPAN_PROTOCOL;
    }
    *at += 4 + (size_t)length;
    *kind = whole.data[0];
    if (whole.data[1] != MSG_VERSION) {
        return SPAN_PROTOCOL;
    }
    *body = (struct slice){whole.data + 2, whole.size - 2};
    return SPAN_OK;
}

static span_status finish(const struct cursor *c)
{
    return cursor_done(c) ? SPAN_OK : SPAN_PROTOCOL;
}

/* ---- requests and answers ---- */

void msg_encode_request(struct buf *out, const struct range_request *m)
{
    size_t at = begin(out, MSG_REQUEST);
    enc_u8(out, m->op);
    enc_u64(out, m->request_id);
    enc_u32(out, m->gateway);
    enc_u64(out, m->incarnation);
    enc_u64(out, m->range);
    enc_u64(out, m->generation);
    enc_u64(out, m->term);
    enc_txn_id(out, &m->txn);
    enc_txn_id(out, &m->age);
    enc_u64(out, m->budget_ns);
    enc_u8(out, (uint8_t)((m->may_wait ? 1 : 0) | (m->follower_ok ? 2 : 0)));
    enc_ts(out, m->read_ts);
    enc_ts(out, m->seen);
    enc_u8(out, m->lock);
    enc_var(out, m->span_count);
    for (size_t i = 0; i < m->span_count; i++) {
        enc_span(out, &m->spans[i].span);
        enc_bool(out, m->spans[i].reverse);
        enc_u32(out, m->spans[i].max_rows);
    }
    enc_var(out, m->schema_count);
    for (size_t i = 0; i < m->schema_count; i++) {
        enc_u32(out, m->schema[i].table_id);
        enc_u64(out, m->schema[i].version);
    }
    enc_writes(out, m->writes, m->write_count);
    enc_bytes(out, m->anchor);
    enc_bytes(out, m->coordinator);
    enc_u64(out, m->coordinator_range);
    enc_u32(out, m->coordinator_node);
    enc_participants(out, m->participants, m->participant_count);
    enc_u64(out, m->new_range);
    end(out, at);
}

span_status msg_decode_request(struct slice body, struct arena *a, struct range_request *m)
{
    struct cursor c = cursor_of(body);
    *m = (struct range_request){0};
    m->op = dec_u8(&c);
    m->request_id = dec_u64(&c);
    m->gateway = dec_u32(&c);
    m->incarnation = dec_u64(&c);
    m->range = dec_u64(&c);
    m->generation = dec_u64(&c);
    m->term = dec_u64(&c);
    m->txn = dec_txn_id(&c);
    m->age = dec_txn_id(&c);
    m->budget_ns = dec_u64(&c);
    uint8_t flags = dec_u8(&c);
    m->may_wait = (flags & 1) != 0;
    m->follower_ok = (flags & 2) != 0;
    m->read_ts = dec_ts(&c);
    m->seen = dec_ts(&c);
    m->lock = dec_u8(&c);
    m->span_count = dec_count(&c, 7);
    m->spans = arena_alloc(a, (m->span_count + 1) * sizeof *m->spans);
    for (size_t i = 0; i < m->span_count && cursor_ok(&c); i++) {
        m->spans[i].span = dec_span(&c);
        m->spans[i].reverse = dec_bool(&c);
        m->spans[i].max_rows = dec_u32(&c);
    }
    m->schema_count = dec_count(&c, 12);
    m->schema = arena_alloc(a, (m->schema_count + 1) * sizeof *m->schema);
    for (size_t i = 0; i < m->schema_count; i++) {
        m->schema[i].table_id = dec_u32(&c);
        m->schema[i].version = dec_u64(&c);
    }
    m->writes = dec_writes(&c, a, &m->write_count);
    m->anchor = dec_key(&c);
    m->coordinator = dec_key(&c);
    m->coordinator_range = dec_u64(&c);
    m->coordinator_node = dec_u32(&c);
    m->participants = dec_participants(&c, a, &m->participant_count);
    m->new_range = dec_u64(&c);
    if (flags > 3 || m->lock > READ_LOCK_UPDATE || m->op < OP_READ || m->op > OP_MERGE) {
        return SPAN_PROTOCOL;
    }
    return finish(&c);
}

void msg_encode_response(struct buf *out, const struct range_response *m)
{
    size_t at = begin(out, MSG_RESPONSE);
    enc_u64(out, m->request_id);
    enc_u8(out, m->op);
    enc_u16(out, m->status);
    enc_u64(out, m->range);
    enc_u64(out, m->generation);
    enc_u64(out, m->term);
    enc_u32(out, m->leader);
    enc_ts(out, m->seen);
    enc_ts(out, m->ts);
    enc_u8(out, m->txn_state);
    enc_var(out, m->row_count);
    for (size_t i = 0; i < m->row_count; i++) {
        enc_var(out, m->rows[i].span);
        enc_bytes(out, m->rows[i].key);
        enc_bytes(out, m->rows[i].value);
    }
    enc_var(out, m->resume_count);
    for (size_t i = 0; i < m->resume_count; i++) {
        enc_var(out, m->resumes[i].span);
        enc_bytes(out, m->resumes[i].key);
    }
    enc_descriptors(out, m->descriptors, m->descriptor_count);
    enc_bytes(out, m->text);
    end(out, at);
}

span_status msg_decode_response(struct slice body, struct arena *a, struct range_response *m)
{
    struct cursor c = cursor_of(body);
    *m = (struct range_response){0};
    m->request_id = dec_u64(&c);
    m->op = dec_u8(&c);
    m->status = dec_u16(&c);
    m->range = dec_u64(&c);
    m->generation = dec_u64(&c);
    m->term = dec_u64(&c);
    m->leader = dec_u32(&c);
    m->seen = dec_ts(&c);
    m->ts = dec_ts(&c);
    m->txn_state = dec_u8(&c);
    m->row_count = dec_count(&c, 3);
    m->rows = arena_alloc(a, (m->row_count + 1) * sizeof *m->rows);
    for (size_t i = 0; i < m->row_count; i++) {
        m->rows[i].span = (uint32_t)dec_var(&c);
        m->rows[i].key = dec_bytes(&c);
        m->rows[i].value = dec_bytes(&c);
    }
    m->resume_count = dec_count(&c, 2);
    m->resumes = arena_alloc(a, (m->resume_count + 1) * sizeof *m->resumes);
    for (size_t i = 0; i < m->resume_count; i++) {
        m->resumes[i].span = (uint32_t)dec_var(&c);
        m->resumes[i].key = dec_bytes(&c);
    }
    m->descriptors = dec_descriptors(&c, a, &m->descriptor_count);
    m->text = dec_bytes(&c);
    return finish(&c);
}

/* ---- between ranges ---- */

void msg_encode_vote(struct buf *out, const struct txn_vote *m)
{
    size_t at = begin(out, MSG_VOTE);
    enc_bytes(out, m->coordinator);
    enc_u8(out, m->hops);
    enc_txn_id(out, &m->txn);
    enc_bytes(out, m->participant);
    enc_u64(out, m->range);
    enc_u32(out, m->node);
    enc_bool(out, m->yes);
    enc_ts(out, m->prepare_ts);
    enc_u16(out, m->status);
    end(out, at);
}

span_status msg_decode_vote(struct slice body, struct txn_vote *m)
{
    struct cursor c = cursor_of(body);
    *m = (struct txn_vote){0};
    m->coordinator = dec_key(&c);
    m->hops = dec_u8(&c);
    m->txn = dec_txn_id(&c);
    m->participant = dec_key(&c);
    m->range = dec_u64(&c);
    m->node = dec_u32(&c);
    m->yes = dec_bool(&c);
    m->prepare_ts = dec_ts(&c);
    m->status = dec_u16(&c);
    return finish(&c);
}

void msg_encode_outcome(struct buf *out, const struct txn_outcome *m)
{
    size_t at = begin(out, MSG_OUTCOME);
    enc_bytes(out, m->participant);
    enc_u8(out, m->hops);
    enc_txn_id(out, &m->txn);
    enc_bool(out, m->commit);
    enc_ts(out, m->ts);
    enc_bytes(out, m->coordinator);
    enc_u32(out, m->node);
    end(out, at);
}

span_status msg_decode_outcome(struct slice body, struct txn_outcome *m)
{
    struct cursor c = cursor_of(body);
    *m = (struct txn_outcome){0};
    m->participant = dec_key(&c);
    m->hops = dec_u8(&c);
    m->txn = dec_txn_id(&c);
    m->commit = dec_bool(&c);
    m->ts = dec_ts(&c);
    m->coordinator = dec_key(&c);
    m->node = dec_u32(&c);
    if (m->commit == tt_is_none(m->ts)) {
        return SPAN_PROTOCOL;
    }
    return finish(&c);
}

void msg_encode_outcome_ack(struct buf *out, const struct txn_outcome_ack *m)
{
    size_t at = begin(out, MSG_OUTCOME_ACK);
    enc_bytes(out, m->coordinator);
    enc_u8(out, m->hops);
    enc_txn_id(out, &m->txn);
    enc_bytes(out, m->participant);
    end(out, at);
}

span_status msg_decode_outcome_ack(struct slice body, struct txn_outcome_ack *m)
{
    struct cursor c = cursor_of(body);
    *m = (struct txn_outcome_ack){0};
    m->coordinator = dec_key(&c);
    m->hops = dec_u8(&c);
    m->txn = dec_txn_id(&c);
    m->participant = dec_key(&c);
    return finish(&c);
}

void msg_encode_query(struct buf *out, uint8_t kind, const struct txn_query *m)
{
    size_t at = begin(out, kind);
    enc_bytes(out, m->coordinator);
    enc_u8(out, m->hops);
    enc_txn_id(out, &m->txn);
    enc_bytes(out, m->participant);
    enc_u32(out, m->node);
    enc_txn_id(out, &m->by);
    end(out, at);
}

span_status msg_decode_query(struct slice body, struct txn_query *m)
{
    struct cursor c = cursor_of(body);
    *m = (struct txn_query){0};
    m->coordinator = dec_key(&c);
    m->hops = dec_u8(&c);
    m->txn = dec_txn_id(&c);
    m->participant = dec_key(&c);
    m->node = dec_u32(&c);
    m->by = dec_txn_id(&c);
    return finish(&c);
}

void msg_encode_wounded(struct buf *out, const struct txn_wounded *m)
{
    size_t at = begin(out, MSG_WOUNDED);
    enc_u64(out, m->incarnation);
    enc_u64(out, m->range);
    enc_txn_id(out, &m->txn);
    enc_u16(out, m->status);
    end(out, at);
}

span_status msg_decode_wounded(struct slice body, struct txn_wounded *m)
{
    struct cursor c = cursor_of(body);
    *m = (struct txn_wounded){0};
    m->incarnation = dec_u64(&c);
    m->range = dec_u64(&c);
    m->txn = dec_txn_id(&c);
    m->status = dec_u16(&c);
    return finish(&c);
}

void msg_encode_keepalive(struct buf *out, const struct keepalive *m)
{
    size_t at = begin(out, MSG_KEEPALIVE);
    enc_u32(out, m->gateway);
    enc_u64(out, m->incarnation);
    enc_var(out, m->count);
    for (size_t i = 0; i < m->count; i++) {
        enc_txn_id(out, &m->txns[i]);
    }
    end(out, at);
}

span_status msg_decode_keepalive(struct slice body, struct arena *a, struct keepalive *m)
{
    struct cursor c = cursor_of(body);
    *m = (struct keepalive){0};
    m->gateway = dec_u32(&c);
    m->incarnation = dec_u64(&c);
    m->count = dec_count(&c, 16);
    m->txns = arena_alloc(a, (m->count + 1) * sizeof *m->txns);
    for (size_t i = 0; i < m->count; i++) {
        m->txns[i] = dec_txn_id(&c);
    }
    return finish(&c);
}

/* ---- node pair ---- */

void msg_encode_heartbeat(struct buf *out, const struct heartbeat *m)
{
    size_t at = begin(out, MSG_HEARTBEAT);
    enc_u32(out, m->from);
    enc_interval(out, &m->sent);
    enc_u64(out, m->seq);
    enc_ts(out, m->lease_end);
    enc_ts(out, m->closed);
    enc_bool(out, m->unfit);
    enc_u32(out, m->replicas);
    enc_u64(out, m->nodes_version);
    enc_var(out, m->count);
    for (size_t i = 0; i < m->count; i++) {
        const struct heartbeat_range *r = &m->ranges[i];
        enc_var(out, r->range);
        enc_var(out, r->term);
        enc_var(out, r->last_index);
        enc_var(out, r->commit);
        enc_u8(out, (uint8_t)((r->lease ? 1 : 0) | (r->closed ? 2 : 0)));
        enc_var(out, r->closed_index);
    }
    end(out, at);
}

span_status msg_decode_heartbeat(struct slice body, struct arena *a, struct heartbeat *m)
{
    struct cursor c = cursor_of(body);
    *m = (struct heartbeat){0};
    m->from = dec_u32(&c);
    m->sent = dec_interval(&c);
    m->seq = dec_u64(&c);
    m->lease_end = dec_ts(&c);
    m->closed = dec_ts(&c);
    m->unfit = dec_bool(&c);
    m->replicas = dec_u32(&c);
    m->nodes_version = dec_u64(&c);
    m->count = dec_count(&c, 6);
    m->ranges = arena_alloc(a, (m->count + 1) * sizeof *m->ranges);
    for (size_t i = 0; i < m->count; i++) {
        struct heartbeat_range *r = &m->ranges[i];
        r->range = dec_var(&c);
        r->term = dec_var(&c);
        r->last_index = dec_var(&c);
        r->commit = dec_var(&c);
        uint8_t flags = dec_u8(&c);
        r->lease = (flags & 1) != 0;
        r->closed = (flags & 2) != 0;
        r->closed_index = dec_var(&c);
        if (flags > 3) {
            c.bad = true;
        }
    }
    return finish(&c);
}

void msg_encode_heartbeat_ack(struct buf *out, const struct heartbeat_ack *m)
{
    size_t at = begin(out, MSG_HEARTBEAT_ACK);
    enc_u32(out, m->from);
    enc_interval(out, &m->sent);
    enc_interval(out, &m->echo_sent);
    enc_u64(out, m->seq);
    enc_var(out, m->count);
    for (size_t i = 0; i < m->count; i++) {
        const struct heartbeat_ack_range *r = &m->ranges[i];
        enc_var(out, r->range);
        enc_u8(out, (uint8_t)((r->known ? 1 : 0) | (r->behind ? 2 : 0) | (r->ahead ? 4 : 0)));
        enc_var(out, r->term);
        enc_ts(out, r->promised);
        enc_var(out, r->match);
        enc_var(out, r->accepted);
        enc_var(out, r->last_index);
    }
    end(out, at);
}

span_status msg_decode_heartbeat_ack(struct slice body, struct arena *a, struct heartbeat_ack *m)
{
    struct cursor c = cursor_of(body);
    *m = (struct heartbeat_ack){0};
    m->from = dec_u32(&c);
    m->sent = dec_interval(&c);
    m->echo_sent = dec_interval(&c);
    m->seq = dec_u64(&c);
    m->count = dec_count(&c, 14);
    m->ranges = arena_alloc(a, (m->count + 1) * sizeof *m->ranges);
    for (size_t i = 0; i < m->count; i++) {
        struct heartbeat_ack_range *r = &m->ranges[i];
        r->range = dec_var(&c);
        uint8_t flags = dec_u8(&c);
        r->known = (flags & 1) != 0;
        r->behind = (flags & 2) != 0;
        r->ahead = (flags & 4) != 0;
        r->term = dec_var(&c);
        r->promised = dec_ts(&c);
        r->match = dec_var(&c);
        r->accepted = dec_var(&c);
        r->last_index = dec_var(&c);
        if (flags > 7) {
            c.bad = true;
        }
    }
    return finish(&c);
}

/* ---- questions to a node ---- */

void msg_encode_node_request(struct buf *out, const struct node_request *m)
{
    size_t at = begin(out, MSG_NODE_REQUEST);
    enc_u8(out, m->op);
    enc_u64(out, m->request_id);
    enc_u32(out, m->gateway);
    enc_u32(out, m->arg);
    enc_bytes(out, m->text);
    end(out, at);
}

span_status msg_decode_node_request(struct slice body, struct node_request *m)
{
    struct cursor c = cursor_of(body);
    *m = (struct node_request){0};
    m->op = dec_u8(&c);
    m->request_id = dec_u64(&c);
    m->gateway = dec_u32(&c);
    m->arg = dec_u32(&c);
    m->text = dec_bytes(&c);
    return finish(&c);
}

void msg_encode_node_response(struct buf *out, const struct node_response *m)
{
    size_t at = begin(out, MSG_NODE_RESPONSE);
    enc_u64(out, m->request_id);
    enc_u32(out, m->node);
    enc_u16(out, m->status);
    enc_bytes(out, m->text);
    enc_descriptors(out, m->descriptors, m->descriptor_count);
    enc_u32(out, m->columns);
    enc_var(out, m->cell_count);
    for (size_t i = 0; i < m->cell_count; i++) {
        enc_bool(out, m->cells[i].data != NULL);
        if (m->cells[i].data != NULL) {
            enc_bytes(out, m->cells[i]);
        }
    }
    end(out, at);
}

span_status msg_decode_node_response(struct slice body, struct arena *a, struct node_response *m)
{
    struct cursor c = cursor_of(body);
    *m = (struct node_response){0};
    m->request_id = dec_u64(&c);
    m->node = dec_u32(&c);
    m->status = dec_u16(&c);
    m->text = dec_bytes(&c);
    m->descriptors = dec_descriptors(&c, a, &m->descriptor_count);
    m->columns = dec_u32(&c);
    m->cell_count = dec_count(&c, 1);
    m->cells = arena_alloc(a, (m->cell_count + 1) * sizeof *m->cells);
    for (size_t i = 0; i < m->cell_count; i++) {
        if (dec_bool(&c)) {
            m->cells[i] = dec_bytes(&c);
        }
    }
    if (m->cell_count > 0 && (m->columns == 0 || m->cell_count % m->columns != 0)) {
        return SPAN_PROTOCOL;
    }
    return finish(&c);
}

void msg_encode_range_bytes(struct buf *out, uint8_t kind, range_id range, struct slice bytes)
{
    size_t at = begin(out, kind);
    enc_u64(out, range);
    buf_append_slice(out, bytes);
    end(out, at);
}

span_status msg_decode_range_bytes(struct slice body, range_id *range, struct slice *bytes)
{
    struct cursor c = cursor_of(body);
    *range = dec_u64(&c);
    *bytes = dec_raw(&c, cursor_left(&c));
    return finish(&c);
}

/* ---- commands ---- */

static struct cursor command_of(struct slice in)
{
    struct cursor c = cursor_of(in);
    if (dec_u8(&c) != COMMAND_VERSION) {
        c.bad = true;
    }
    return c;
}

void cmd_encode_open(struct buf *out, const struct cmd_open *c)
{
    enc_u8(out, COMMAND_VERSION);
    enc_ts(out, c->floor);
}

span_status cmd_decode_open(struct slice in, struct cmd_open *c)
{
    struct cursor cur = command_of(in);
    c->floor = dec_ts(&cur);
    return finish(&cur);
}

void cmd_encode_commit(struct buf *out, const struct cmd_commit *c)
{
    enc_u8(out, COMMAND_VERSION);
    enc_ts(out, c->ts);
    enc_txn_id(out, &c->txn);
    enc_writes(out, c->writes, c->write_count);
}

span_status cmd_decode_commit(struct slice in, struct arena *a, struct cmd_commit *c)
{
    struct cursor cur = command_of(in);
    *c = (struct cmd_commit){0};
    c->ts = dec_ts(&cur);
    c->txn = dec_txn_id(&cur);
    c->writes = dec_writes(&cur, a, &c->write_count);
    return txn_id_is_none(&c->txn) || tt_is_none(c->ts) ? SPAN_PROTOCOL : finish(&cur);
}

void cmd_encode_prepare(struct buf *out, const struct cmd_prepare *c)
{
    enc_u8(out, COMMAND_VERSION);
    enc_ts(out, c->prepare_ts);
    enc_txn_id(out, &c->txn);
    enc_txn_id(out, &c->age);
    enc_bytes(out, c->anchor);
    enc_bytes(out, c->coordinator);
    enc_u32(out, c->coordinator_node);
    enc_writes(out, c->writes, c->write_count);
    enc_var(out, c->lock_count);
    for (size_t i = 0; i < c->lock_count; i++) {
        enc_span(out, &c->locks[i].span);
        enc_u8(out, c->locks[i].mode);
    }
}

span_status cmd_decode_prepare(struct slice in, struct arena *a, struct cmd_prepare *c)
{
    struct cursor cur = command_of(in);
    *c = (struct cmd_prepare){0};
    c->prepare_ts = dec_ts(&cur);
    c->txn = dec_txn_id(&cur);
    c->age = dec_txn_id(&cur);
    c->anchor = dec_key(&cur);
    c->coordinator = dec_key(&cur);
    c->coordinator_node = dec_u32(&cur);
    c->writes = dec_writes(&cur, a, &c->write_count);
    c->lock_count = dec_count(&cur, 3);
    c->locks = arena_alloc(a, (c->lock_count + 1) * sizeof *c->locks);
    for (size_t i = 0; i < c->lock_count; i++) {
        c->locks[i].span = dec_span(&cur);
        c->locks[i].mode = dec_u8(&cur);
        if (c->locks[i].mode != LOCK_SHARED && c->locks[i].mode != LOCK_EXCLUSIVE) {
            cur.bad = true;
        }
    }
    return txn_id_is_none(&c->txn) || tt_is_none(c->prepare_ts) ? SPAN_PROTOCOL : finish(&cur);
}

void cmd_encode_decision(struct buf *out, const struct cmd_decision *c)
{
    enc_u8(out, COMMAND_VERSION);
    enc_ts(out, c->ts);
    enc_txn_id(out, &c->txn);
    enc_bool(out, c->commit);
    enc_bytes(out, c->anchor);
    enc_writes(out, c->writes, c->write_count);
    enc_participants(out, c->participants, c->participant_count);
}

span_status cmd_decode_decision(struct slice in, struct arena *a, struct cmd_decision *c)
{
    struct cursor cur = command_of(in);
    *c = (struct cmd_decision){0};
    c->ts = dec_ts(&cur);
    c->txn = dec_txn_id(&cur);
    c->commit = dec_bool(&cur);
    c->anchor = dec_key(&cur);
    c->writes = dec_writes(&cur, a, &c->write_count);
    c->participants = dec_participants(&cur, a, &c->participant_count);
    return txn_id_is_none(&c->txn) || c->commit == tt_is_none(c->ts) ? SPAN_PROTOCOL : finish(&cur);
}

void cmd_encode_outcome(struct buf *out, const struct cmd_outcome *c)
{
    enc_u8(out, COMMAND_VERSION);
    enc_ts(out, c->ts);
    enc_txn_id(out, &c->txn);
    enc_bool(out, c->commit);
}

span_status cmd_decode_outcome(struct slice in, struct cmd_outcome *c)
{
    struct cursor cur = command_of(in);
    *c = (struct cmd_outcome){0};
    c->ts = dec_ts(&cur);
    c->txn = dec_txn_id(&cur);
    c->commit = dec_bool(&cur);
    return c->commit == tt_is_none(c->ts) ? SPAN_PROTOCOL : finish(&cur);
}

void cmd_encode_resolved(struct buf *out, const struct cmd_resolved *c)
{
    enc_u8(out, COMMAND_VERSION);
    enc_var(out, c->count);
    for (size_t i = 0; i < c->count; i++) {
        enc_txn_id(out, &c->txns[i]);
    }
}

span_status cmd_decode_resolved(struct slice in, struct arena *a, struct cmd_resolved *c)
{
    struct cursor cur = command_of(in);
    c->count = dec_count(&cur, 16);
    c->txns = arena_alloc(a, (c->count + 1) * sizeof *c->txns);
    for (size_t i = 0; i < c->count; i++) {
        c->txns[i] = dec_txn_id(&cur);
    }
    return finish(&cur);
}

void cmd_encode_maintain(struct buf *out, const struct cmd_maintain *c)
{
    enc_u8(out, COMMAND_VERSION);
    enc_ts(out, c->watermark);
    enc_ts(out, c->horizon);
}

span_status cmd_decode_maintain(struct slice in, struct cmd_maintain *c)
{
    struct cursor cur = command_of(in);
    c->watermark = dec_ts(&cur);
    c->horizon = dec_ts(&cur);
    return finish(&cur);
}

void cmd_encode_split(struct buf *out, const struct cmd_split *c)
{
    enc_u8(out, COMMAND_VERSION);
    enc_bytes(out, c->key);
    enc_u64(out, c->right);
    enc_u64(out, c->generation);
    enc_ts(out, c->floor);
}

span_status cmd_decode_split(struct slice in, struct cmd_split *c)
{
    struct cursor cur = command_of(in);
    c->key = dec_key(&cur);
    c->right = dec_u64(&cur);
    c->generation = dec_u64(&cur);
    c->floor = dec_ts(&cur);
    return c->key.size == 0 || c->right == 0 ? SPAN_PROTOCOL : finish(&cur);
}

void cmd_encode_freeze(struct buf *out, const struct cmd_freeze *c)
{
    enc_u8(out, COMMAND_VERSION);
    enc_bool(out, c->undo);
    enc_u64(out, c->left);
    enc_u64(out, c->token);
    enc_bytes(out, c->left_start);
}

span_status cmd_decode_freeze(struct slice in, struct cmd_freeze *c)
{
    struct cursor cur = command_of(in);
    c->undo = dec_bool(&cur);
    c->left = dec_u64(&cur);
    c->token = dec_u64(&cur);
    c->left_start = dec_key(&cur);
    return c->left == 0 || c->token == 0 ? SPAN_PROTOCOL : finish(&cur);
}

void cmd_encode_merge(struct buf *out, const struct cmd_merge *c)
{
    enc_u8(out, COMMAND_VERSION);
    enc_bool(out, c->undo);
    enc_u64(out, c->right);
    enc_u64(out, c->token);
    enc_u64(out, c->generation);
    enc_u64(out, c->freeze_index);
    enc_u64(out, c->freeze_term);
    enc_ts(out, c->floor);
}

span_status cmd_decode_merge(struct slice in, struct cmd_merge *c)
{
    struct cursor cur = command_of(in);
    c->undo = dec_bool(&cur);
    c->right = dec_u64(&cur);
    c->token = dec_u64(&cur);
    c->generation = dec_u64(&cur);
    c->freeze_index = dec_u64(&cur);
    c->freeze_term = dec_u64(&cur);
    c->floor = dec_ts(&cur);
    bool bad = c->right == 0 || c->token == 0 || c->generation <= c->token;
    return bad ? SPAN_PROTOCOL : finish(&cur);
}

struct tt_ts cmd_peek_ts(uint8_t type, struct slice in)
{
    struct cursor cur = command_of(in);
    struct tt_ts ts = dec_ts(&cur);
    bool has = type == CMD_COMMIT1 || type == CMD_PREPARE || type == CMD_DECISION;
    return has && cursor_ok(&cur) ? ts : tt_ts_of(0);
}
