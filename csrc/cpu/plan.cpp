#include "cpu/plan.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "cpu/cores.h"
#include "cpu/machine.h"
#include "cpu/tuned.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastrnn::cpu {
namespace {

// In cycles of one core, orders of magnitude: for choosing between ways to split and for nothing else.
constexpr double kBarrier = 1000;  // one barrier between threads that are running,
constexpr double kArrival = 250;   // and for each of them
constexpr double kRegion = 15000;  // entering and leaving a parallel region
constexpr double kStep = 200;      // of a share, whatever its size,
constexpr double kRow = 75;        // and for each of its rows
constexpr double kGate = 30;       // the exponential of a gate, for a vector of units
// Bytes a cycle that are packed from weights, or copied for the products of backward.
constexpr double kCopied = 2;
constexpr double kLeastRows = 1.5;   // as many as one row takes the time of: its sums wait for each other
constexpr double kEfficiency = 0.8;  // of products, in what the machine could multiply

constexpr double kHertz = 3.5e9;           // about, for what is known in seconds:
constexpr double kLate = 4e-5 * kHertz;    // a region whose threads have to wait for each other's cores,
constexpr double kTurn = 1.5e-5 * kHertz;  // and for each of them

constexpr int kSpins = 256;    // pauses of a wait that is short: longer than a step's shares are apart
constexpr int kPauses = 1024;  // after which others need this core, as when more threads run than there are cores

thread_local int64_t waited_here = 0;  // nanoseconds

// Parallel regions of a pass, those left out that it has with one thread as well.
double regions(const Problem& p, const Plan& plan) {
  const int64_t chunks = (p.T + plan.backward_steps - 1) / plan.backward_steps;
  return p.backward ? static_cast<double>(1 + (2 + p.directions) * chunks) : 2;
}

// The time of the pass, but for what all plans do alike: that of its largest share.
double cycles(const Problem& p, const Plan& plan) {
  static const Machine& here = machine();
  const int64_t n = plan.team_shares, batch = std::max<int64_t>(p.B, 1);
  const double rows = static_cast<double>(plan.by_units ? batch : (batch + n - 1) / n);
  const double part =
      plan.by_units ? static_cast<double>((p.unit_panels + n - 1) / n) / static_cast<double>(p.unit_panels) : 1;
  const double units = static_cast<double>(p.H) * part, columns = p.gates * units, element = p.element;
  const auto H = static_cast<double>(p.H), I = static_cast<double>(p.I), T = static_cast<double>(p.T);
  const double rate = kEfficiency * here.multiplied(p.vector_bytes) / element;
  // Of a single step, the input's weights are read as the recurrent ones are.
  const bool single = p.T == 1;
  const double depth = single ? I + H : H, bytes = columns * depth * element;
  const bool near = bytes <= 0.8 * static_cast<double>(here.second_level);
  double step = std::max(std::max(rows, kLeastRows) * columns * depth / rate, bytes / (near ? here.near : here.far));
  if (!single) step += rows * columns * I / rate;
  step += rows * units * (p.gates + (p.gates == 4)) * kGate * element / p.vector_bytes * (p.backward ? 0.5 : 1);
  if (p.backward) step += rows * part * (I + H) * element / kCopied;
  step += kStep + rows * kRow;
  if (plan.waits()) step += kBarrier + static_cast<double>(n) * kArrival;
  const int matrices = 2 * p.directions;  // to pack, one a thread
  const double packed = single ? 0 : p.gates * H * (I + H) / 2 * element * matrices;
  const double work = T * p.directions / plan.teams * step + packed / kCopied / std::min(plan.shares(), matrices);
  if (plan.shares() == 1) return work;
  return work + (p.threads > p.cores ? p.regions * (kLate + p.threads * kTurn) : regions(p, plan) * kRegion);
}

bool takes(const Problem& p, int threads) {
  const Split& split = p.split;
  if (!split || split.teams > p.directions || split.teams * split.team_shares > threads) return false;
  return split.team_shares == 1 || split.team_shares <= (split.by_units ? p.unit_panels : p.B);
}

}  // namespace

Plan make_plan(const Problem& p) {
  Plan plan;
  // Forward: the input product of a chunk is read back at once, so it should stay in the second-level cache, but be
  // tall enough to use each panel of weights many times.
  const int64_t row = int64_t{p.width} * p.H * p.element, batch = std::max<int64_t>(p.B, 1);
  const int64_t forward_rows = std::max<int64_t>(kBlockRows, machine().second_level / 2 / row);
  plan.forward_steps = std::clamp<int64_t>(forward_rows / batch, 1, std::max<int64_t>(p.T, 1));
  // Backward: the weight gradient is read and written once a chunk, so a chunk is many rows tall where that is large,
  // and else no taller than it has to be: its buffers are memory that others could use. Where chunks begin and end
  // shows in the gradient's last bits, so this is the same on all machines.
  const int64_t gradient = int64_t{p.gates} * p.H * (p.H + p.I) * p.element;
  const int64_t least = gradient > int64_t{4} << 20 ? 512 : kBlockRows;
  const int64_t backward_rows = std::max<int64_t>(least, (int64_t{512} << 10) / (row + (p.H + p.I) * p.element));
  plan.backward_steps = std::clamp<int64_t>(backward_rows / batch, 1, std::max<int64_t>(p.T, 1));
  // Row tables, a block of converted input rows, and single converted rows.
  const int64_t bytes = p.B * 64 + (kBlockRows * p.I + 2 * p.H) * p.element;
  plan.scratch = (bytes + 127) / 64 * 64;

  const int threads = std::min(p.threads, p.cores);
  if (takes(p, threads)) {
    plan.teams = p.split.teams, plan.team_shares = p.split.team_shares, plan.by_units = p.split.by_units;
    return plan;
  }
  double best = cycles(p, plan);
  if (threads == 1 || best <= kRegion) return plan;
  Plan other = plan;
  for (other.teams = 1; other.teams <= p.directions; ++other.teams) {
    const int most = threads / other.teams;
    for (const bool by_units : {false, true}) {
      const int64_t parts = std::max<int64_t>(by_units ? p.unit_panels : p.B, 1);
      int64_t largest = parts + 1;  // of the parts that a share has
      other.by_units = by_units;
      for (other.team_shares = by_units || other.teams == 1 ? 2 : 1;
           other.team_shares <= std::min<int64_t>(most, parts); ++other.team_shares) {
        const int64_t each = (parts + other.team_shares - 1) / other.team_shares;
        if (each == largest) continue;
        largest = each;
        const double time = cycles(p, other);
        if (time < best) best = time, plan = other;
      }
    }
  }
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
