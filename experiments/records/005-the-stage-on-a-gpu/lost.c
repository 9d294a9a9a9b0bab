/* A GPU that is lost in the middle of a run: from the N-th graph on (LOST_AFTER), the driver answers with an error.
 *   gcc -O2 -shared -fPIC lost.c -o lost.so -ldl;  LOST_AFTER=40 LD_PRELOAD=$PWD/lost.so train-cuda ... */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

static void *(*real_dlsym)(void *, const char *);
static int (*real_wait)(void *);
static int (*real_launch)(void *, void *);
static int launches;

static int is_lost(void) { return launches > atoi(getenv("LOST_AFTER") ? getenv("LOST_AFTER") : "40"); }

static int wait_or_fail(void *stream) {
    return is_lost() ? 214 /* CUDA_ERROR_ECC_UNCORRECTABLE */ : real_wait(stream);
}

static int launch_or_fail(void *graph, void *stream) {
    ++launches;
    return is_lost() ? 214 : real_launch(graph, stream);
}

void *dlsym(void *handle, const char *name) {
    if (!real_dlsym) real_dlsym = dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5");
    void *found = real_dlsym(handle, name);
    if (found && !strcmp(name, "cuStreamSynchronize")) {
        real_wait = found;
        return wait_or_fail;
    }
    if (found && !strcmp(name, "cuGraphLaunch")) {
        real_launch = found;
        return launch_or_fail;
    }
    return found;
}
