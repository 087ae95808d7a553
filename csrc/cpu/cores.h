// How many threads can run at once, and whether they do.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

namespace fastrnn::cpu {

// Seconds of CPU time a second that control groups, the old or the unified ones, leave to this process: the smallest
// quota from its own group upwards, infinite where there is none. `root` comes before the absolute paths of all files.
double quota(const std::string& root);

// Cores for the calling thread and those that it starts: of its affinity mask, which is looked at a hundred times a
// second, and not more than the quota, rounded up, that the process had when it was first asked.
int cores();

// For tests: have there be `n` cores, one of them kept busy by others, or none; n = 0: as it is.
void assume_cores(int n, bool busy);

int64_t now();  // nanoseconds

// Whether threads are worth having. The time that they save, against one thread doing it all, is put in until the
// ledger is full; what waiting for a thread without a core costs beyond that is drawn out. With nothing left, one
// thread works alone for some times what was lost; then threads are tried again, with a full ledger. Each time that
// they lasted no longer than the pause before, the next one is twice as many times the loss. So a delay once in a while
// changes little, and however long others keep a core, little is lost. All times in nanoseconds.
class Ledger {
 public:
  bool pays() const { return until() == 0 || pays_at(now()); }
  bool pays_at(int64_t time) const { return time >= until(); }
  int64_t until() const { return until_.load(std::memory_order_relaxed); }  // 0: since long ago

  // Of work on several threads that ended at `time`: what it took, and would have taken one thread alone.
  void enter(int64_t alone, int64_t took, int64_t time);

 private:
  static constexpr int64_t kFull = 5'000'000, kMostLost = 100'000'000;
  static constexpr int64_t kTimes = 8, kMostTimes = 32;
  std::atomic<int64_t> balance_{kFull}, until_{0}, tried_{0}, pause_{0}, times_{kTimes};
};

Ledger& ledger();  // the process's

bool others_are_busy();  // so that one thread is to work alone

}  // namespace fastrnn::cpu
