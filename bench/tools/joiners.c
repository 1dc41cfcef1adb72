/* joiners: opens many WebSockets, says one line of its input on each, and holds them open.
 *
 *   joiners PORT PATH AT_ONCE READY STEP SECONDS < lines
 *
 * Each line is sent as text on a connection of its own, once that is open; the connection has joined when a message
 * holds READY. At most AT_ONCE are on their way at a time. Whenever STEP more have joined it prints
 * {"joined": n, "took_s": s} (s: since the first connect, or since it went on) and pauses until SIGUSR1 comes, answering
 * pings meanwhile. When all have joined it holds them for SECONDS and prints {"closed": n, "pings": n}. Source addresses
 * are 127.0.0.1 and those that follow, 10,000 connections each. Loopback only. One thread, epoll, no dependencies. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { READ_SIZE = 1 << 16, MAX_TEXT = 4096, PER_ADDRESS = 10000 };

struct connection {
    int fd, is_open, has_joined;
    char *hello, *rest;             /* rest: an unfinished frame, or an unfinished handshake */
    size_t rest_size;
};

static struct connection *connections;
static const char *path, *ready_text;
static int port, count, epoll_fd, started, joined, closed, pings;
static volatile sig_atomic_t goes_on;

static void die(const char *what) { perror(what); exit(2); }
static void go_on(int number) { (void)number; goes_on = 1; }

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void send_all(int fd, const void *data, size_t size) {
    if (send(fd, data, size, MSG_NOSIGNAL) != (ssize_t)size) die("send");   /* small, on a socket that is read from */
}

static void start_connection(int number) {
    struct connection *c = &connections[number];
    struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = number};
    char request[1024];
    int one = 1;
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + number / PER_ADDRESS);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if ((c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) < 0) die("socket");
    setsockopt(c->fd, IPPROTO_IP, 24 /* IP_BIND_ADDRESS_NO_PORT */, &one, sizeof one);
    if (bind(c->fd, (struct sockaddr *)&from, sizeof from) < 0) die("bind");
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) < 0) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event);
    /* as a browser asks */
    send_all(c->fd, request, snprintf(request, sizeof request,
        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: Upgrade\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n"
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36\r\n"
        "Upgrade: websocket\r\nOrigin: http://127.0.0.1:%d\r\nSec-WebSocket-Version: 13\r\n"
        "Accept-Encoding: gzip, deflate, br\r\nAccept-Language: en-US,en;q=0.9\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n", path, port, port));
}

/* a masked frame (RFC 6455 section 5.3) with a mask of zeros */
static void send_frame(int fd, int opcode, const char *data, size_t size) {
    unsigned char frame[MAX_TEXT + 8] = {0x80 | opcode};
    size_t head = size < 126 ? 2 : 4;
    if (head == 2) frame[1] = 0x80 | size;
    else { frame[1] = 0x80 | 126; frame[2] = size >> 8; frame[3] = size; }
    memcpy(frame + head + 4, data, size);
    send_all(fd, frame, head + 4 + size);
}

static void on_message(struct connection *c, int opcode, const char *data, size_t size) {
    if (opcode == 9) { pings++; send_frame(c->fd, 10, data, size); return; }
    if (!c->has_joined && memmem(data, size, ready_text, strlen(ready_text))) { c->has_joined = 1; joined++; }
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

static size_t take_handshake(struct connection *c, const char *data, size_t size) {
    const char *end = memmem(data, size, "\r\n\r\n", 4);
    if (!end) return 0;
    if (strncmp(data, "HTTP/1.1 101", 12)) { fprintf(stderr, "refused: %.200s\n", data); exit(2); }
    c->is_open = 1;
    send_frame(c->fd, 1, c->hello, strlen(c->hello));
    return end + 4 - data;
}

static void on_readable(struct connection *c) {
    static char buffer[READ_SIZE + 1];
    size_t size = c->rest_size, done = 0;
    memcpy(buffer, c->rest, size);
    ssize_t got = recv(c->fd, buffer + size, READ_SIZE - size, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) { epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, 0); close(c->fd); closed++; return; }
    size += got;
    buffer[size] = 0;
    if (!c->is_open) done = take_handshake(c, buffer, size);
    if (c->is_open) done += take_frames(c, buffer + done, size - done);
    c->rest_size = size - done;
    free(c->rest);
    c->rest = c->rest_size ? memcpy(malloc(c->rest_size), buffer + done, c->rest_size) : NULL;
}

static void poll_once(int timeout_ms) {
    static struct epoll_event events[512];
    int n = epoll_wait(epoll_fd, events, 512, timeout_ms);
    for (int i = 0; i < n; i++) on_readable(&connections[events[i].data.u32]);
}

static void read_hellos(void) {
    char *line = NULL;
    size_t room = 0;
    ssize_t size;
    while ((size = getline(&line, &room, stdin)) > 0) {
        if (line[size - 1] == '\n') line[--size] = 0;
        if (size > MAX_TEXT) { fprintf(stderr, "a line is too long\n"); exit(2); }
        if (!(count & (count - 1)))
            connections = realloc(connections, (count ? 2 * count : 1) * sizeof *connections);
        connections[count++] = (struct connection){.hello = strdup(line)};
    }
    free(line);
}

int main(int argc, char **argv) {
    struct rlimit files;
    if (argc != 7) { fprintf(stderr, "usage: joiners PORT PATH AT_ONCE READY STEP SECONDS\n"); return 2; }
    port = atoi(argv[1]); path = argv[2]; ready_text = argv[4];
    int at_once = atoi(argv[3]), step = atoi(argv[5]), told = 0;
    double seconds = atof(argv[6]);
    getrlimit(RLIMIT_NOFILE, &files); files.rlim_cur = files.rlim_max; setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGUSR1, go_on);
    read_hellos();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    while (joined < count && !closed) {
        int aim = told + step < count ? told + step : count;
        double began_at = now_s();
        while (joined < aim && !closed) {
            if (now_s() - began_at > 60) { fprintf(stderr, "only %d of %d joined\n", joined, aim); return 2; }
            while (started < aim && started - joined < at_once) start_connection(started++);
            poll_once(100);
        }
        told = joined;
        goes_on = 0;
        printf("{\"joined\": %d, \"took_s\": %.6f}\n", joined, now_s() - began_at); fflush(stdout);
        while (!goes_on && joined < count) poll_once(50);
    }
    for (double end = now_s() + seconds; now_s() < end && closed < count;) poll_once(100);
    printf("{\"closed\": %d, \"pings\": %d}\n", closed, pings);
    return 0;
}
