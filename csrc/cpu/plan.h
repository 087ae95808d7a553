// How a layer's passes are cut over threads and time, and the barrier between threads that share the hidden units.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

namespace fastrnn::cpu {

constexpr int64_t kBlockRows = 192;  // rows that a product takes at a time

// Between which threads to split a layer, where that was measured; see Plan.
struct alignas(8) Split {
  int16_t teams = 0, team_shares = 0;  // 0: not measured
  bool by_units = false;

  explicit operator bool() const { return teams > 0; }
};

// What the plan depends on.
struct Problem {
  int64_t T = 0, B = 0, I = 0, H = 0;
  int gates = 0, width = 0, directions = 1;  // width: values per unit in the pre-activation buffer
  int element = 4;                           // bytes of the compute type
  int vector_bytes = 32;
  int unit_panels = 1;  // forward panels of units: no finer split is possible
  bool backward = false;
  int regions = 2;      // parallel regions of a pass, where each of them is late
  int threads = 1;      // torch's, all of which a region wakes
  int cores = 1 << 20;  // no more shares than that
  Split split;          // to follow, if there are as many threads and cores
};

// A team computes one direction, or both in turn; its shares split either the rows (nothing to wait for) or the hidden
// units (a barrier a step: every unit needs all of h). Two teams compute two directions side by side.
struct Plan {
  int teams = 1, team_shares = 1;
  bool by_units = false;
  int64_t forward_steps = 1, backward_steps = 1;  // steps a chunk, whose buffers stay in cache
  int64_t scratch = 0;                            // bytes of workspace a share

  int shares() const { return teams * team_shares; }
  bool waits() const { return by_units && team_shares > 1; }
};

Plan make_plan(const Problem& problem);

// The plan for a problem of torch's threads, here and now: with no more shares than there are cores, or with one where
// threads do not come, or come late. `why`, where it is not null, gets the reason for fewer than there might be, or "".
Plan plan_here(Problem problem, std::string* why = nullptr);

// "rows split over 2 threads" and the like.
std::string describe(const Plan& plan);

// Whether more than one thread can be expected to help, of as many as a parallel region wakes.
bool threads_help(int threads);

// False in a process forked from one whose thread pool this engine has used: the pool's threads did not come along, and
// waiting for them would hang.
bool pool_usable();

// A barrier for shares of which one thread may hold several: it arrives with their number.
class alignas(64) Barrier {
 public:
  void arrive(int64_t arrivals) { arrived_.fetch_add(arrivals, std::memory_order_acq_rel); }
  // Returns when `shares` arrivals of the phase (1, 2, …) have come.
  void wait(int64_t phase, int64_t shares) const;
  // Nanoseconds that the calling thread has waited at barriers, waits that are short in any case left out.
  static int64_t waited();

 private:
  std::atomic<int64_t> arrived_{0};
};

}  // namespace fastrnn::cpu
