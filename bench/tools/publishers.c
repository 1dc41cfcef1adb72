/* publishers PORT PATH TYPE CONNECTIONS REQUESTS USERS BODY [SECONDS [RATE]]: POSTs over keep-alive connections, each as
 * soon as the one before it on its connection is answered; with RATE (a second) each at its time, however long others take,
 * and its latency counts from then. In BODY (or, as @FILE, in that file) and in PATH {U} stands for a user, 0 to USERS - 1
 * in turn, and in BODY {T} for the time at which it was to be sent (CLOCK_MONOTONIC, ns). Prints one line of JSON: requests,
 * refused (not 2xx), seconds, start_ns, and the latency in ms at the median and at the 99th percentile. Ends after SECONDS
 * (120) in any case. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define ROOM (8 << 20)

struct caller {
    int fd;
    char *out, *in;
    size_t out_length, sent, in_length;
    uint64_t began_ns;
};

static const char *path, *type, *body;
static int port, poll_fd, users;
static long wanted, begun, answered, refused;
static double rate;
static uint64_t start_ns;
static uint32_t *latencies_us;
static struct caller **idle;    /* with a rate: who waits for the next request's time */
static int idle_count;

static void fail(const char *what) {
    fprintf(stderr, "publishers: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static char *read_file(const char *name) {
    FILE *file = fopen(name, "r");
    if (!file) fail(name);
    char *text = malloc(ROOM);
    text[fread(text, 1, ROOM - 1, file)] = 0;
    fclose(file);
    return text;
}

/* The body or path of a request, with what is to be in it; its length. */
static size_t fill(char *to, const char *from, long number, uint64_t due_ns) {
    char *start = to;
    while (*from) {
        if (!strncmp(from, "{U}", 3)) {
            to += sprintf(to, "%ld", number % users);
            from += 3;
        } else if (!strncmp(from, "{T}", 3)) {
            to += sprintf(to, "%llu", (unsigned long long)due_ns);
            from += 3;
        } else {
            *to++ = *from++;
        }
    }
    *to = 0;
    return to - start;
}

static uint64_t due_ns(long number) { return start_ns + number * 1e9 / rate; }

static void watch(struct caller *caller, uint32_t events, int operation) {
    struct epoll_event event = {events, {.ptr = caller}};
    if (epoll_ctl(poll_fd, operation, caller->fd, &event)) fail("epoll_ctl");
}

static void flush(struct caller *caller) {
    while (caller->sent < caller->out_length) {
        ssize_t count = send(caller->fd, caller->out + caller->sent, caller->out_length - caller->sent, MSG_NOSIGNAL);
        if (count < 0) {
            if (errno != EAGAIN) fail("send");
            watch(caller, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
            return;
        }
        caller->sent += count;
    }
    watch(caller, EPOLLIN, EPOLL_CTL_MOD);
}

static void begin(struct caller *caller) {
    static char filled[ROOM], target[4096];
    if (begun == wanted) return;
    uint64_t now = now_ns(), due = rate ? due_ns(begun) : now;
    if (due > now) {
        idle[idle_count++] = caller;
        return;
    }
    fill(target, path, begun, due);
    size_t length = fill(filled, body, begun++, due);
    int head = sprintf(caller->out,
                       "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n",
                       target, port, type, length);
    memcpy(caller->out + head, filled, length);
    caller->out_length = head + length;
    caller->sent = caller->in_length = 0;
    caller->began_ns = due;
    flush(caller);
}

/* Whether the answer is complete; it is counted then. */
static int is_answered(struct caller *caller) {
    caller->in[caller->in_length] = 0;
    char *end = strstr(caller->in, "\r\n\r\n");
    if (!end) return 0;
    char *field = strcasestr(caller->in, "\r\ncontent-length:");
    size_t length = field && field < end ? strtoul(field + 17, NULL, 10) : 0;
    if (caller->in_length < (size_t)(end + 4 - caller->in) + length) return 0;
    if (caller->in[9] != '2' && refused++ == 0) fprintf(stderr, "publishers: refused: %.300s\n", caller->in);
    latencies_us[answered++] = (now_ns() - caller->began_ns) / 1000;
    return 1;
}

static void receive(struct caller *caller) {
    ssize_t count = recv(caller->fd, caller->in + caller->in_length, ROOM - 1 - caller->in_length, 0);
    if (count == 0) errno = ECONNRESET;
    if (count == 0 || (count < 0 && errno != EAGAIN)) fail("recv");
    if (count > 0) caller->in_length += count;
    if (is_answered(caller)) begin(caller);
}

static void open_caller(struct caller *caller) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    int on = 1;
    caller->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(caller->fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
    setsockopt(caller->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    caller->out = malloc(ROOM + 4096);
    caller->in = malloc(ROOM);
    watch(caller, EPOLLIN, EPOLL_CTL_ADD);
}

static int by_value(const void *one, const void *other) {
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
    return (a > b) - (a < b);
}

int main(int count, char **values) {
    if (count < 8) {
        fprintf(stderr, "usage: publishers PORT PATH TYPE CONNECTIONS REQUESTS USERS BODY [SECONDS [RATE]]\n");
        return 2;
    }
    port = atoi(values[1]);
    path = values[2];
    type = values[3];
    int connections = atoi(values[4]);
    wanted = atol(values[5]);
    users = atoi(values[6]);
    body = values[7][0] == '@' ? read_file(values[7] + 1) : values[7];
    alarm(count > 8 ? atoi(values[8]) : 120);
    rate = count > 9 ? atof(values[9]) : 0;
    latencies_us = calloc(wanted + 1, sizeof *latencies_us);
    poll_fd = epoll_create1(0);
    struct caller *callers = calloc(connections, sizeof *callers);
    for (int each = 0; each < connections; each++) open_caller(&callers[each]);
    idle = calloc(connections, sizeof *idle);
    start_ns = now_ns();
    for (int each = 0; each < connections; each++) begin(&callers[each]);
    while (answered < wanted) {
        struct epoll_event events[64];
        while (idle_count && begun < wanted && due_ns(begun) <= now_ns()) begin(idle[--idle_count]);
        struct timespec wait = {1, 0};
        if (idle_count && begun < wanted) {
            uint64_t now = now_ns(), due = due_ns(begun), left = due > now ? due - now : 0;
            wait.tv_sec = left / 1000000000;
            wait.tv_nsec = left % 1000000000;
        }
        int ready = epoll_pwait2(poll_fd, events, 64, &wait, NULL);
        for (int each = 0; each < ready; each++) {
            if (events[each].events & EPOLLOUT) flush(events[each].data.ptr);
            if (events[each].events & ~EPOLLOUT) receive(events[each].data.ptr);
        }
    }
    double seconds = (now_ns() - start_ns) / 1e9;
    qsort(latencies_us, answered, sizeof *latencies_us, by_value);
    printf("{\"requests\": %ld, \"refused\": %ld, \"seconds\": %.6f, \"start_ns\": %llu, \"p50_ms\": %.3f, \"p99_ms\": %.3f}\n", answered, refused,
           seconds, (unsigned long long)start_ns, latencies_us[answered / 2] / 1e3, latencies_us[answered * 99 / 100] / 1e3);
    return 0;
}
