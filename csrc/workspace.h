// Memory that a pass needs and nobody keeps. A thread's passes use the same memory over and over: fresh memory costs a
// page fault for every 4 KiB, which is more than short sequences take to compute. After a pass that takes long, others
// may have it.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "cpu/cores.h"

namespace fastrnn {

class Workspace {
 public:
  Workspace() {
    if (arena().users++ == 0) arena().begin();
  }
  ~Workspace() {
    if (--arena().users == 0) arena().reset();
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // Valid until the last Workspace of the thread goes. Aligned to cache lines; its contents are whatever was there, or
  // NaN with FASTRNN_POISON in the environment, so that tests see what is read before it is written.
  static void* take(int64_t bytes) {
    static const bool poison = std::getenv("FASTRNN_POISON") != nullptr;
    void* const memory = arena().take(bytes);
    if (poison && bytes > 0) std::memset(memory, 0xFF, static_cast<size_t>(bytes));
    return memory;
  }

 private:
  static constexpr int64_t kLine = 64, kHugePage = int64_t{2} << 20;
#ifdef __SANITIZE_ADDRESS__
  static constexpr int64_t kMost = 0;  // every piece is by itself, between bytes that are nobody's
#else
  static constexpr int64_t kMost = int64_t{64} << 20;  // bytes a thread keeps between passes
#endif
  // Bytes that it always keeps; and nanoseconds of a pass for each byte, from which it does not keep more than those:
  // to get them again, at about 0.1 a byte, is a hundredth of such a pass.
  static constexpr int64_t kFew = int64_t{256} << 10, kLong = 10;

  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  using Memory = std::unique_ptr<void, Free>;

  // Null where there is not as much.
  static Memory allocate(int64_t bytes) {
    const int64_t alignment = bytes >= kHugePage ? kHugePage : kLine;
    void* p = nullptr;
    if (posix_memalign(&p, alignment, bytes) != 0) return nullptr;
#ifdef MADV_HUGEPAGE
    if (alignment == kHugePage) madvise(p, bytes, MADV_HUGEPAGE);  // fewer faults, and fewer misses on packed weights
#endif
    return Memory(p);
  }

  struct Arena {
    int users = 0;
    Memory block;                  // what fits lies in here, one after the other
    std::vector<Memory> overflow;  // what did not fit, until the next reset makes the block large enough
    int64_t size = 0, used = 0, needed = 0;
    int64_t start = 0;  // of the pass, where there is or was much to keep
    bool is_large = false;

    void begin() {
      if (is_large) start = cpu::now();
    }

    void* take(int64_t bytes) {
      const int64_t lines = (bytes + kLine - 1) / kLine * kLine;
      needed += lines;
      if (used + lines <= size) {
        used += lines;
        return static_cast<char*>(block.get()) + used - lines;
      }
      Memory memory = allocate(bytes > 0 ? bytes : kLine);
      if (memory == nullptr) throw std::bad_alloc();
      overflow.push_back(std::move(memory));
      return overflow.back().get();
    }

    // Never throws: without a block, the next pass finds its memory piece by piece, or reports that there is none.
    void reset() noexcept {
      overflow.clear();
      const bool was_large = std::exchange(is_large, needed > kFew);
      if (was_large && is_large && cpu::now() - start > kLong * needed) {
        block.reset();
        size = 0;
      } else if (needed > size && needed <= kMost) {
        size = 0;
        block.reset();
        block = allocate(needed);
        if (block != nullptr) size = needed;
      }
      used = needed = 0;
    }
  };

  static Arena& arena() {
    thread_local Arena own;
    return own;
  }
};

// n elements of it.
template <class T>
T* workspace(int64_t n) {
  return static_cast<T*>(Workspace::take(n * int64_t{sizeof(T)}));
}

}  // namespace fastrnn
