// Memory that runs out when the soak wants it to: loaded before all else, it refuses the n-th piece of memory that
// libraries named by watch() ask for, or that and all after it. Built by engines.py, used by allocation.py.

#include <dlfcn.h>
#include <errno.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace {

struct Range {
  uintptr_t begin, end;
};

constexpr int kMost = 32;
Range watched[kMost];
std::atomic<int> ranges{0};
std::atomic<long> seen{0}, refused{0}, first{0}, last{0};
std::atomic<size_t> least{0};

bool refuses(size_t size, const void* caller) {
  if (size < least.load()) return false;
  const auto at = reinterpret_cast<uintptr_t>(caller);
  for (int i = 0, n = ranges.load(); i < n; ++i) {
    if (at < watched[i].begin || at >= watched[i].end) continue;
    const long number = ++seen;
    const bool refuse = number >= first.load() && number <= last.load();
    if (refuse) ++refused;
    return refuse;
  }
  return false;
}

void* get(size_t size, size_t alignment, const void* caller) {
  void* const p = refuses(size, caller) ? nullptr
                  : alignment == 0      ? std::malloc(size)
                                        : std::aligned_alloc(alignment, size);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

}  // namespace

extern "C" {

// Callers in [begin, end) are watched from now on.
void soak_watch(uintptr_t begin, uintptr_t end) {
  const int n = ranges.load();
  if (n == kMost) std::abort();
  watched[n] = {begin, end};
  ranges.store(n + 1);
}

// Of the pieces of at least `bytes` that the watched ask for from now on, [from, to] are refused, counted from 1.
void soak_refuse(long from, long to, size_t bytes) {
  first.store(0), last.store(-1);
  seen.store(0), refused.store(0), least.store(bytes);
  first.store(from), last.store(to);
}

long soak_seen() { return seen.load(); }
long soak_refused() { return refused.load(); }

void* aligned_alloc(size_t alignment, size_t size) {
  using Function = void* (*)(size_t, size_t);
  static const auto real = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "aligned_alloc"));
  return refuses(size, __builtin_return_address(0)) ? nullptr : real(alignment, size);
}

int posix_memalign(void** to, size_t alignment, size_t size) {
  using Function = int (*)(void**, size_t, size_t);
  static const auto real = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "posix_memalign"));
  return refuses(size, __builtin_return_address(0)) ? ENOMEM : real(to, alignment, size);
}
}

void* operator new(size_t size) { return get(size, 0, __builtin_return_address(0)); }
void* operator new[](size_t size) { return get(size, 0, __builtin_return_address(0)); }
void* operator new(size_t size, std::align_val_t alignment) {
  return get((size + size_t(alignment) - 1) / size_t(alignment) * size_t(alignment), size_t(alignment),
             __builtin_return_address(0));
}
void* operator new[](size_t size, std::align_val_t alignment) {
  return get((size + size_t(alignment) - 1) / size_t(alignment) * size_t(alignment), size_t(alignment),
             __builtin_return_address(0));
}
