/* A stand-in for driver, compiler and matrix library on a machine without a GPU. It keeps memory, counts calls and
 * computes nothing: kernels and products leave zeros, so every loss is 0. What a program does about memory, failures and
 * old devices can be seen with it, and nothing else.
 *
 * STAND_IN_CAPABILITIES  "7.5,9.0": one device each
 * STAND_IN_TOTAL_MB      memory of a device
 * STAND_IN_OTHERS_MB     what other processes hold of it
 * STAND_IN_DRIVER        "11020": the driver is one for CUDA 11.2
 * CUDA_VISIBLE_DEVICES   empty: there is none
 * STAND_IN_FAIL          "cuGraphLaunch:20:214": from its 20th call on a function answers with 214;
 *                        "cuGraphLaunch:20:214:25": up to its 25th call
 */
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long address;
enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100 };

/* What a call named `name` answers the `calls`-th time. */
static int answer(const char *name, int *calls) {
    const char *fail = getenv("STAND_IN_FAIL");
    size_t n = strlen(name);
    ++*calls;
    if (!fail || strncmp(fail, name, n) || fail[n] != ':') return OK;
    int from = 0, code = 0, to = INT_MAX;
    if (sscanf(fail + n, ":%d:%d:%d", &from, &code, &to) < 2) return INVALID;
    return *calls >= from && *calls <= to ? code : OK;
}
#define ANSWER()                                    \
    do {                                            \
        static int calls;                           \
        int code = answer(__func__, &calls);        \
        if (code) return code;                      \
    } while (0)

static address used;
static address total(void) {
    const char *mb = getenv("STAND_IN_TOTAL_MB");
    return (mb ? strtoull(mb, NULL, 10) : 80000) * 1000000;
}
static address available(void) {
    const char *mb = getenv("STAND_IN_OTHERS_MB");
    address taken = used + (mb ? strtoull(mb, NULL, 10) : 0) * 1000000;
    return taken < total() ? total() - taken : 0;
}
static const char *capabilities(void) {
    const char *given = getenv("STAND_IN_CAPABILITIES");
    return given ? given : "9.0";
}
static void *handle(void) { return malloc(8); }

/* The driver. */
int cuInit(unsigned flags) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    (void)flags;
    ANSWER();
    return visible && !*visible ? NO_DEVICE : OK;
}
int cuDriverGetVersion(int *version) {
    const char *given = getenv("STAND_IN_DRIVER");
    *version = given ? atoi(given) : 13000;
    return OK;
}
int cuDeviceGetCount(int *count) {
    *count = 1;
    for (const char *c = capabilities(); *c; ++c) *count += *c == ',';
    return OK;
}
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return OK; }
int cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "Stand-in %d", device); return OK; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = total(); return OK; }
int cuDeviceGetUuid_v2(char *uuid, int device) { memset(uuid, device, 16); return OK; }
int cuDeviceGetUuid(char *uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }
int cuDeviceGetAttribute(int *value, int which, int device) {
    const char *c = capabilities();
    for (int i = 0; i < device; ++i) c = strchr(c, ',') + 1;
    switch (which) {
    case 16: *value = 132; break;
    case 75: *value = c[0] - '0'; break;
    case 76: *value = c[2] - '0'; break;
    case 97: *value = 232448; break;
    default: *value = 0;
    }
    return OK;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { (void)device; ANSWER(); *context = handle(); return OK; }
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return OK; }
int cuCtxSetCurrent(void *context) { (void)context; return OK; }
int cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return OK; }
int cuGetErrorName(int code, const char **name) {
    *name = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 214 ? "CUDA_ERROR_ECC_UNCORRECTABLE" : "CUDA_ERROR_OTHER";
    return OK;
}
int cuGetErrorString(int code, const char **text) { (void)code; *text = "as the test wants it"; return OK; }

int cuMemGetInfo_v2(size_t *free_bytes, size_t *all) { *free_bytes = available(); *all = total(); return OK; }
int cuMemAlloc_v2(address *pointer, size_t bytes) {
    ANSWER();
    if (bytes > available()) return OUT_OF_MEMORY;
    size_t *block = calloc(1, bytes + 256);
    if (!block) return OUT_OF_MEMORY;
    *block = bytes;
    used += bytes;
    *pointer = (address)(uintptr_t)block + 256;
    return OK;
}
int cuMemFree_v2(address pointer) {
    size_t *block = (size_t *)(uintptr_t)(pointer - 256);
    used -= *block;
    free(block);
    return OK;
}
int cuMemAllocHost_v2(void **pointer, size_t bytes) { ANSWER(); *pointer = calloc(1, bytes ? bytes : 1); return OK; }
int cuMemFreeHost(void *pointer) { free(pointer); return OK; }
int cuMemcpyHtoDAsync_v2(address to, const void *from, size_t n, void *s) { (void)s; ANSWER(); memcpy((void *)(uintptr_t)to, from, n); return OK; }
int cuMemcpyDtoHAsync_v2(void *to, address from, size_t n, void *s) { (void)s; ANSWER(); memcpy(to, (void *)(uintptr_t)from, n); return OK; }
int cuMemcpyDtoDAsync_v2(address to, address from, size_t n, void *s) { (void)s; memmove((void *)(uintptr_t)to, (void *)(uintptr_t)from, n); return OK; }
int cuMemsetD8Async(address to, unsigned char byte, size_t n, void *s) { (void)s; memset((void *)(uintptr_t)to, byte, n); return OK; }

int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) { (void)flags; (void)priority; ANSWER(); *stream = handle(); return OK; }
int cuStreamDestroy_v2(void *stream) { free(stream); return OK; }
int cuStreamSynchronize(void *stream) { (void)stream; ANSWER(); return OK; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { (void)stream; (void)event; (void)flags; return OK; }
int cuStreamBeginCapture_v2(void *stream, int mode) { (void)stream; (void)mode; return OK; }
int cuStreamEndCapture(void *stream, void **graph) { (void)stream; *graph = handle(); return OK; }
int cuGraphInstantiateWithFlags(void **exec, void *graph, address flags) { (void)graph; (void)flags; ANSWER(); *exec = handle(); return OK; }
int cuGraphDestroy(void *graph) { free(graph); return OK; }
int cuGraphExecDestroy(void *exec) { free(exec); return OK; }
int cuGraphLaunch(void *exec, void *stream) { (void)exec; (void)stream; ANSWER(); return OK; }
int cuEventCreate(void **event, unsigned flags) { (void)flags; *event = handle(); return OK; }
int cuEventDestroy_v2(void *event) { free(event); return OK; }
int cuEventRecord(void *event, void *stream) { (void)event; (void)stream; return OK; }
int cuEventSynchronize(void *event) { (void)event; return OK; }
int cuEventElapsedTime_v2(float *ms, void *from, void *to) { (void)from; (void)to; *ms = 1; return OK; }
int cuModuleLoadData(void **module, const void *image) { (void)image; ANSWER(); *module = handle(); return OK; }
int cuModuleUnload(void *module) { free(module); return OK; }
int cuModuleGetFunction(void **function, void *module, const char *name) { (void)name; *function = module; return OK; }
int cuFuncSetAttribute(void *function, int which, int value) { (void)function; (void)which; (void)value; return OK; }
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
    (void)function; (void)gx; (void)gy; (void)gz; (void)bx; (void)by; (void)bz;
    (void)shared; (void)stream; (void)arguments; (void)extra;
    ANSWER();
    return OK;
}

/* The compiler. */
int nvrtcVersion(int *major, int *minor) { *major = 99; *minor = 9; return OK; }
int nvrtcCreateProgram(void **program, const char *text, const char *name, int n, const char *const *headers, const char *const *names) {
    (void)text; (void)name; (void)n; (void)headers; (void)names;
    *program = handle();
    return OK;
}
int nvrtcCompileProgram(void *program, int n, const char *const *options) { (void)program; (void)n; (void)options; return OK; }
int nvrtcDestroyProgram(void **program) { free(*program); return OK; }
int nvrtcGetProgramLogSize(void *program, size_t *size) { (void)program; *size = 1; return OK; }
int nvrtcGetProgramLog(void *program, char *log) { (void)program; *log = 0; return OK; }
int nvrtcGetCUBINSize(void *program, size_t *size) { (void)program; *size = 4; return OK; }
int nvrtcGetCUBIN(void *program, char *cubin) { (void)program; memcpy(cubin, "none", 4); return OK; }

/* The matrix library. */
struct result { uint64_t algorithm[8]; size_t workspace; int state; float waves; int reserved[4]; };
int cublasLtCreate(void **made) { ANSWER(); *made = handle(); return OK; }
int cublasLtDestroy(void *made) { free(made); return OK; }
int cublasLtMatmulDescCreate(void **made, int compute, int scale) { (void)compute; (void)scale; *made = handle(); return OK; }
int cublasLtMatmulDescDestroy(void *made) { free(made); return OK; }
int cublasLtMatmulDescSetAttribute(void *made, int which, const void *from, size_t n) { (void)made; (void)which; (void)from; (void)n; return OK; }
int cublasLtMatrixLayoutCreate(void **made, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    (void)type; (void)rows; (void)cols; (void)ld;
    *made = handle();
    return OK;
}
int cublasLtMatrixLayoutDestroy(void *made) { free(made); return OK; }
int cublasLtMatrixLayoutSetAttribute(void *made, int which, const void *from, size_t n) { (void)made; (void)which; (void)from; (void)n; return OK; }
int cublasLtMatmulPreferenceCreate(void **made) { *made = handle(); return OK; }
int cublasLtMatmulPreferenceDestroy(void *made) { free(made); return OK; }
int cublasLtMatmulPreferenceSetAttribute(void *made, int which, const void *from, size_t n) { (void)made; (void)which; (void)from; (void)n; return OK; }
int cublasLtMatmulAlgoGetHeuristic(void *h, void *d, void *a, void *b, void *c, void *r, void *p, int n, struct result *results, int *found) {
    (void)h; (void)d; (void)a; (void)b; (void)c; (void)r; (void)p; (void)n;
    ANSWER();
    memset(results, 0, sizeof *results);
    results->waves = 1;
    *found = 1;
    return OK;
}
int cublasLtMatmulAlgoCheck(void *h, void *d, void *a, void *b, void *c, void *r, const void *algorithm, struct result *result) {
    (void)h; (void)d; (void)a; (void)b; (void)c; (void)r; (void)algorithm;
    memset(result, 0, sizeof *result);
    return OK;
}
int cublasLtMatmul(void *h, void *d, const void *alpha, const void *a, void *la, const void *b, void *lb, const void *beta,
                   const void *c, void *lc, void *r, void *lr, const void *algorithm, void *space, size_t n, void *stream) {
    (void)h; (void)d; (void)alpha; (void)a; (void)la; (void)b; (void)lb; (void)beta; (void)c; (void)lc; (void)r;
    (void)lr; (void)algorithm; (void)space; (void)n; (void)stream;
    ANSWER();
    return OK;
}
