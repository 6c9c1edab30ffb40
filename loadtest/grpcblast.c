/* grpcblast: a cheap gRPC load generator for unary calls over plaintext HTTP/2.

   It costs a few microseconds of CPU per request, so that on a small machine the server under test gets the
   cores. The request is a serialized message read from a file, in which every run of 6 or more '@' becomes an
   id that no other request has, and every run of 4 or more '#' becomes random decimal digits:

     python -c "print(IssuePrizeRequest(request_id='@'*16, user_id='user-######', ...).SerializeToString())"

   Several -f messages are sent in turn. With -i NAME the ids are the same in every run with that name, and -w N starts
   them anew after N requests, so that a later run repeats the requests of an earlier one (messages times a whole
   number).

   Closed loop: keeps CONNECTIONS x STREAMS requests in flight. Open loop (-r RATE): sends on schedule, at equal
   distances or (-P) at those of a Poisson process, and a late send counts from the time at which it was due (no
   coordinated omission); sent_late_ms says how late they were on average. With a deadline (-T SECONDS) it does what any
   gRPC client does: each call says how long it may take from when it was due, and what could not be sent by then,
   because the server allows no more streams, is dropped and counted as expired.

   Answers are counted by grpc-status and, where OK, by the field number of the first field in the message, so
   that a response whose outcome is a oneof is counted by outcome. Prints one JSON object.

   Build: apt-get install libnghttp2-dev; cc -O2 -o grpcblast grpcblast.c -lnghttp2 -lm */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define FIELDS_MAX 16
#define STATUS_MAX 17
#define SPOTS_MAX 8192
#define MESSAGES_MAX 128
#define FINE_BUCKETS 40000 /* of latency: in 5 us steps below 200 ms, */
#define BUCKETS 100000 /* then in 1 ms steps */
#define WAKE_SECONDS 200e-6 /* on a schedule it sends so often at most, what is due by then together */

typedef struct { size_t at, len; int unique; } Spot;
typedef struct { uint8_t *body; size_t len, sent; double due; int status; int field; size_t got; uint8_t head[16]; } Call;
typedef struct { int fd; nghttp2_session *h2; int inflight; int dead; } Conn;

typedef struct { uint8_t *body; size_t len; Spot spots[SPOTS_MAX]; int spot_count; } Message;

static Message *messages[MESSAGES_MAX]; static int message_count; static long wrap;
static const char *authority, *path, *extra_name, *extra_value;
static long done, started, total, expired, refused, statuses[STATUS_MAX + 1], fields[FIELDS_MAX + 1], broken;
static long hist[BUCKETS], ok_hist[BUCKETS], ok_done; static double deadline, late_sum, lat_sum, lat_max, ok_lat_sum, ok_lat_max;
static uint64_t rng = 88172645463325252ULL, id_prefix, id_counter;

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
static uint64_t next_random(void) { rng ^= rng << 13; rng ^= rng >> 7; rng ^= rng << 17; return rng; }
static void die(const char *what) { fprintf(stderr, "grpcblast: %s: %s\n", what, strerror(errno)); exit(2); }

static void record(double seconds, int ok) {
  double us = seconds * 1e6;
  long b = us < FINE_BUCKETS * 5 ? (long)(us / 5) : FINE_BUCKETS + (long)((us - FINE_BUCKETS * 5) / 1000);
  lat_sum += seconds;
  if (seconds > lat_max) lat_max = seconds;
  hist[b < BUCKETS ? b : BUCKETS - 1]++;
  if (!ok) return;
  ok_lat_sum += seconds;
  if (seconds > ok_lat_max) ok_lat_max = seconds;
  ok_done++; ok_hist[b < BUCKETS ? b : BUCKETS - 1]++;
}
static double percentile_of(const long *h, long count, double max, double p) {
  long want = (long)(p * count + 0.5), seen = 0;
  for (long b = 0; b < BUCKETS; b++) {
    seen += h[b];
    if (seen >= want && h[b]) return fmin(max * 1e3, b < FINE_BUCKETS ? (b + 1) * 0.005 : FINE_BUCKETS * 0.005 + (b - FINE_BUCKETS + 1));
  }
  return max * 1e3;
}
static double percentile_ms(double p) { return percentile_of(hist, done, lat_max, p); }
static double ok_percentile_ms(double p) { return percentile_of(ok_hist, ok_done, ok_lat_max, p); }

static void find_spots(Message *m) {
  for (size_t i = 5; i < m->len;) {
    uint8_t c = m->body[i]; size_t j = i;
    if (c == '@' || c == '#') { while (j < m->len && m->body[j] == c) j++; } else { i++; continue; }
    if ((c == '@' && j - i >= 6) || (c == '#' && j - i >= 4)) {
      if (m->spot_count == SPOTS_MAX) { fprintf(stderr, "grpcblast: too many marked runs\n"); exit(2); }
      m->spots[m->spot_count++] = (Spot){i, j - i, c == '@'};
    }
    i = j;
  }
}
static void read_message(const char *file) {
  if (message_count == MESSAGES_MAX) { fprintf(stderr, "grpcblast: too many messages\n"); exit(2); }
  Message *m = messages[message_count++] = calloc(1, sizeof *m);
  FILE *in = fopen(file, "rb"); if (!in) die(file);
  m->body = malloc(5 + (16 << 20)); size_t n = fread(m->body + 5, 1, 16 << 20, in); fclose(in);
  m->len = n + 5; m->body = realloc(m->body, m->len); m->body[0] = 0; for (int i = 0; i < 4; i++) m->body[1 + i] = n >> (24 - 8 * i);
  find_spots(m);
}
static void fill(uint8_t *body, const Message *m) {
  static const char digit[] = "0123456789abcdefghijklmnopqrstuv";
  memcpy(body, m->body, m->len);
  for (int s = 0; s < m->spot_count; s++) {
    const Spot *spot = &m->spots[s];
    uint64_t v = spot->unique ? id_counter++ : next_random();
    uint64_t prefix = id_prefix;
    for (size_t k = spot->len; k-- > 0;) {
      if (spot->unique) {
        if (k + 8 >= spot->len) { body[spot->at + k] = digit[v & 31]; v >>= 5; }
        else { body[spot->at + k] = digit[prefix & 31]; prefix = prefix >> 5 | prefix << 59; }
      } else { body[spot->at + k] = '0' + v % 10; v /= 10; }
    }
  }
}

static ssize_t read_body(nghttp2_session *h2, int32_t id, uint8_t *buf, size_t len, uint32_t *flags, nghttp2_data_source *src, void *user) {
  (void)h2; (void)id; (void)user; Call *call = src->ptr; size_t left = call->len - call->sent;
  if (len > left) len = left;
  memcpy(buf, call->body + call->sent, len); call->sent += len;
  if (call->sent == call->len) *flags |= NGHTTP2_DATA_FLAG_EOF;
  return (ssize_t)len;
}
#define NV(n, v) { (uint8_t *)(n), (uint8_t *)(v), strlen(n), strlen(v), NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE }
static void submit(Conn *conn, double due) {
  const Message *m = messages[started % message_count];
  if (wrap && started % wrap == 0) id_counter = 0;
  Call *call = calloc(1, sizeof *call); call->body = malloc(m->len); call->len = m->len; call->status = -1; call->due = due; fill(call->body, m);
  nghttp2_nv nv[8] = {NV(":method", "POST"), NV(":scheme", "http"), NV(":path", path), NV(":authority", authority),
                      NV("te", "trailers"), NV("content-type", "application/grpc")};
  size_t fields_sent = 6; char left[24];
  if (extra_name) nv[fields_sent++] = (nghttp2_nv)NV(extra_name, extra_value);
  if (deadline > 0) { /* copied by nghttp2: `left` ends with this function */
    long ms = (long)((due + deadline - now()) * 1e3); snprintf(left, sizeof left, "%ldm", ms > 0 ? ms : 0);
    nv[fields_sent] = (nghttp2_nv)NV("grpc-timeout", left); nv[fields_sent++].flags = NGHTTP2_NV_FLAG_NONE;
  }
  nghttp2_data_provider data = {.source = {.ptr = call}, .read_callback = read_body};
  if (nghttp2_submit_request(conn->h2, NULL, nv, fields_sent, &data, call) < 0) die("submit");
  conn->inflight++; started++;
}

static int on_header(nghttp2_session *h2, const nghttp2_frame *f, const uint8_t *n, size_t nl, const uint8_t *v, size_t vl, uint8_t flags, void *user) {
  (void)flags; (void)user;
  if (nl == 11 && !memcmp(n, "grpc-status", 11)) {
    Call *call = nghttp2_session_get_stream_user_data(h2, f->hd.stream_id);
    char s[8] = {0}; memcpy(s, v, vl < 7 ? vl : 7); if (call) call->status = atoi(s);
  }
  return 0;
}
static int on_data(nghttp2_session *h2, uint8_t flags, int32_t id, const uint8_t *data, size_t len, void *user) {
  (void)flags; (void)user; Call *call = nghttp2_session_get_stream_user_data(h2, id);
  if (!call) return 0;
  for (size_t i = 0; i < len && call->got + i < sizeof call->head; i++) call->head[call->got + i] = data[i];
  call->got += len;
  return 0;
}
static int on_close(nghttp2_session *h2, int32_t id, uint32_t code, void *user) {
  Conn *conn = user; Call *call = nghttp2_session_get_stream_user_data(h2, id);
  if (!call) return 0;
  record(now() - call->due, !code && !call->status); done++; conn->inflight--;
  if (code == NGHTTP2_REFUSED_STREAM) refused++; /* not looked at: clients may repeat it at once */
  else if (code || call->status < 0) broken++;
  else { statuses[call->status < STATUS_MAX ? call->status : STATUS_MAX]++;
    if (!call->status) { int f = call->got > 5 ? call->head[5] >> 3 : 0; fields[f < FIELDS_MAX ? f : FIELDS_MAX]++; } }
  free(call->body); free(call);
  return 0;
}
static void flush_out(Conn *c) {
  const uint8_t *out; ssize_t n;
  while ((n = nghttp2_session_mem_send(c->h2, &out)) > 0) {
    for (ssize_t off = 0; off < n;) {
      ssize_t w = write(c->fd, out + off, n - off);
      if (w < 0) { if (errno == EAGAIN) { usleep(50); continue; } c->dead = 1; return; }
      off += w;
    }
  }
}
static void open_conn(Conn *c, const char *host, int port) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
  if (inet_pton(AF_INET, host, &a.sin_addr) != 1) { fprintf(stderr, "grpcblast: the target is IPv4:port\n"); exit(2); }
  c->fd = socket(AF_INET, SOCK_STREAM, 0); int one = 1;
  if (connect(c->fd, (void *)&a, sizeof a)) die("connect");
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); fcntl(c->fd, F_SETFL, O_NONBLOCK);
  nghttp2_session_callbacks *cb; nghttp2_session_callbacks_new(&cb);
  nghttp2_session_callbacks_set_on_header_callback(cb, on_header);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cb, on_data);
  nghttp2_session_callbacks_set_on_stream_close_callback(cb, on_close);
  nghttp2_session_client_new(&c->h2, cb, c); nghttp2_session_callbacks_del(cb);
  nghttp2_settings_entry iv[] = {{NGHTTP2_SETTINGS_ENABLE_PUSH, 0}, {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1 << 20}};
  nghttp2_submit_settings(c->h2, 0, iv, 2);
  nghttp2_session_set_local_window_size(c->h2, 0, 0, 1 << 26); flush_out(c);
}
/* epoll_wait counts in milliseconds, which would send late by half of one, and in bursts. */
static void wake_at(int timer, double seconds) {
  struct itimerspec when = {.it_value = {.tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - floor(seconds)) * 1e9)}};
  if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL)) die("timerfd_settime");
}
static void usage(void) {
  fprintf(stderr, "usage: grpcblast -t 127.0.0.1:PORT -p /package.Service/Method -f MESSAGE_FILE [-f ...]\n"
                  "       [-c CONNECTIONS=8] [-s STREAMS_EACH=16] [-n REQUESTS=10000] [-d SECONDS] [-r RATE [-P]] [-T DEADLINE_SECONDS] [-i NAME] [-w REQUESTS]\n       [-H name:value]\n"); exit(2);
}
int main(int argc, char **argv) {
  int conns = 8, streams = 16, at_random = 0, opt; double seconds = 0, rate = 0; const char *target = 0, *name = 0; total = 10000;
  while ((opt = getopt(argc, argv, "t:p:f:c:s:n:d:r:PT:i:w:H:")) != -1) switch (opt) {
    case 't': target = optarg; break; case 'p': path = optarg; break; case 'f': read_message(optarg); break; case 'i': name = optarg; break; case 'w': wrap = atol(optarg); break;
    case 'c': conns = atoi(optarg); break; case 's': streams = atoi(optarg); break; case 'n': total = atol(optarg); break;
    case 'd': seconds = atof(optarg); break; case 'r': rate = atof(optarg); break; case 'P': at_random = 1; break; case 'T': deadline = atof(optarg); break;
    case 'H': { char *colon = strchr(optarg, ':'); if (!colon) usage(); *colon = 0; extra_name = optarg; extra_value = colon + 1; break; }
    default: usage(); }
  if (!target || !path || !message_count || conns < 1 || streams < 1) usage();
  authority = strdup(target); char *colon = strchr((char *)target, ':'); if (!colon) usage(); *colon = 0;
  struct timespec t; clock_gettime(CLOCK_REALTIME, &t); rng ^= t.tv_nsec * 2654435761ULL ^ (uint64_t)getpid() << 32; next_random(); id_prefix = next_random();
  if (name) { id_prefix = 14695981039346656037ULL; for (; *name; name++) id_prefix = (id_prefix ^ (uint8_t)*name) * 1099511628211ULL; }
  if (seconds > 0) total = 1L << 60;
  Conn *conn = calloc(conns, sizeof *conn); int ep = epoll_create1(0);
  for (int i = 0; i < conns; i++) { open_conn(&conn[i], target, atoi(colon + 1)); struct epoll_event e = {.events = EPOLLIN, .data.ptr = &conn[i]}; epoll_ctl(ep, EPOLL_CTL_ADD, conn[i].fd, &e); }
  int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK); struct epoll_event tick = {.events = EPOLLIN};
  if (timer < 0 || epoll_ctl(ep, EPOLL_CTL_ADD, timer, &tick)) die("timerfd");
  double begin = now(), next = begin, end = seconds > 0 ? begin + seconds : 1e300; int turn = 0, alive = conns; static uint8_t buf[1 << 18];
  while ((done < started || (started < total && now() < end)) && alive) {
    double time = now();
    if (time > end + 30) break; /* what has not answered 30 s after the end is lost */
    for (int k = 0; k < conns; k++) {
      Conn *c = &conn[(turn + k) % conns]; int wrote = 0;
      uint32_t allowed = nghttp2_session_get_remote_settings(c->h2, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
      while (!c->dead && c->inflight < streams && (uint32_t)c->inflight < allowed && started < total && time < end) {
        double due = rate > 0 ? next : time;
        if (due > time) break;
        if (rate > 0) next = at_random ? next - log(((next_random() >> 11) + 1) * 0x1p-53) / rate : begin + (started + 1) / rate;
        if (deadline > 0 && due + deadline <= time) { started++; done++; expired++; continue; }
        late_sum += now() - due; submit(c, due); wrote = 1;
      }
      if (wrote) flush_out(c);
    }
    turn++;
    if (rate > 0 && time < end) wake_at(timer, fmax(next, time + WAKE_SECONDS));
    struct epoll_event ev[64]; int got = epoll_wait(ep, ev, 64, 100);
    for (int i = 0; i < got; i++) {
      Conn *c = ev[i].data.ptr; ssize_t r = 0;
      if (!c) { uint64_t times; if (read(timer, &times, sizeof times) < 0 && errno != EAGAIN) die("timer"); continue; }
      while (!c->dead && (r = read(c->fd, buf, sizeof buf)) > 0) if (nghttp2_session_mem_recv(c->h2, buf, r) < 0) { c->dead = 1; break; }
      if (r == 0 || (r < 0 && errno != EAGAIN)) c->dead = 1;
      if (c->dead) { epoll_ctl(ep, EPOLL_CTL_DEL, c->fd, NULL); broken += c->inflight; started -= c->inflight; c->inflight = 0; alive--; } else flush_out(c);
    }
  }
  double wall = now() - begin; struct rusage ru; getrusage(RUSAGE_SELF, &ru);
  double cpu = ru.ru_utime.tv_sec + ru.ru_stime.tv_sec + (ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) * 1e-6;
  long unanswered = started - done; done -= expired;
  printf("{\"requests\": %ld, \"seconds\": %.3f, \"per_second\": %.1f, \"target_rate\": %.1f, \"unanswered\": %ld, \"broken\": %ld, \"expired\": %ld, \"refused_streams\": %ld, ", done, wall, done / wall, rate, unanswered, broken, expired, refused);
  printf("\"latency_ms\": {\"mean\": %.3f, \"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, \"p999\": %.3f, \"max\": %.3f}, ", done ? lat_sum / done * 1e3 : 0, percentile_ms(.5), percentile_ms(.9), percentile_ms(.99), percentile_ms(.999), lat_max * 1e3);
  printf("\"ok_latency_ms\": {\"mean\": %.3f, \"p50\": %.3f, \"p99\": %.3f, \"max\": %.3f}, ", ok_done ? ok_lat_sum / ok_done * 1e3 : 0, ok_percentile_ms(.5), ok_percentile_ms(.99), ok_lat_max * 1e3);
  if (rate > 0) printf("\"sent_late_ms\": %.3f, ", started > expired ? late_sum / (started - expired) * 1e3 : 0);
  printf("\"grpc_status\": {"); int first = 1; for (int i = 0; i <= STATUS_MAX; i++) if (statuses[i]) { printf("%s\"%d\": %ld", first ? "" : ", ", i, statuses[i]); first = 0; }
  printf("}, \"ok_by_first_field\": {"); first = 1; for (int i = 0; i <= FIELDS_MAX; i++) if (fields[i]) { printf("%s\"%d\": %ld", first ? "" : ", ", i, fields[i]); first = 0; }
  printf("}, \"generator_cpu_us_per_request\": %.2f}\n", done ? cpu / done * 1e6 : 0);
  return broken || unanswered ? 1 : 0;
}
