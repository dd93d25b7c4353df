/* A file system that lacks things, for LD_PRELOAD: each call fails with the error that REFUSE_... gives, if it does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>

static int refused(const char *variable) {
    const char *number = getenv(variable);
    if (number != NULL)
        errno = atoi(number);
    return number != NULL;
}

int symlink(const char *target, const char *path) {
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "symlink");
    return refused("REFUSE_SYMLINK") ? -1 : real(target, path);
}

int flock(int descriptor, int operation) {
    int (*real)(int, int) = dlsym(RTLD_NEXT, "flock");
    return refused("REFUSE_FLOCK") ? -1 : real(descriptor, operation);
}

int fsync(int descriptor) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    return refused("REFUSE_FSYNC") ? -1 : real(descriptor);
}
