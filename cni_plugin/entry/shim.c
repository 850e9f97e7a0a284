/*
 * The executable that container runtimes call: sends the call to weft's engine and prints its reply.
 *
 * It answers VERSION, netavark's info and a call without CNI_COMMAND itself. In every other case (no engine, a
 * terminal, closed descriptors, WEFT_DEBUG or WEFT_LOG, a request that the engine declines) it executes the
 * launcher, which serves the call in this process. The protocol is described in wire/frame.py; shim.py is the same
 * client in Python. The build defines OWN_VERSION, EQUALLED, VERSIONS, FIRSTS and NETAVARK…; the
 * installation fills in the paths (build.py).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#define LONGEST_INPUT ((1u << 20) + 1)
#define LONGEST_REPLY (1u << 26)
#define LONGEST_VARIABLES (1u << 17)
#define SEND_SECONDS 10
#define REPLY_SECONDS 190
#ifndef SILENCE_SECONDS
#define SILENCE_SECONDS 25
#endif
#define LOOK_SECONDS 5
#define DECLINED 1
#define WORKING 2
#define PROTOCOL 1

extern char **environ;

static const char *const versions[] = {VERSIONS};
static const size_t version_count = sizeof versions / sizeof *versions;
static const struct {
    const char *plugin, *first;
} firsts[] = {FIRSTS};

/* Filled in after the build. Not static, or the compiler would propagate these values. */
char weft_paths[4][1024] = {"@weft python", "@weft launcher", "@weft engine", "@weft root"};
#define PYTHON weft_paths[0]
#define LAUNCHER weft_paths[1]
#define ENGINE weft_paths[2]
#define ROOT weft_paths[3]

static char input[LONGEST_INPUT + 1];
static size_t input_length;
static const char *plugin;
static char *netavark_command, *netavark_namespace; /* NULL in a call by CNI (netavark.py) */

static int write_all(int descriptor, const char *data, size_t length) {
    while (length) {
        ssize_t written = write(descriptor, data, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0 && errno == EAGAIN) {
            struct pollfd full = {descriptor, POLLOUT, 0};
            poll(&full, 1, -1);
            continue;
        }
        if (written < 0)
            return -1;
        data += written;
        length -= (size_t)written;
    }
    return 0;
}

static int write_text(int descriptor, const char *text) { return write_all(descriptor, text, strlen(text)); }

/* Write the answer to standard output; the exit status. */
static int deliver(const char *data, size_t length, int status) {
    if (write_all(1, data, length) == 0)
        return status;
    write_text(2, "weft: cannot write to standard output\n");
    return 1;
}

/* Execute the launcher, which serves the call in this process; standard input is rewound if it was read. */
static void serve_here(int input_was_read) {
    if (input_was_read) {
        int copy = memfd_create("stdin", MFD_CLOEXEC);
        if (copy < 0 || write_all(copy, input, input_length) || lseek(copy, 0, SEEK_SET) || dup2(copy, 0) < 0) {
            write_text(2, "weft: cannot copy standard input\n");
            _exit(1);
        }
    }
    char *arguments[] = {PYTHON, (char *)"-IBS", LAUNCHER, (char *)plugin, netavark_command, netavark_namespace, NULL};
    execv(PYTHON, arguments);
    write_text(2, "weft: cannot execute ");
    write_text(2, PYTHON);
    write_text(2, ": install weft again\n");
    _exit(1);
}

/* Note a call by netavark or podman, which passes its plugins a command as argument. */
static void read_netavark(int count, char **arguments) {
    static const char *const commands[] = {"create", "info", "setup", "teardown"}, *const names[] = {"weft", NETAVARK_DRIVERS};
    int known = 0;
    for (size_t each = 0; each < sizeof names / sizeof *names; each++)
        known |= strcmp(plugin, names[each]) == 0;
    for (size_t each = 0; known && count > 1 && count < 4 && each < 4; each++)
        if (strcmp(arguments[1], commands[each]) == 0) {
            netavark_command = arguments[1];
            netavark_namespace = count > 2 ? arguments[2] : NULL;
        }
}

/* The index in `versions` of the oldest that the plugin supports. */
static size_t first_version(void) {
    const char *wanted = versions[0];
    for (size_t each = 0; each < sizeof firsts / sizeof *firsts; each++)
        if (strcmp(firsts[each].plugin, plugin) == 0)
            wanted = firsts[each].first;
    for (size_t each = 0; each < version_count; each++)
        if (strcmp(versions[each], wanted) == 0)
            return each;
    return 0;
}

static const char *after(const char *place, const char *end, char wanted) {
    const char *found = place ? memchr(place, wanted, (size_t)(end - place)) : NULL;
    return found ? found + 1 : NULL;
}

/*
 * The cniVersion on standard input if it is one of ours from `first` on, else the newest. `*ambiguous` is set where
 * the key occurs twice, which needs a JSON parser.
 */
static const char *requested_version(size_t first, int *ambiguous) {
    const char *end = input + input_length, *found = NULL, *newest = versions[version_count - 1];
    *ambiguous = 0;
    for (const char *place = input; place + 10 <= end; place++)
        if (strncasecmp(place, "cniversion", 10) == 0) {
            if (found) {
                *ambiguous = 1;
                return newest;
            }
            found = place + 10;
        }
    const char *value = after(found, end, ':');
    while (value && value < end && strchr(" \t\n\r\f\v", *value))
        value++;
    value = after(value, end, '"');
    const char *close = after(value, end, '"');
    for (size_t each = first; value && each < version_count; each++) {
        size_t length = strlen(versions[each]);
        if ((close ? close - 1 : end) == value + length && memcmp(value, versions[each], length) == 0)
            return versions[each];
    }
    return newest;
}

static int print_about(void) {
    char text[512];
    int own = strcmp(plugin, "weft") == 0;
    int length = snprintf(text, sizeof text, "CNI %.64s plugin v%s\nCNI protocol versions supported: ", plugin,
                          own ? OWN_VERSION : EQUALLED "+weft." OWN_VERSION);
    for (size_t each = first_version(); each < version_count; each++)
        length += snprintf(text + length, sizeof text - (size_t)length, "%s%s", versions[each],
                           each + 1 < version_count ? ", " : "\n");
    write_all(2, text, (size_t)length);
    return 0;
}

/* Read standard input to its end, or one byte past the limit; -1 on an error, 0 after the timeout too. */
static int read_input(int timeout_milliseconds) {
    while (input_length < LONGEST_INPUT) {
        struct pollfd ready = {0, POLLIN, 0};
        int found = poll(&ready, 1, timeout_milliseconds);
        if (found < 0 && errno == EINTR)
            continue;
        if (found <= 0)
            return found;
        ssize_t length = read(0, input + input_length, LONGEST_INPUT - input_length);
        if (length < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (length < 0)
            return -1;
        if (length == 0)
            return 0;
        input_length += (size_t)length;
    }
    return 0;
}

static int answer_version(void) {
    char text[512];
    int ambiguous;
    if (!isatty(0) && read_input(1000) < 0)
        input_length = 0;
    size_t first = first_version();
    const char *version = requested_version(first, &ambiguous);
    if (ambiguous || input_length >= LONGEST_INPUT)
        serve_here(1);
    int length = snprintf(text, sizeof text, "{\"cniVersion\":\"%s\",\"supportedVersions\":[", version);
    for (size_t each = first; each < version_count; each++)
        length += snprintf(text + length, sizeof text - (size_t)length, "\"%s\"%s", versions[each],
                           each + 1 < version_count ? "," : "]}\n");
    return deliver(text, (size_t)length, 0);
}

/* Answer CNI error 11, "try again later"; netavark's errors have no number. */
static int fail(const char *message) {
    char text[512];
    int ambiguous;
    if (netavark_command)
        return deliver(text, (size_t)snprintf(text, sizeof text, "{\"error\": \"%s\"}", message), 1);
    const char *version = requested_version(0, &ambiguous);
    int length = snprintf(text, sizeof text, "{\n    \"cniVersion\": \"%s\",\n    \"code\": 11,\n    \"msg\": \"%s\"\n}",
                          version, message);
    return deliver(text, (size_t)length, 1);
}

/*
 * Start an engine as a daemon, at most once in ten seconds. All descriptors are closed: a runtime waits for EOF on the
 * pipes that it passed to this process.
 */
static void start_engine(const char *folder) {
    char path[96];
    struct stat status;
    snprintf(path, sizeof path, "%s/engine.start", folder);
    mkdir("/run/weft", 0755);
    mkdir(folder, 0700);
    int tried = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (tried < 0 || flock(tried, LOCK_EX | LOCK_NB) || fstat(tried, &status))
        return;
    if (status.st_size && time(NULL) - status.st_mtime >= 0 && time(NULL) - status.st_mtime < 10)
        return;
    if (pwrite(tried, "x", 1, 0) != 1 || futimens(tried, NULL))
        return;
    pid_t child = fork();
    if (child != 0) {
        if (child > 0)
            waitpid(child, NULL, 0); /* it exits at once; the engine is its child, reparented to init */
        return;
    }
    setsid();
    if (fork() != 0)
        _exit(0);
    int null = open("/dev/null", O_RDWR);
    for (int each = 0; each < 3; each++)
        dup2(null, each);
    for (int each = 3; syscall(SYS_close_range, 3, ~0u, 0) && each < 1 << 20; each++)
        close(each);
    if (chdir("/"))
        _exit(1);
    char idle[64] = "WEFT_ENGINE_IDLE=";
    const char *wanted = getenv("WEFT_ENGINE_IDLE");
    strncat(idle, wanted ? wanted : "900", 20);
    const char *follow = getenv("WEFT_FOLLOW");
    char *environment[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "MALLOC_ARENA_MAX=2",
                           idle, follow && strcmp(follow, "off") == 0 ? "WEFT_FOLLOW=off" : NULL, NULL};
    char *arguments[] = {PYTHON, "-IBS", ENGINE, "--detached", NULL};
    execve(PYTHON, arguments, environment);
    _exit(1);
}

/* Open the container's network namespace; -1 for any other file, which is never opened (O_PATH). */
static int open_namespace(const char *path, dev_t namespaces) {
    char link[32];
    struct stat status;
    int place = path && *path ? open(path, O_PATH | O_CLOEXEC) : -1;
    if (place < 0 || fstat(place, &status) || status.st_dev != namespaces)
        return -1;
    snprintf(link, sizeof link, "/proc/self/fd/%d", place);
    return open(link, O_RDONLY | O_CLOEXEC);
}

static int connect_engine(const char *folder) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct ucred peer;
    socklen_t length = sizeof peer;
    struct timeval sending = {SEND_SECONDS, 0};
    snprintf(address.sun_path, sizeof address.sun_path, "%s/engine.sock", folder);
    int found = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (found < 0)
        return -1;
    setsockopt(found, SOL_SOCKET, SO_SNDTIMEO, &sending, sizeof sending);
    if (connect(found, (struct sockaddr *)&address, sizeof address) == 0 &&
        getsockopt(found, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && (peer.uid == 0 || peer.uid == geteuid()))
        return found;
    close(found);
    return -1;
}

/* Seconds of the monotonic clock. */
static time_t now(void) {
    struct timespec found;
    clock_gettime(CLOCK_MONOTONIC, &found);
    return found.tv_sec;
}

static void put_u32(char *place, uint32_t value) {
    for (int each = 0; each < 4; each++)
        place[each] = (char)(value >> 8 * each);
}

static uint32_t get_u32(const unsigned char *place) {
    return place[0] | (uint32_t)place[1] << 8 | (uint32_t)place[2] << 16 | (uint32_t)place[3] << 24;
}

/* Write the request's head and strings to `text`; their length, 0 where the variables are too long. */
static size_t compose(char *text, size_t room) {
    struct stat mounts, root;
    if (stat("/proc/self/ns/mnt", &mounts) || stat("/", &root))
        return 0;
    size_t length = 12;
    length += (size_t)snprintf(text + length, room - length, "%s%c%s%c%ju:%ju:%ju%c%s%c", OWN_VERSION, 0, ROOT, 0,
                               (uintmax_t)mounts.st_ino, (uintmax_t)root.st_dev, (uintmax_t)root.st_ino, 0, plugin, 0);
    if (netavark_command) {
        size_t more = (size_t)snprintf(text + length, room - length, NETAVARK "=%s", netavark_command) + 1;
        if (netavark_namespace && length + more < room)
            more += (size_t)snprintf(text + length + more, room - length - more, "CNI_NETNS=%s", netavark_namespace) + 1;
        length += more;
        if (length + 1 > room)
            return 0;
    }
    for (char **each = environ; *each && !netavark_command; each++) {
        size_t more = strlen(*each) + 1;
        if (more == 1) /* it would end the list */
            continue;
        if (length + more + 1 > room)
            return 0;
        memcpy(text + length, *each, more);
        length += more;
    }
    text[length++] = 0;
    memcpy(text, "WEFT\1\1\0\0", 8); /* the second 1: progress is understood */
    put_u32(text + 8, (uint32_t)(length - 12 + input_length));
    return length;
}

/* Send the request, the descriptor with its first byte; -1 where the engine is gone or does not read. */
static int send_request(int engine, char *text, size_t length, int namespace) {
    struct iovec parts[2] = {{text, length}, {input, input_length}};
    char ancillary[CMSG_SPACE(sizeof(int))] = {0};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    if (namespace >= 0) {
        message.msg_control = ancillary;
        message.msg_controllen = sizeof ancillary;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
        memcpy(CMSG_DATA(header), &namespace, sizeof namespace);
    }
    while (parts[0].iov_len + parts[1].iov_len) {
        ssize_t sent = sendmsg(engine, &message, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return -1;
        message.msg_control = NULL;
        message.msg_controllen = 0;
        for (int each = 0; each < 2; each++) {
            size_t count = (size_t)sent < parts[each].iov_len ? (size_t)sent : parts[each].iov_len;
            parts[each].iov_base = (char *)parts[each].iov_base + count;
            parts[each].iov_len -= count;
            sent -= (ssize_t)count;
        }
    }
    return 0;
}

static pid_t peer_of(int engine) {
    struct ucred peer = {0};
    socklen_t length = sizeof peer;
    getsockopt(engine, SOL_SOCKET, SO_PEERCRED, &peer, &length);
    return peer.pid; /* 0 in another PID namespace */
}

/* Whether a process is stopped, by a signal or a debugger. Source: proc_pid_stat(5). */
static int is_stopped(pid_t process) {
    char path[32], text[256];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)process);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (file >= 0)
        close(file);
    text[length > 0 ? length : 0] = 0;
    const char *state = strrchr(text, ')');
    return state && (state[2] == 'T' || state[2] == 't');
}

/* Receive `length` bytes; -1 where the connection ends before, -2 where a stopped or hung engine sends none. */
static int receive(int engine, char *place, size_t length) {
    int silent = 0;
    while (length) {
        struct pollfd ready = {engine, POLLIN, 0};
        int step = SILENCE_SECONDS < LOOK_SECONDS ? SILENCE_SECONDS : LOOK_SECONDS;
        int found = poll(&ready, 1, step * 1000);
        if (found < 0 && errno == EINTR)
            continue;
        if (found == 0) {
            silent += step;
            if (silent >= SILENCE_SECONDS || is_stopped(peer_of(engine)))
                return -2;
            continue;
        }
        silent = 0;
        ssize_t got = found > 0 ? read(engine, place, length) : 0;
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return -1;
        place += got;
        length -= (size_t)got;
    }
    return 0;
}

/* Receive the reply's head, after those that say that the engine is working on it; as `receive`. */
static int receive_head(int engine, unsigned char *head) {
    for (time_t start = now(); now() - start < REPLY_SECONDS;) {
        int failed = receive(engine, (char *)head, 16);
        if (failed || head[5] != WORKING)
            return failed;
    }
    return -1;
}

/* An engine that does not answer, although it has the request. */
static int fail_silent(int engine) {
    char text[300];
    int process = (int)peer_of(engine);
    snprintf(text, sizeof text,
             "the engine (pid %d) is stopped or hung; resume it with kill -CONT %d, or end it with kill -KILL %d, and "
             "retry the call, which cleans up",
             process, process, process);
    return fail(text);
}

/* Exchange request and reply; the exit status. A declined request has changed nothing and is served here. */
static int call_engine(int engine, int namespace, int required) {
    static char text[LONGEST_VARIABLES];
    static const char lost[] = "the engine terminated before it replied; retry the call, which cleans up";
    unsigned char head[16];
    size_t length = compose(text, sizeof text);
    if (!length)
        serve_here(1);
    if (send_request(engine, text, length, namespace))
        return fail(lost);
    int failed = receive_head(engine, head);
    if (failed)
        return failed == -2 ? fail_silent(engine) : fail(lost);
    uint32_t output = get_u32(head + 8), errors = get_u32(head + 12);
    if (memcmp(head, "WEFT", 4) || head[4] != PROTOCOL || output > LONGEST_REPLY || errors > LONGEST_REPLY)
        return fail("malformed reply from the engine");
    if (head[5] == DECLINED && required)
        return fail("the engine has another version or mount namespace, and WEFT_ENGINE=require is set");
    if (head[5] == DECLINED)
        serve_here(1);
    char *data = malloc((size_t)output + errors + 1);
    if (!data || receive(engine, data, (size_t)output + errors))
        return fail(lost);
    if (errors)
        write_all(2, data + output, errors);
    return deliver(data, output, head[6] | head[7] << 8);
}

static int is_own_path(const char *path) {
    return path && (strncmp(path, "/proc/self/", 11) == 0 || strncmp(path, "/proc/thread-self/", 18) == 0);
}

/* Whether a list of folders has one that depends on the working directory, which only this process has. */
static int has_relative(const char *folders) {
    for (const char *each = folders; each && *each; each += *each == ':') {
        if (*each != '/' && *each != ':')
            return 1;
        each += strcspn(each, ":");
    }
    return 0;
}

int main(int count, char **arguments) {
    const char *slash = count && *arguments ? strrchr(arguments[0], '/') : NULL;
    const char *command = getenv("CNI_COMMAND"), *wanted = getenv("WEFT_ENGINE"), *debug = getenv("WEFT_DEBUG");
    const char *log = getenv("WEFT_LOG");
    const char *container = getenv("CNI_NETNS");
    struct stat own;
    char folder[64];
    plugin = slash ? slash + 1 : count && *arguments ? arguments[0] : "weft";
    if (!*plugin)
        plugin = "weft";
    for (int each = 0; each < 3; each++)
        if (fcntl(each, F_GETFD) < 0)
            serve_here(0); /* which reports it */
    if (!command || !*command) {
        read_netavark(count, arguments);
        if (!netavark_command)
            return print_about();
        if (strcmp(netavark_command, "info") == 0 && !netavark_namespace)
            return deliver(NETAVARK_INFO, strlen(NETAVARK_INFO), 0);
        container = netavark_namespace;
    } else if (strcmp(command, "VERSION") == 0)
        return answer_version();
    if ((wanted && strcmp(wanted, "off") == 0) || (debug && *debug) || (log && *log) || is_own_path(container) ||
        has_relative(getenv("CNI_PATH")) || isatty(0) || stat("/proc/self/ns/net", &own))
        serve_here(0);
    int required = wanted && strcmp(wanted, "require") == 0;
    if (read_input(-1) < 0)
        serve_here(1);
    snprintf(folder, sizeof folder, "/run/weft/%ju", (uintmax_t)own.st_ino);
    int engine = connect_engine(folder);
    if (engine >= 0)
        return call_engine(engine, open_namespace(container, own.st_dev), required);
    if (required)
        return fail("no engine is running in this network namespace, and WEFT_ENGINE=require is set");
    start_engine(folder);
    serve_here(1);
}
