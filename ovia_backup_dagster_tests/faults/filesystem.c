/* A filesystem that lacks what ext4 has: for what is under LACKING_DIR, calls fail with the errno that is asked for. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int below(const char *path) {
    const char *folder = getenv("LACKING_DIR");
    return folder && !strncmp(path, folder, strlen(folder));
}

static int refused(const char *call, int at, const char *path) {
    const char *code = getenv(call);
    char link[64], found[4096];
    ssize_t length;
    if (!code) return 0;
    if (path && path[0] == '/') return below(path) ? atoi(code) : 0;
    /* What is relative is taken as relative to its descriptor's folder, or to this process's. */
    if (at == AT_FDCWD) strcpy(link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    length = readlink(link, found, sizeof found - 1);
    if (length < 0) return 0;
    found[length] = 0;
    return below(found) ? atoi(code) : 0;
}

#define REAL(name, type) ((type)dlsym(RTLD_NEXT, name))
#define REFUSE(call, at, path) do { int code = refused(call, at, path); if (code) { errno = code; return -1; } } while (0)

int link(const char *from, const char *to) {
    REFUSE("LACKING_LINK", AT_FDCWD, to);
    return REAL("link", int (*)(const char *, const char *))(from, to);
}

int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    REFUSE("LACKING_LINK", to_at, to);
    return REAL("linkat", int (*)(int, const char *, int, const char *, int))(from_at, from, to_at, to, flags);
}

int fsync(int descriptor) {
    struct stat status;
    if (!fstat(descriptor, &status) && S_ISDIR(status.st_mode)) REFUSE("LACKING_FSYNC", descriptor, NULL);
    return REAL("fsync", int (*)(int))(descriptor);
}

int flock(int descriptor, int operation) {
    REFUSE("LACKING_FLOCK", descriptor, NULL);
    return REAL("flock", int (*)(int, int))(descriptor, operation);
}

int chmod(const char *path, mode_t mode) {
    REFUSE("LACKING_CHMOD", AT_FDCWD, path);
    return REAL("chmod", int (*)(const char *, mode_t))(path, mode);
}

int fchmod(int descriptor, mode_t mode) {
    REFUSE("LACKING_CHMOD", descriptor, NULL);
    return REAL("fchmod", int (*)(int, mode_t))(descriptor, mode);
}
