/* receivers: opens many WebSockets, says one thing on each, then counts the messages that hold a marker.
 *
 *   receivers PORT PATH COUNT HELLO READY MARKER EXPECTED SECONDS
 *
 * HELLO is sent as text on each connection once it is open ("" for nothing); "%d" in it becomes the connection's
 * number from 0. A connection is ready when a message holds READY ("" for: when it is open). Prints
 * {"ready": n} when all are, then counts messages that hold MARKER until EXPECTED came or SECONDS passed, and prints
 * one line of JSON: received, bytes (of counted messages' payloads), last_ns (CLOCK_MONOTONIC of the last one),
 * closed, cpu_s. Loopback only. One thread, epoll, no dependencies. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
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

static void die(const char *what) { perror(what); exit(2); }

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void send_all(int fd, const void *data, size_t size) {
    if (send(fd, data, size, MSG_NOSIGNAL) != (ssize_t)size) die("send");   /* small, on a fresh connection */
}

static void start_connection(int number) {
    struct connection *c = &connections[number];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = number};
    char request[512];
    int one = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if ((c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) < 0) die("socket");
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event);
    send_all(c->fd, request, snprintf(request, sizeof request,
        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", path, port));
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
    if (memmem(data, size, marker, strlen(marker))) { received++; received_bytes += size; last_ns = now_ns(); }
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

int main(int argc, char **argv) {
    struct rlimit files;
    struct rusage usage;
    if (argc != 9) { fprintf(stderr, "usage: receivers PORT PATH COUNT HELLO READY MARKER EXPECTED SECONDS\n"); return 2; }
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
    end = now_ns() + seconds * 1000000000LL;
    /* Never sleeps: waking a sleeping reader would be billed to the sender, and in life readers are on other machines. */
    while (received < expected && closed < count && now_ns() < end) poll_once(0);
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"received\": %lld, \"bytes\": %lld, \"last_ns\": %lld, \"closed\": %d, \"cpu_s\": %.3f}\n", received,
        received_bytes, last_ns, closed, usage.ru_utime.tv_sec + usage.ru_stime.tv_sec
        + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
    return 0;
}
