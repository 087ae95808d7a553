#include "cpu/plan.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "cpu/cores.h"
#include "cpu/tuned.h"

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
constexpr double kLateSeconds = 4e-5;     // the same where its threads have to wait for each other's cores,
constexpr double kTurnSeconds = 1.5e-5;   // and for each of them

constexpr int kSpins = 256;    // pauses of a wait that is short: longer than a step's shares are apart
constexpr int kPauses = 1024;  // after which others need this core, as when more threads run than there are cores

thread_local int64_t waited_here = 0;  // nanoseconds

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

bool takes(const Problem& p, int threads) {
  const Split& split = p.split;
  if (!split || split.teams > p.directions || split.teams * split.team_shares > threads) return false;
  return split.team_shares == 1 || split.team_shares <= (split.by_units ? p.unit_panels : p.B);
}

}  // namespace

Plan make_plan(const Problem& p) {
  Plan plan;
  const int threads = std::min(p.threads, p.cores);
  const double region = p.threads > p.cores ? p.regions * (kLateSeconds + p.threads * kTurnSeconds) : kRegionSeconds;
  plan.teams = p.directions == 2 && threads % 2 == 0 ? 2 : 1;
  const double weights = static_cast<double>(p.gates) * p.H * p.H * p.element;
  const double steps = static_cast<double>(p.T) * p.directions / plan.teams;
  const int most = std::max(1, threads / plan.teams);
  double best = steps * step_seconds(static_cast<double>(p.B), weights, p.element) + (plan.teams - 1) * region;
  if (plan.teams == 2 && best + region > 2 * (best - region)) {
    plan.teams = 1;
    best = 2 * (best - region);
  }
  const bool measured = takes(p, threads);
  if (measured) plan.teams = p.split.teams, plan.team_shares = p.split.team_shares, plan.by_units = p.split.by_units;
  for (int n = 2; n <= most && !measured; ++n) {
    if (n <= p.B) {
      const double rows = static_cast<double>((p.B + n - 1) / n);
      const double t = steps * step_seconds(rows, weights, p.element) + region;
      if (t < best) best = t, plan.team_shares = n, plan.by_units = false;
    }
    if (n <= p.unit_panels) {
      const double part = static_cast<double>((p.unit_panels + n - 1) / n) / p.unit_panels;
      const double t =
          steps * (step_seconds(static_cast<double>(p.B), weights * part, p.element) + kBarrierSeconds) + region;
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

Plan plan_here(Problem problem, std::string* why) {
  const Plan usual = make_plan(problem);
  if (usual.shares() == 1) return usual;  // so that short calls ask nobody
  problem.cores = cores();
  Plan plan = problem.threads > problem.cores ? make_plan(problem) : usual;
  const bool crowded = plan.shares() > 1 && !is_forced() && others_are_busy(), forked = !pool_usable();
  if (crowded || forked) problem.threads = 1, plan = make_plan(problem);
  if (why != nullptr && plan.shares() < usual.shares()) {
    *why = forked    ? "a forked process has no others"
           : crowded ? "others keep a core busy: more are tried again soon"
                     : "torch's " + std::to_string(problem.threads) + " have " + std::to_string(problem.cores) +
                           (problem.cores == 1 ? " core" : " cores");
  }
  return plan;
}

bool threads_help(int threads) {
  return threads > 1 && pool_usable() && threads <= cores() && (is_forced() || !others_are_busy());
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
  int64_t since = 0;
  for (int spins = 0; arrived_.load(std::memory_order_acquire) < phase * shares; ++spins) {
    if (spins == kSpins) since = now();
    if (spins > kPauses) {
      std::this_thread::yield();
      continue;
    }
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  if (since != 0) waited_here += now() - since;
}

int64_t Barrier::waited() { return waited_here; }

}  // namespace fastrnn::cpu
