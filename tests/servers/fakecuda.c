/* Stands where NVIDIA's libcuda.so.1 (and, compiled again, libnvidia-ml.so.1) stands, and is as strict about its callers.

   Told by the environment:
     FAKECUDA_VERSION   what cuDriverGetVersion says, such as 13000
     FAKECUDA_DEVICES   "NVIDIA H100 80GB HBM3=9.0;NVIDIA A100-SXM4-80GB=8.0"; empty: none
     FAKECUDA_RELEASE   what NVML says the driver's version is; unset: NVML fails
     FAKECUDA_FAULT     "cuInit=803" (a CUresult), "cuInit=hang", "cuInit=crash", "cuInit=exit"; any function
     FAKECUDA_LOG       a file; the name of each call on a line of its own, "load" first
     CUDA_VISIBLE_DEVICES  as the real one reads it: ordinals; the first that is no device ends the list

   As the real one: 3 (not initialised) before cuInit, 1 (invalid value) for null pointers, flags and unknown attributes, 101
   (invalid device) for ordinals and handles that are none; cuInit says 100 without devices. Handles are not ordinals here,
   so that a caller that mixes them up fails. Source: CUDA Driver API reference. */

#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101 };
enum { HANDLE = 40, MAX = 16, LAST_ATTRIBUTE = 150 };
static int initialised, count;
static struct { char name[256]; int major, minor; } device[MAX], all[MAX];

static void note(const char *call) {
  const char *path = getenv("FAKECUDA_LOG");
  FILE *log = path ? fopen(path, "a") : NULL;
  if (log) {
    fprintf(log, "%s\n", call);
    fclose(log);
  }
}

__attribute__((constructor)) static void load(void) { note("load"); }

/* The fault asked for in this call, or 0. */
static int entered(const char *call) {
  const char *fault = getenv("FAKECUDA_FAULT");
  size_t length = strlen(call);
  note(call);
  if (!fault || strncmp(fault, call, length) || fault[length] != '=') return 0;
  fault += length + 1;
  if (!strcmp(fault, "hang")) for (;;) pause();
  if (!strcmp(fault, "crash")) raise(SIGSEGV);
  if (!strcmp(fault, "exit")) _exit(9);
  return atoi(fault);
}

static void read_devices(void) {
  char *copy = strdup(getenv("FAKECUDA_DEVICES") ? getenv("FAKECUDA_DEVICES") : ""), *state, *state2;
  const char *visible = getenv("CUDA_VISIBLE_DEVICES");
  int present = 0;
  for (char *one = strtok_r(copy, ";", &state); one && present < MAX; one = strtok_r(NULL, ";", &state), present++)
    if (sscanf(one, "%255[^=]=%d.%d", all[present].name, &all[present].major, &all[present].minor) != 3) abort();
  count = 0;
  if (!visible) {
    memcpy(device, all, sizeof all);
    count = present;
  } else {
    copy = strdup(visible);
    for (char *one = strtok_r(copy, ",", &state2); one && count < MAX; one = strtok_r(NULL, ",", &state2)) {
      char *end;
      long n = strtol(one, &end, 10);
      if (end == one || n < 0 || n >= present) break;
      device[count++] = all[n];
    }
  }
}

static int bad(int handle) { return handle < HANDLE || handle >= HANDLE + count; }

int cuDriverGetVersion(int *version) {
  int fault = entered("cuDriverGetVersion");
  if (fault) return fault;
  if (!version) return INVALID_VALUE;
  *version = atoi(getenv("FAKECUDA_VERSION"));
  return OK;
}

int cuGetErrorName(int code, const char **name) {
  if (!name) return INVALID_VALUE;
  *name = code == 3     ? "CUDA_ERROR_NOT_INITIALIZED"
          : code == 2   ? "CUDA_ERROR_OUT_OF_MEMORY"
          : code == 100 ? "CUDA_ERROR_NO_DEVICE"
          : code == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"
          : code == 804 ? "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE"
                        : NULL;
  return *name ? OK : INVALID_VALUE;
}

int cuInit(unsigned flags) {
  int fault = entered("cuInit");
  if (fault) return fault;
  if (flags) return INVALID_VALUE;
  read_devices();
  if (!count) return NO_DEVICE;
  initialised = 1;
  return OK;
}

int cuDeviceGetCount(int *out) {
  int fault = entered("cuDeviceGetCount");
  if (fault) return fault;
  if (!initialised) return NOT_INITIALIZED;
  if (!out) return INVALID_VALUE;
  *out = count;
  return OK;
}

int cuDeviceGet(int *handle, int ordinal) {
  int fault = entered("cuDeviceGet");
  if (fault) return fault;
  if (!initialised) return NOT_INITIALIZED;
  if (!handle) return INVALID_VALUE;
  if (ordinal < 0 || ordinal >= count) return INVALID_DEVICE;
  *handle = HANDLE + ordinal;
  return OK;
}

int cuDeviceGetName(char *name, int length, int handle) {
  int fault = entered("cuDeviceGetName");
  if (fault) return fault;
  if (!initialised) return NOT_INITIALIZED;
  if (!name || length < 1) return INVALID_VALUE;
  if (bad(handle)) return INVALID_DEVICE;
  snprintf(name, length, "%s", device[handle - HANDLE].name);
  return OK;
}

int cuDeviceGetAttribute(int *value, int attribute, int handle) {
  int fault = entered("cuDeviceGetAttribute");
  if (fault) return fault;
  if (!initialised) return NOT_INITIALIZED;
  if (!value || attribute < 1 || attribute > LAST_ATTRIBUTE) return INVALID_VALUE;
  if (bad(handle)) return INVALID_DEVICE;
  *value = attribute == 75 ? device[handle - HANDLE].major : attribute == 76 ? device[handle - HANDLE].minor : 1024;
  return OK;
}

int cuDevicePrimaryCtxRetain(void **context, int handle) {
  int fault = entered("cuDevicePrimaryCtxRetain");
  if (fault) return fault;
  if (!initialised) return NOT_INITIALIZED;
  if (!context) return INVALID_VALUE;
  if (bad(handle)) return INVALID_DEVICE;
  *context = &device[handle - HANDLE];
  return OK;
}

/* NVML. 1: not initialised; 2: invalid argument; 9: driver not loaded. */
static int nvml;
int nvmlInit_v2(void) {
  int fault = entered("nvmlInit_v2");
  if (fault) return fault;
  if (!getenv("FAKECUDA_RELEASE")) return 9;
  return nvml = 1, OK;
}

int nvmlSystemGetDriverVersion(char *text, unsigned length) {
  if (!nvml) return 1;
  if (!text || length < 80) return 2;
  return snprintf(text, length, "%s", getenv("FAKECUDA_RELEASE")), OK;
}
