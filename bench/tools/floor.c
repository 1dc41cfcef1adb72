/* floor: what the machine itself can do. Accepts COUNT WebSockets, then sends ROUNDS messages of SIZE payload bytes that
 * hold MARKER to each of them, with one blocking send() for a message, and nothing else.
 *
 *   floor PORT COUNT SIZE MARKER ROUNDS
 *
 * Prints "listening", waits for a line on stdin when all are connected, and prints {"start_ns", "cpu_s", "sends"}.
 * Answers the handshake of `receivers` only (one fixed key). Loopback only. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char handshake[] =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI=\r\n\r\n";      /* of the key AAAAAAAAAAAAAAAAAAAAAA== */

static void die(const char *what) { perror(what); exit(2); }

static double cpu_s(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void accept_one(int listener, int *fd) {
    char request[2048];
    int one = 1;
    size_t size = 0;
    if ((*fd = accept(listener, 0, 0)) < 0) die("accept");
    setsockopt(*fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    while (size < 4 || memcmp(request + size - 4, "\r\n\r\n", 4)) {
        ssize_t got = recv(*fd, request + size, sizeof request - size, 0);
        if (got <= 0) die("recv");
        size += got;
    }
    if (send(*fd, handshake, sizeof handshake - 1, MSG_NOSIGNAL) < 0) die("send");
}

int main(int argc, char **argv) {
    struct rlimit files;
    struct sockaddr_in address = {.sin_family = AF_INET};
    struct timespec t;
    int listener, one = 1;
    if (argc != 6) { fprintf(stderr, "usage: floor PORT COUNT SIZE MARKER ROUNDS\n"); return 2; }
    int count = atoi(argv[2]), size = atoi(argv[3]), rounds = atoi(argv[5]);
    getrlimit(RLIMIT_NOFILE, &files); files.rlim_cur = files.rlim_max; setrlimit(RLIMIT_NOFILE, &files);

    char *frame = calloc(1, size + 4);
    int head = size < 126 ? 2 : 4;
    frame[0] = (char)0x81;
    if (head == 2) frame[1] = size; else { frame[1] = 126; frame[2] = size >> 8; frame[3] = size; }
    memset(frame + head, 'x', size);
    memcpy(frame + head, argv[4], strlen(argv[4]));

    address.sin_port = htons(atoi(argv[1]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) die("listen");
    puts("listening"); fflush(stdout);

    int *fds = calloc(count, sizeof *fds);
    for (int i = 0; i < count; i++) accept_one(listener, &fds[i]);
    getchar();
    double cpu = cpu_s();
    clock_gettime(CLOCK_MONOTONIC, &t);
    for (int round = 0; round < rounds; round++)
        for (int i = 0; i < count; i++)
            if (send(fds[i], frame, head + size, MSG_NOSIGNAL) != head + size) die("send");
    printf("{\"start_ns\": %lld, \"cpu_s\": %.3f, \"sends\": %ld}\n", t.tv_sec * 1000000000LL + t.tv_nsec, cpu_s() - cpu,
        (long)rounds * count);
    fflush(stdout);
    getchar();
    return 0;
}
