#include "cpu/tuned.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "cpu/cores.h"

namespace fastrnn::cpu {
namespace {

// What is read without a lock stays for as long as the process runs: it is told a few times in it.
std::atomic<const Tuning*> known{nullptr};
std::atomic<Whose> forced_whose{Whose::kUnknown};
std::atomic<Split> forced_split{Split{}};
std::atomic<bool> own{false};

void look_again() {
  const Tuning* const all = known.load();
  const bool nothing = all != nullptr && all->calls.empty() && all->layers.empty();
  tuned.store(!nothing || forced_whose.load() != Whose::kUnknown || forced_split.load() || own.load());
}

bool holds_for(const Tuned& entry, const Work& work, int threads) {
  if (entry.kind != work.kind || entry.threads != threads) return false;
  for (int size = 0; size < kSizes; ++size) {
    if (work.sizes[size] < entry.least[size] || work.sizes[size] > entry.most[size]) return false;
  }
  return entry.cores == std::min(threads, cores());
}

// The nearest of those that hold, the first of equals.
const Tuned* find(const std::vector<Tuned>& entries, const Work& work, int threads) {
  const Tuned* found = nullptr;
  std::pair<int64_t, int64_t> least;
  for (const Tuned& entry : entries) {
    if (!holds_for(entry, work, threads)) continue;
    const std::pair apart(entry.most[kRows] - work.sizes[kRows], std::abs(entry.steps - work.sizes[kSteps]));
    if (found == nullptr || apart < least) found = &entry, least = apart;
  }
  return found;
}

}  // namespace

std::atomic<bool> tuned{true};

Whose whose(const Work& work, int threads) {
  if (const Whose forced = forced_whose.load(); forced != Whose::kUnknown) return forced;
  if (own.load()) return Whose::kOurs;
  const Tuning* const all = known.load();
  if (all == nullptr) return Whose::kUnknown;
  const Tuned* const entry = find(all->calls, work, threads);
  return entry == nullptr ? Whose::kAsEver : entry->by_torch ? Whose::kTorchs : Whose::kOurs;
}

Split split_for(const Work& work, int threads) {
  if (forced_whose.load() != Whose::kUnknown) return forced_split.load();
  const Tuning* const all = known.load();
  const Tuned* const entry = all == nullptr ? nullptr : find(all->layers, work, threads);
  return entry == nullptr ? Split{} : entry->split;
}

void tell_tuning(Tuning tuning) {
  known.store(new Tuning(std::move(tuning)));
  look_again();
}

void force_way(Whose whose, Split split) {
  forced_whose.store(whose);
  forced_split.store(split);
  look_again();
}

bool is_forced() { return forced_whose.load(std::memory_order_relaxed) != Whose::kUnknown; }

void keep_own_numbers(bool on) {
  own.store(on);
  look_again();
}

}  // namespace fastrnn::cpu
