/* receivers: opens many WebSockets, says one thing on each, then counts the messages that hold a marker.
 *
 *   receivers PORT PATH COUNT HELLO READY MARKER EXPECTED SECONDS [ROUNDS]
 *
 * HELLO is sent as text on each connection once it is open ("" for nothing); "%d" in it, or in PATH, becomes the
 * connection's number from 0. A connection is ready when a message holds READY ("" for: when it is open). Prints
 * {"ready": n} when all are, then counts messages that hold MARKER until EXPECTED came or SECONDS passed, and prints
 * one line of JSON: received, bytes (of counted messages' payloads), last_ns (CLOCK_MONOTONIC of the last one),
 * closed, cpu_s. If a number follows the marker and a blank, it is when the message was to be sent (CLOCK_MONOTONIC, ns),
 * and there are p50_ms, p99_ms and max_ms of how long it took.
 *
 * With ROUNDS ("rounds") EXPECTED is read from stdin instead, a line for each round: a number N, or "paced N" for a round
 * in which the reader sleeps between messages. {"counting": 1} says that it has begun. Loopback only. One thread, epoll, no dependencies.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_AT_ONCE = 64, READ_SIZE = 1 << 18 };

struct connection {
    int fd, is_open, is_ready;
    char *rest;                     /* an unfinished frame, or an unfinished handshake */
    size_t rest_size;
};

static struct connection *connections;
static const char *path, *hello, *ready_text, *marker;
static int port, count, epoll_fd, started, opening, ready, closed;
static long long received, received_bytes, last_ns;

/* latencies: 64 buckets for each power of two, so that a bucket is at most 1.6 % wide */
enum { BUCKETS = 64 };
static long long latencies[64 * BUCKETS * 2], latency_count, latency_max;

static void die(const char *what) { perror(what); exit(2); }

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void note_latency(long long ns) {
    unsigned long long v = ns > 0 ? ns : 0;
    int shift = v < 2 * BUCKETS ? 0 : 57 - __builtin_clzll(v);
    latencies[shift * 2 * BUCKETS + (v >> shift)]++;
    latency_count++;
    if (ns > latency_max) latency_max = ns;
}

static double latency_ms(double quantile) {
    long long below = 0, wanted = latency_count * quantile;
    for (int i = 0; i < 64 * BUCKETS * 2; i++)
        if ((below += latencies[i]) > wanted) return ((long long)(i % (2 * BUCKETS)) << (i / (2 * BUCKETS))) / 1e6;
    return latency_max / 1e6;
}

static void send_all(int fd, const void *data, size_t size) {
    if (send(fd, data, size, MSG_NOSIGNAL) != (ssize_t)size) die("send");   /* small, on a fresh connection */
}

static void start_connection(int number) {
    struct connection *c = &connections[number];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = number};
    char request[1024], target[512];
    int one = 1;
    snprintf(target, sizeof target, path, number);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if ((c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) < 0) die("socket");
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event);
    send_all(c->fd, request, snprintf(request, sizeof request,
        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", target, port));
    opening++;
}

/* a masked frame (RFC 6455 section 5.3) with a mask of zeros */
static void send_frame(int fd, int opcode, const char *data, size_t size) {
    unsigned char frame[2048] = {0x80 | opcode};
    size_t head = size < 126 ? 2 : 4;
    if (size > sizeof frame - 8) { fprintf(stderr, "HELLO is too long\n"); exit(2); }
    if (head == 2) frame[1] = 0x80 | size;
    else { frame[1] = 0x80 | 126; frame[2] = size >> 8; frame[3] = size; }
    memcpy(frame + head + 4, data, size);
    send_all(fd, frame, head + 4 + size);
}

static void say_hello(int number) {
    char text[2000];
    if (!*hello) return;
    send_frame(connections[number].fd, 1, text, snprintf(text, sizeof text, hello, number));
}

static void become_ready(struct connection *c) {
    if (!c->is_ready) { c->is_ready = 1; ready++; opening--; }
}

static void on_message(struct connection *c, int opcode, const char *data, size_t size) {
    if (opcode == 9) { send_frame(c->fd, 10, data, size); return; }
    if (!c->is_ready && memmem(data, size, ready_text, strlen(ready_text))) become_ready(c);
    const char *found = memmem(data, size, marker, strlen(marker));
    if (!found) return;
    received++; received_bytes += size; last_ns = now_ns();
    const char *at = found + strlen(marker), *end = data + size;
    long long planned = 0;
    if (at < end && *at == ' ')
        for (at++; at < end && *at >= '0' && *at <= '9'; at++) planned = planned * 10 + *at - '0';
    if (planned) note_latency(last_ns - planned);
}

/* handles whole frames; how many bytes they took */
static size_t take_frames(struct connection *c, const char *data, size_t size) {
    size_t done = 0;
    while (size - done >= 2) {
        const unsigned char *f = (const unsigned char *)data + done;
        size_t head = 2, length = f[1] & 127;
        if (length == 126) { head = 4; if (size - done < 4) break; length = f[2] << 8 | f[3]; }
        else if (length == 127) {
            head = 10; if (size - done < 10) break;
            length = 0; for (int i = 2; i < 10; i++) length = length << 8 | f[i];
        }
        if (size - done < head + length) break;
        on_message(c, f[0] & 15, data + done + head, length);
        done += head + length;
    }
    return done;
}

static size_t take_handshake(int number, const char *data, size_t size) {
    struct connection *c = &connections[number];
    const char *end = memmem(data, size, "\r\n\r\n", 4);
    if (!end) return 0;
    if (strncmp(data, "HTTP/1.1 101", 12)) { fprintf(stderr, "refused: %.200s\n", data); exit(2); }
    c->is_open = 1;
    say_hello(number);
    if (!*ready_text) become_ready(c);
    return end + 4 - data;
}

static void on_readable(int number) {
    static char buffer[READ_SIZE + 1];
    struct connection *c = &connections[number];
    size_t size = c->rest_size, done = 0;
    memcpy(buffer, c->rest, size);
    ssize_t got = recv(c->fd, buffer + size, READ_SIZE - size, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) { epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, 0); close(c->fd); closed++; return; }
    size += got;
    buffer[size] = 0;
    if (!c->is_open) done = take_handshake(number, buffer, size);
    if (c->is_open) done += take_frames(c, buffer + done, size - done);
    c->rest_size = size - done;
    free(c->rest);
    c->rest = c->rest_size ? memcpy(malloc(c->rest_size), buffer + done, c->rest_size) : NULL;
}

static void poll_once(int timeout_ms) {
    static struct epoll_event events[512];
    int n = epoll_wait(epoll_fd, events, 512, timeout_ms);
    for (int i = 0; i < n; i++) on_readable(events[i].data.u32);
}

static double cpu_s(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void count_messages(long long expected, long long seconds, int wait_ms) {
    long long end = now_ns() + seconds * 1000000000LL;
    double cpu = cpu_s();
    /* Handling what comes between two rounds would count it: there is nothing by then. */
    received = received_bytes = last_ns = latency_count = latency_max = 0;
    memset(latencies, 0, sizeof latencies);
    while (received < expected && closed < count && now_ns() < end) poll_once(wait_ms);
    printf("{\"received\": %lld, \"bytes\": %lld, \"last_ns\": %lld, \"closed\": %d, \"cpu_s\": %.3f", received,
        received_bytes, last_ns, closed, cpu_s() - cpu);
    if (latency_count)
        printf(", \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"max_ms\": %.3f", latency_ms(.5), latency_ms(.99), latency_max / 1e6);
    puts("}");
    fflush(stdout);
}

/* While there is no line yet, what comes (counts, pings) is handled and forgotten. */
static int next_line(char *line, int size) {
    struct pollfd in = {.fd = 0, .events = POLLIN};
    while (poll(&in, 1, 0) == 0) poll_once(20);
    ssize_t got = read(0, line, size - 1);
    if (got <= 0) return 0;
    line[got] = 0;
    return 1;
}

int main(int argc, char **argv) {
    struct rlimit files;
    char line[64];
    if (argc != 9 && argc != 10) {
        fprintf(stderr, "usage: receivers PORT PATH COUNT HELLO READY MARKER EXPECTED SECONDS [ROUNDS]\n");
        return 2;
    }
    port = atoi(argv[1]); path = argv[2]; count = atoi(argv[3]); hello = argv[4]; ready_text = argv[5]; marker = argv[6];
    long long expected = atoll(argv[7]), seconds = atoll(argv[8]), end = now_ns() + 300 * 1000000000LL;
    getrlimit(RLIMIT_NOFILE, &files); files.rlim_cur = files.rlim_max; setrlimit(RLIMIT_NOFILE, &files);
    connections = calloc(count, sizeof *connections);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    while (ready < count && now_ns() < end) {
        while (started < count && opening < MAX_AT_ONCE) start_connection(started++);
        poll_once(100);
    }
    printf("{\"ready\": %d}\n", ready); fflush(stdout);
    /* Never sleeps: waking a sleeping reader would be billed to the sender, and in life readers are on other machines. In
       a paced round it does: it must not keep the publisher from its core. */
    if (argc == 9) { count_messages(expected, seconds, 0); return 0; }
    while (next_line(line, sizeof line)) {
        puts("{\"counting\": 1}"); fflush(stdout);
        int is_paced = !strncmp(line, "paced ", 6);
        count_messages(atoll(line + (is_paced ? 6 : 0)), seconds, is_paced ? 50 : 0);
    }
    return 0;
}
