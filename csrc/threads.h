// Work on torch's threads, and what comes of it.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>

#include "cpu/cores.h"
#include "cpu/plan.h"

namespace fastrnn {

inline int torch_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

// f(lo, hi) over parts of [0, n), on torch's threads if `parallel`. The ledger is told: alone, a thread would have
// taken the time of all parts together.
template <class F>
void in_parts(int64_t n, bool parallel, const F& f) {
  if (n == 1 || !parallel) {
    if (n > 0) f(0, n);
    return;
  }
  std::atomic<int64_t> alone{0};
  const int64_t begin = cpu::now();
  torch::stable::parallel_for(0, n, 1, [&](int64_t lo, int64_t hi) {
    const int64_t start = cpu::now();
    f(lo, hi);
    alone.fetch_add(cpu::now() - start, std::memory_order_relaxed);
  });
  const int64_t end = cpu::now();
  cpu::ledger().enter(alone.load(std::memory_order_relaxed), end - begin, end);
}

// f(lo, hi) over a plan's shares, of which `work(lo, hi)` says what part of all the work they are. What one thread
// alone would have taken is known from the share that was least disturbed: one whose thread loses its core takes
// longer.
template <class F, class Work>
void in_shares(const cpu::Plan& plan, const F& f, const Work& work) {
  if (plan.shares() == 1) return f(0, 1);
  constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> alone{kUnknown};
  const int64_t begin = cpu::now();
  torch::stable::parallel_for(0, plan.shares(), 1, [&](int64_t lo, int64_t hi) {
    const int64_t start = cpu::now(), waited = cpu::Barrier::waited();
    f(lo, hi);
    const int64_t worked = cpu::now() - start - (cpu::Barrier::waited() - waited);
    const double part = work(lo, hi);
    if (part <= 0) return;
    const auto all = static_cast<int64_t>(static_cast<double>(worked) / part);
    for (int64_t least = alone.load(); all < least && !alone.compare_exchange_weak(least, all);) continue;
  });
  const int64_t end = cpu::now();
  if (alone.load() < kUnknown) cpu::ledger().enter(alone.load(), end - begin, end);
}

}  // namespace fastrnn
