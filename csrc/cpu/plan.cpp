#include "cpu/plan.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastrnn::cpu {
namespace {

// Orders of magnitude for one thread, for choosing between ways to split and for nothing else.
constexpr double kFlops = 130e9;          // multiply-adds count two
constexpr double kNearBytes = 100e9;      // weights that fit the second-level cache
constexpr double kFarBytes = 25e9;        // weights that do not
constexpr double kBarrierSeconds = 4e-7;  // one barrier between threads that are running
constexpr double kRegionSeconds = 8e-6;   // entering and leaving a parallel region

int64_t second_level_cache() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  const long size = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (size > 0) return size;
#endif
  return 1 << 20;
}

// Time of one step for a thread that computes `rows` rows with `bytes` of recurrent weights.
double step_seconds(double rows, double bytes, int element) {
  static const double cache = 0.8 * static_cast<double>(second_level_cache());
  const double compute = rows * bytes / element * 2 / (kFlops * 4 / element);
  return std::max(compute, bytes / (bytes <= cache ? kNearBytes : kFarBytes));
}

}  // namespace

Plan make_plan(const Problem& p) {
  Plan plan;
  plan.teams = p.directions == 2 && p.threads % 2 == 0 ? 2 : 1;
  const double weights = static_cast<double>(p.gates) * p.H * p.H * p.element;
  const double steps = static_cast<double>(p.T) * p.directions / plan.teams;
  const int most = std::max(1, p.threads / plan.teams);
  double best = steps * step_seconds(static_cast<double>(p.B), weights, p.element) + (plan.teams - 1) * kRegionSeconds;
  if (plan.teams == 2 && best + kRegionSeconds > 2 * (best - kRegionSeconds)) {
    plan.teams = 1;
    best = 2 * (best - kRegionSeconds);
  }
  for (int n = 2; n <= most; ++n) {
    if (n <= p.B) {
      const double rows = static_cast<double>((p.B + n - 1) / n);
      const double t = steps * step_seconds(rows, weights, p.element) + kRegionSeconds;
      if (t < best) best = t, plan.team_shares = n, plan.by_units = false;
    }
    if (n <= p.unit_panels) {
      const double part = static_cast<double>((p.unit_panels + n - 1) / n) / p.unit_panels;
      const double t = steps * (step_seconds(static_cast<double>(p.B), weights * part, p.element) + kBarrierSeconds) +
                       kRegionSeconds;
      if (t < best) best = t, plan.team_shares = n, plan.by_units = true;
    }
  }
  // Forward: the input product of a chunk is read back at once, so it should stay in the second-level cache, but be
  // tall enough to use each panel of weights many times.
  const int64_t row = int64_t{p.width} * p.H * p.element, batch = std::max<int64_t>(p.B, 1);
  const int64_t forward_rows = std::max<int64_t>(kBlockRows, (int64_t{512} << 10) / row);
  plan.forward_steps = std::clamp<int64_t>(forward_rows / batch, 1, std::max<int64_t>(p.T, 1));
  // Backward: the weight gradient is read and written once a chunk, so a chunk is many rows tall.
  const int64_t backward_rows = std::max<int64_t>(512, (int64_t{2} << 20) / (row + (p.H + p.I) * p.element));
  plan.backward_steps = std::clamp<int64_t>(backward_rows / batch, 1, std::max<int64_t>(p.T, 1));
  // Row tables, a block of converted input rows, and single converted rows.
  const int64_t bytes = p.B * 64 + (kBlockRows * p.I + 2 * p.H) * p.element;
  plan.scratch = (bytes + 127) / 64 * 64;
  return plan;
}

std::string describe(const Plan& plan) {
  std::string text = plan.teams == 2 ? "a team of threads a direction, " : "";
  if (plan.team_shares == 1) return text + (plan.teams == 2 ? "one thread each" : "one thread");
  return text + (plan.by_units ? "units" : "rows") + " split over " + std::to_string(plan.team_shares) + " threads";
}

bool pool_usable() {
  static std::atomic<bool> forked{false};  // not asked of getpid, which is a system call
  static const int watching = pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });
  return watching == 0 && !forked.load(std::memory_order_relaxed);
}

void Barrier::wait(int64_t phase, int64_t shares) const {
  // Spin for about a step's time; then others need this core, as when more threads run than there are cores.
  for (int spins = 0; arrived_.load(std::memory_order_acquire) < phase * shares; ++spins) {
    if (spins > 4096) {
      std::this_thread::yield();
      continue;
    }
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
}

}  // namespace fastrnn::cpu
